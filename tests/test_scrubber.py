"""What is taken out, what is left in, and that no text gets through unscrubbed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.capture.scrubber import SCRUB_RULES_VERSION, Finding, Label, PIIScrubber, ScrubError

SHA1 = "3f786850e387550fdab836ed7e6dc881de23001b"
PEM_BODY = "MIIEowIBAAKCAQEAx7k2Lq9ZpT4v\nq8Zt1w=="
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{PEM_BODY}\n-----END RSA PRIVATE KEY-----"

scrub = PIIScrubber().scrub


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to user@example.com today.", "Write to [EMAIL] today."),
        ("Call (555) 123-4567, or +44 20 7946 0958", "Call [PHONE], or [PHONE]"),
        ("ping 192.168.1.1:80", "ping [IP]:80"),
        ("via 2001:db8::1 now", "via [IP] now"),
        ("ssn 123-45-6789.", "ssn [SSN]."),
        ("card 4111-1111-1111-1111 ok", "card [CREDIT_CARD] ok"),
        ("id AKIAIOSFODNN7EXAMPLE", "id [AWS_KEY]"),
        (f"key:\n{PEM}\nend", "key:\n[PRIVATE_KEY]\nend"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "Authorization: [API_KEY]"),
        ("use sk-abc123DEF456ghi789jkl", "use [API_KEY]"),
        (f"secret {SHA1}", "secret [API_KEY]"),
        ("see /Users/john/docs/cv.pdf!", "see [FILE_PATH]!"),
        (r"see C:\Users\john\cv.pdf", "see [FILE_PATH]"),
        ("get https://x.org/a?token=abcdef12 now", "get [REDACTED_URL] now"),
        ("get postgres://ann:s3cr3t99@db.org/x", "get [REDACTED_URL]"),
        ("mail ann.o'neil+x@müller.example, now", "mail [EMAIL], now"),
        ("Anruf unter 030 901820 12 bitte", "Anruf unter [PHONE] bitte"),
        ("telefon: 62808", "telefon: [PHONE]"),
        ("tax id 912-70-1234", "tax id [SSN]"),
        ("card 3714 496353 98431", "card [CREDIT_CARD]"),
        ("[fe80::1ff:fe23:4567:890a%eth0]:22", "[[IP]]:22"),
        ("cp '/Users/ann/My Files/a b.pdf' /tmp", "cp '[FILE_PATH]' /tmp"),
        (r"at \\wsl$\Ubuntu\home\ann\x.py:3", "at [FILE_PATH]:3"),
        ("mysql -u root -ph4x0r!Ting db", "mysql -u root -p[API_KEY] db"),
        ("curl -u ann:s3cr3t99 x.org", "curl -u ann:[API_KEY] x.org"),
        ("run --password h4x0r-7 now", "run --password [API_KEY] now"),
        ("mein Passwort lautet Hase7!x", "mein Passwort lautet [API_KEY]"),
        ("<password>Hase7!x</password>", "<password>[API_KEY]</password>"),
        ("- name: DB_PASSWORD\n  value: Hase7!x", "- name: DB_PASSWORD\n  value: [API_KEY]"),
        ('passwords = ["a1b2c3d4e5f6", "x"]', 'passwords = ["[API_KEY]", "x"]'),
        ("newco_live_Ab3dE5gH7jK9mN1pQ3sT", "[API_KEY]"),
        ("la contraseña es Gato#4821", "la contraseña es [API_KEY]"),
        ("密码是 Abc12345!", "密码是 [API_KEY]"),
        ("the password for the db is tr0ub4dor&3", "the password for the db is [API_KEY]"),
        (
            '<add key="ApiSecret" value="aB3dE5gH7jK9mN1pQ3sT"/>',
            '<add key="ApiSecret" value="[API_KEY]"/>',
        ),
        ("redis://:hunter2hunter2@db.example/0", "[REDACTED_URL]"),
        ("Reply from fe80::1677:2a4a: time=2ms", "Reply from [IP]: time=2ms"),
        ("aws configure set api_token abc123DEF456ghi", "aws configure set api_token [API_KEY]"),
        ("tel 030 1234567 or 030 7654321", "tel [PHONE] or [PHONE]"),
        ("tel 4930123456, 1700000000", "tel [PHONE], 1700000000"),
    ],
)
def test_each_category_of_the_specification_gets_its_placeholder(text: str, clean: str) -> None:
    assert scrub(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "card 4111-1111-1111-1112",  # the check digit is wrong
        "ssn 666-12-3456, 000-12-3456, 123-00-4567, 123-45-0000",  # never given out
        "address 300.1.1.1",
        "upgrade to version 1.2.3.4 of the library",
        "at 12:34:56 and std::vector<int>, x[1::2], a::b",
        f"git revert {SHA1} && git push",
        f"sha256:{'ab12' * 16}",
        "meet on 2026-04-26 at 10:00, order 9831635 of 393743",
        "git clone git@github.com:org/repo.git",
        "icon@2x.png and pkg@1.2.3",
        "src/home/index.ts and https://site.com/home/news",
        "token = tokenizer.encode(text)",
        "https://example.com/search?q=keyword&page=2",
        "3.14159265358979 and 1745625600.0",
        "bind 127.0.0.1, 0.0.0.0 and ::1, mask 255.255.255.0",
        "seq=4111111111111111 offset=4000000000000002",
        "my password is required, the token is expired",
        "def login(password: str, api_key: str | None = None) -> Session:",
        "const password = getPassword(request.form.password)",
        "y = W @ x.data and @pytest.mark.slow",
        "a sale at example.com starts now",
        "Привет, это обычный текст без секретов; η μ π",
        "/home/runner/work/repo and /Users/Shared/x",
        "_ZNKSt7__cxx1110moneypunctIwLb0EE8groupingEv",
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----",
        "[EMAIL] [PHONE] [IP] [SSN] [CREDIT_CARD] [AWS_KEY] [PRIVATE_KEY] [API_KEY] [FILE_PATH]",
        "tel 12, 1700000000",
        "he charged her phone 742 / 106 = 7 times",
        "```text\n2 3 4 5 6 7 8 9 10\n```",
        "a portable drive holds 3600-1200=2400 files",
        "are there 14 -credit courses?",
        "curl --password password|ntlm_hash",
        'text[i] in "0123456789"',
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert scrub(text) == text


def test_a_hash_beside_a_word_of_secrets_is_a_secret_even_in_git() -> None:
    assert scrub(f"git config api_key {SHA1}") == "git config api_key [API_KEY]"


def test_a_private_key_without_an_end_is_taken_to_its_last_line() -> None:
    cut = PEM.partition("\n-----END")[0]
    assert scrub(f"{cut}\n\nThanks!") == "[PRIVATE_KEY]\n\nThanks!"


def test_metadata_is_scrubbed_in_keys_and_values_at_any_depth() -> None:
    value = {
        "ann@example.com": [{"path": "/home/ann/x"}, 4111111111111111, 1.5, None, True],
        "bob@example.com": ("text",),
        "api_key": "Zk83jfLq02mXvR7tYw5B",
        "model_name": "qwen3-moe-a3b",
        "timestamp": 1745625600.0,
    }
    assert PIIScrubber().scrub_value(value) == {
        "[EMAIL]": [{"path": "[FILE_PATH]"}, "[CREDIT_CARD]", 1.5, None, True],
        "[EMAIL]#2": ["text"],
        "api_key": "[API_KEY]",
        "model_name": "qwen3-moe-a3b",
        "timestamp": 1745625600.0,
    }


def test_data_too_deep_or_of_a_strange_type_fails_closed() -> None:
    deep: Any = "ann@example.com"
    for _ in range(40):
        deep = [deep]
    for value in (deep, {"when": object()}, b"bytes", list(range(30_000))):
        with pytest.raises(ScrubError) as caught:
            PIIScrubber().scrub_value(value)
        assert "ann" not in str(caught.value)


def test_what_was_replaced_is_counted_by_kind() -> None:
    scrubber = PIIScrubber()
    scrubber.scrub("ann@example.com and bob@example.com at 10.0.0.1")
    assert scrubber.replaced == {"EMAIL": 2, "IP": 1}
    assert scrubber.rules_version == SCRUB_RULES_VERSION


def test_lone_surrogates_and_other_scripts_survive_around_what_is_scrubbed() -> None:
    assert scrub("\ud800 ann@example.com \udfff") == "� [EMAIL] �"
    assert scrub("Ärger mit größe@müller.de für 3 €") == "Ärger mit [EMAIL] für 3 €"


seeds = st.sampled_from(
    [
        "ann@example.com", "+1 555 123 4567", "10.0.0.1", "2001:db8::1", "123-45-6789",
        "4111 1111 1111 1111", "AKIAIOSFODNN7EXAMPLE", "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----", "Bearer abcdef0123456789", "sk-abc123DEF456ghi789",
        SHA1, "/home/ann/x", "https://u:p4ss@h.org/?token=abcdef12", "api_key = ", "password: ",
        "[EMAIL]", "[API_KEY]", "git ",
        "a:1:b:c:", '{"a": "', '"}', "&#64;", "\\n", "::", "://", "@", "%40",
        ".", "-", " ", "\n", "é", "\ud800",
    ]
)  # fmt: skip
mixtures = st.lists(seeds | st.text(max_size=12), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=st.text() | mixtures)
@example("12 3456@a.example.com")
@example("4111 1111 1111 1111 05/27")
def test_scrubbing_twice_changes_nothing(text: str) -> None:
    try:
        once = scrub(text)
    except ScrubError:
        return  # such a record is dropped
    assert scrub(once) == once
    once.encode()


@settings(max_examples=200, deadline=None)
@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_key_is_gone_whatever_stands_around_it(before: str, after: str) -> None:
    secret = "AKIAIOSFODNN7EXAMPLE"
    assert secret not in scrub(f"{before} {secret} {after}")


def test_a_finding_tells_where_and_why_and_never_what() -> None:
    text = "é ann@example.com, key sk-abc123DEF456ghi789jkl"
    assert PIIScrubber().find(text) == [
        Finding(2, 17, Label.EMAIL, "address"),
        Finding(23, 47, Label.API_KEY, "known prefix sk-…"),
    ]


class Known:
    """Values that the owner is known to have."""

    def spans(self, text: bytes) -> Iterator[tuple[int, int]]:
        start = text.find(b"correct horse")
        if start >= 0:
            yield start, start + 13


def test_known_values_are_taken_out_also_in_disguise() -> None:
    scrubber = PIIScrubber(Known())
    assert scrubber.scrub("é the correct horse") == "é the [API_KEY]"
    assert scrubber.scrub("the c\u200borrect%20horse.") == "the [API_KEY]."
    assert [found.reason for found in scrubber.find("the correct horse")] == ["known value"]


@pytest.mark.parametrize(
    "value",
    [
        {"card": 4111111111111111, "to": ["ann@example.com", None]},
        [{"password": "Hase7!x", "n": 1.5}, "10.0.0.1", 5105105105105100],
        {"body": json.dumps({"api_key": "Zk83jfLq02mXvR7tYw5B"})},
    ],
)
def test_a_text_that_is_json_stays_json(value: Any) -> None:
    clean = scrub(json.dumps(value))
    json.loads(clean)
    assert "[" in clean.removeprefix("[")
    for secret in ("4111", "5105", "ann@", "Hase7", "Zk83", "10.0.0.1"):
        assert secret not in clean


def test_more_time_than_a_text_of_its_size_may_take_drops_it() -> None:
    ticking = iter(range(0, 10_000, 4))
    scrubber = PIIScrubber(timer=lambda: float(next(ticking)))
    with pytest.raises(ScrubError, match="time"):
        scrubber.scrub("mail ann@example.com")


class Broken:
    def spans(self, text: bytes) -> Iterable[tuple[int, int]]:
        raise RuntimeError(text.decode())


def test_a_rule_that_fails_drops_the_text_and_says_nothing_of_it() -> None:
    with pytest.raises(ScrubError) as caught:
        PIIScrubber(Broken()).scrub("ann@example.com")
    assert "ann" not in str(caught.value)
    assert caught.value.__cause__ is None
