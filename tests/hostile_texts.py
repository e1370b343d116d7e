"""Texts made to take a scrubber's time: what its rules begin with, over and over, and never finish.

`hostile` grows with every rule; the scrubber's tests and its benchmark read all of them.
"""

from __future__ import annotations

_UNITS = (
    # Beginnings and ends of what is bounded
    "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n",
    "-----END RSA PRIVATE KEY-----\nAAAABBBBCCCCDDDD\n", "-----BEGIN ", "PuTTY-User-Key-File-2: ",
    "MIIEpAIBAAKCAQEA", '"kty":"RSA","d":"', "<RSAKeyValue><D>", "PRIVATE KEY",
    # Addresses
    "://", "a://b@", "https://a:", "https://a?token=", "https://a?token=b&", "https://u:p@h/ ",
    "?key=key=key=", "&amp;", "@", "@@@@", "a@", "@a.b", "a@b.", "a.a.a.", "a@b.com", '"@',
    "a at ", " at b dot ", "\u00e9@\u00e9.", "[at]", "::::", "::", "a:", "1:", "ab::", "12:34 ",
    "f::f ", "fe80::1%",
    # Numbers
    "1", "12", "1 ", "1.", "1-", "1.1.", "10.0.0.1", "10.0.0.1.", "4111 ", "4111 1111 1111 1111",
    "4111111111111111", "123-45-6789", "123-45-", "+1", "+1 ", "(1", "+1 415 555 2671 ",
    "+4915112345678 ", "0 12 34 ", "(555) 123-", "call ", "call 1", "phone: ", "number is 1 ",
    "ssn ", "00", "011 ",
    # Names and values
    "=", "key=", "key=key=key=", "token=", "password: x", "password: ", "password=", "secret",
    "passpasspass", "key-", "key.", "key ->", "api_key = ", "--password ", "-p ", "mysql -p",
    "curl -u a:b ", "cookie: a=", "Cookie: a=aaaaaaaaaaaaaaaa; ", "a:1234:b:c:", "tokens = ['",
    "bearer ", "Bearer a", "basic aaaaaaaaaaaa",
    # Keys
    "sk-", "sk_live_", "ghp_", "AKIA", "AKIAIOSFODNN7EXAMPLE", "eyJ", "eyJhbGciOi", "eyJ12345-.",
    "xoxb-1", "a1234-", "a-Ab1Cd2Ef3Gh4Ij5Kl6Mn7", "a1B2c3D4_", "t1.", ".aaaaaa.", "M",
    # Long runs
    "f", "0", "F0", "aA1", "A", "QUFB", "UVVGQg==", "A" * 64 + "\n", "deadbeef", "git deadbeef",
    "/", "+", "=" * 3,
    # Paths
    "/home/", "/home/a", "/Users/a b", "C:\\Users\\", "\\", "\\\\", "\\\\a\\", "~a/", "~",
    "file://", '"/home/a b', "/mnt/c",
    # Disguises
    "%40", "%", "%2540", "%25", "\\u0040", "\\u", "\\x40", "\\\\u0040", "&#64;", "&#", "&",
    "&commat;", "a\u200b", "\u200b", "\u00ad", "e\u0301", "\u0301", "\ufe0f", "\u0430a", "\u0430",
    "\uff11", "\u0661", "\U0001d7d9", "\u2019", "\u00a0", "a ", "a b ", '"a" + ', '"a"', '" "',
    "' '", "\"a\" 'b'", "\\\n", "'\n'", '" + "', ",", "\u3002",
    # Structure
    '"', "'", "`", "{", "[", "{}", '{"a":', "[[", "[1,", '\\"', '{\\"a\\": \\"', "<", "<a>",
    "<a>b</a>", "\n", "\r\n", "\t", " ", "\0", "\ud800", "\U0010ffff", "[EMAIL]", "[API_KEY]",
)  # fmt: skip


def hostile(size: int) -> dict[str, str]:
    """Texts of `size` characters by the unit that they repeat, and some of two units in turn."""
    texts = {unit: (unit * (size // len(unit) + 1))[:size] for unit in _UNITS}
    half = size // 2
    for first, second in (
        ("a", "@"), ("1", " "), ("key=", "a"), ("%40", "a"), ("-----BEGIN PRIVATE KEY-----", "A"),
        ("://", "a"), ("A", "="), ("password", " "), ("call ", " "), ("/home/", "a"), ("f", ":"),
        ("\u200b", "@"), ('"', " "), ("https://a?", "token="), ("key", "."), ("+1", "1"),
        ("a", "\ud800"),
    ):  # fmt: skip
        texts[f"{first} then {second}"] = (first * half)[:half] + (second * half)[:half]
    return texts
