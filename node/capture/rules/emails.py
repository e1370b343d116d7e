"""E-mail addresses: plain, quoted, international, and spelled `name at domain dot com`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .scan import WORD, Label, Scan, Span, compiled
from .tlds import TLDS

_LOCAL = WORD | frozenset(b".%+'-!#$&*/=?^{}|~") | frozenset(range(0x80, 0x100))
_LOCAL_BYTES_MAX = 254  # the longest of RFC 5321
_DOMAIN = (
    r"(?:[A-Za-z0-9\x80-\xff_](?:[A-Za-z0-9\x80-\xff_-]{0,62})\.){1,8}(?:xn--[a-z0-9-]{2,59}"
    r"|[A-Za-z\x80-\xff]{2,24})"
)
_SIGN = compiled(
    r"[A-Za-z0-9_.+\"'\x80-\xff-]@(?:"
    + _DOMAIN
    + r"|\[?\d{1,3}(?:\.\d{1,3}){3}\]?|\[IPv6:[0-9A-Fa-f:.]{2,45}\])"
)
_TRIM = b".'%+-!#$&*/=?^{}|~"
_QUOTED_LOCAL = re.compile(rb"\"(?:[^\"\\\n]|\\.){1,64}\"$")
# Names that networks without a registry use for themselves.
_PRIVATE = frozenset(
    [
        "internal",
        "local",
        "lan",
        "corp",
        "home",
        "intranet",
        "localhost",
        "localdomain",
        "private",
        "test",
        "example",
        "invalid",
        "onion",
    ]
)
_NOBODY = frozenset([b"git", b"hg", b"svn"])
_SPELLED = compiled(
    r"(?i)([A-Za-z0-9_.+'-]{1,64})(\s{0,2}(?:\[\s?at\s?\]|\(\s?at\s?\)|\{\s?at\s?\}"
    r"|<\s?at\s?>|\[\s?@\s?\]|\(\s?@\s?\)|_at_|\[arroba\]|\(arroba\))\s{0,2}| at | @ )"
    r"((?:[A-Za-z0-9-]{1,63}(?:\s{0,2}(?:\[\s?dot\s?\]|\(\s?dot\s?\)|\{\s?dot\s?\}"
    r"|<\s?dot\s?>|\[\.\]|\(\.\)|_dot_|\[punto\]|\(punto\)|\[punkt\]"
    r"|\(punkt\))\s{0,2}| dot | \. |\.)){1,5})([A-Za-z]{2,24})"
)
# A smaller automaton that passes over what has none.
_SPELLED_SHAPE = compiled(
    r"(?i)[A-Za-z0-9_+'-](?:\s*[\[({<]\s?(?:at|@|arroba)\s?[\])}>]\s*| at |_at_|\s@\s)[A-Za-z0-9-]+"
    r"(?:\s*[\[({<]\s?(?:dot|\.|punto|punkt)\s?[\])}>]\s*| dot |_dot_| \. |\.)[A-Za-z0-9]"
)
SHAPES: Final = (_SPELLED_SHAPE,)
_PLAIN_AT = re.compile(rb"(?i)^ at $|^\s@\s$")
_PLAIN_DOT = re.compile(rb"(?i) dot |[\[({<]")


def find(scan: Scan) -> Iterator[Span]:
    """Yield every address whose top-level domain exists."""
    if b"@" in scan.text:
        for match in scan.matches(_SIGN):
            if span := _judged(scan, match.start() + 1, match.end()):
                yield span


def spelled(scan: Scan) -> Iterator[Span]:
    """Yield addresses in words: `ann [at] example [dot] com`."""
    for match in scan.matches(_SPELLED):
        at, domain = match.group(2), match.group(3)
        if _PLAIN_AT.match(at) and not _PLAIN_DOT.search(domain) and at.strip() != b"@":
            continue  # "look at example.com"
        if (
            _known(match.group(4))
            and match.group(1) not in (b"W", b"x", b"X")
            and not scan.joined_after(match.end())
        ):
            yield scan.span(match, Label.EMAIL, "spelled address")


def _judged(scan: Scan, sign: int, end: int) -> Span | None:
    """The candidate begins at the sign: what stands before it is read backwards."""
    text = scan.text
    suffix = text[sign:end].rpartition(b".")[2]
    numeric = suffix[-1:] in b"]0123456789"
    while not numeric and not _known(suffix):
        end -= len(suffix) + 1
        suffix = text[sign:end].rpartition(b".")[2]
        if b"." not in text[sign + 1 : end]:
            return None
    if text[sign - 1 : sign] == b'"':
        quoted = _QUOTED_LOCAL.search(text, max(0, sign - 68), sign)
        if quoted is None:
            return None
        return Span(quoted.start(), end, Label.EMAIL, "address")
    first = scan.back(sign, _LOCAL, _LOCAL_BYTES_MAX)
    local = text[first:sign].lstrip(_TRIM)
    for mark in (b"=", b"/", b"?", b"&", b"|", b"{", b"}", b"*", b"$"):
        local = local.rpartition(mark)[2] if mark in local else local
    if not local or local in _NOBODY or scan.joined_after(end, WORD):
        return None
    return Span(sign - len(local), end, Label.EMAIL, "address")


def _known(suffix: bytes) -> bool:
    """True for a top-level domain of the root zone; one in another script is taken as it is."""
    if not suffix.isascii():
        return True
    name = suffix.lower().decode("ascii")
    return name in TLDS or name in _PRIVATE or name.startswith("xn--")
