"""IPv6 addresses: whole, shortened, in brackets, with a zone, a port, or an IPv4 address inside."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from .scan import WORD, Label, Scan, Span, compiled

_H = r"[0-9A-Fa-f]{1,4}"
_QUAD = r"\d{1,3}(?:\.\d{1,3}){3}"
_SHAPED = compiled(
    rf"(?:{_H}:){{6}}(?:{_QUAD}|{_H}:{_H})|(?:{_H}:){{1,7}}:(?:{_H}:){{0,6}}(?:{_QUAD}"
    rf"|{_H})?|::(?:{_H}:){{0,6}}(?:{_QUAD}|{_H})"
)
SHAPES: Final = (_SHAPED,)
_TAIL = re.compile(rb"(?:%(?:25)?[A-Za-z0-9_.-]{1,16})?(?:/\d{1,3}(?!\d))?")
_LOOPBACK = (b"::1", b"::")
_LETTERS = re.compile(rb"^[a-fA-F]+::[a-fA-F]*$")

_NO_DIGITS = b"abcdefABCDEF:."
_CONTEXT = compiled(
    r"(?i)(?:\bipv?6?\b|addr|route|peer|host|server|listen|inet6|AAAA|ping6?|gateway|dns"
    r"|client|bind|://\[)[^\n]{0,24}$"
)


_INDEXED = frozenset(bytes([byte]) for byte in WORD | frozenset(b")]"))


def find(scan: Scan) -> Iterator[Span]:
    """Yield every address; no time of day, no slice and no scope of a name such as `a::b`."""
    text = scan.text
    for match in scan.matches(_SHAPED):
        start, end = match.span()
        if text[end - 1] == 58 and text[end - 2] != 58:
            end -= 1  # the colon of the sentence: `Reply from fe80::1: time=2ms`
        if scan.joined(start, end) or text[start - 1 : start] == b":":
            continue
        if text[end : end + 1] == b":" and text[end + 1 : end + 2] != b" ":
            continue
        if _is_address(text, start, end):
            if text[end : end + 1] in (b"%", b"/") and (tail := _TAIL.match(text, end)):
                end = tail.end()
            yield Span(start, end, Label.IP, "IPv6 address")


@lru_cache(maxsize=1024)
def _parses(candidate: bytes) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, candidate.decode("ascii"))
    except OSError:
        return False
    return True


def _is_address(text: bytes, start: int, end: int) -> bool:
    candidate = text[start:end]
    if not _parses(candidate):
        return False
    if text[start - 1 : start] == b"[" and text[start - 2 : start - 1] in _INDEXED:
        return False  # `a[1::2]`
    if len(candidate) > 6 and candidate.translate(None, _NO_DIGITS):
        return True
    groups = [group for group in candidate.split(b":") if group]
    if candidate in _LOOPBACK or (len(groups) <= 1 and len(candidate) < 6):
        return False  # tells nothing of anybody
    tail = _TAIL.match(text, end)
    bracketed = text[start - 1 : start] == b"[" and text[end : end + 1] == b"]"
    marked = bracketed or (tail is not None and tail.end() > end)
    if _LETTERS.match(candidate):
        return marked or len(groups) > 2
    if len(groups) <= 2 and max(map(len, groups), default=0) <= 2:
        return marked or _CONTEXT.search(text[max(0, start - 40) : start]) is not None
    return len(groups) > 3 or bool(candidate.translate(None, _NO_DIGITS))
