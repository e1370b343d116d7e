"""IPv6 addresses: whole, shortened, in brackets, with a zone, a port, or an IPv4 address inside."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Final

from .scan import HEX, WORD, Label, Scan, Span, compiled

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


def find(scan: Scan) -> Iterator[Span]:
    """Yield every address; no time of day, no slice and no scope of a name such as `a::b`."""
    text = scan.text
    if b":" not in text:
        return
    for match in scan.matches(_SHAPED):
        start, end = match.span()
        if scan.joined_before(start):
            if text[start : start + 1] in b":" or text[start - 1] not in HEX:
                continue
            continue
        if text[start - 1 : start] == b":" or (
            text[end : end + 1] == b":" and text[end + 1 : end + 2] != b" "
        ):
            continue
        if scan.joined_after(end) or not _is_address(text[start:end], scan, start, end):
            continue
        tail = _TAIL.match(text, end)
        yield Span(start, tail.end() if tail else end, Label.IP, "IPv6 address")


def _is_address(candidate: bytes, scan: Scan, start: int, end: int) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, candidate.decode("ascii"))
    except OSError:
        return False
    before = scan.text[max(0, start - 2) : start]
    if before[-1:] == b"[" and before[:1] in _INDEXED and len(before) == 2:
        return False  # `a[1::2]`
    groups = [group for group in candidate.split(b":") if group]
    tail = _TAIL.match(scan.text, end)
    marked = (scan.text[start - 1 : start] == b"[" and scan.text[end : end + 1] == b"]") or (
        tail is not None and tail.end() > end
    )
    if candidate in _LOOPBACK or (len(groups) <= 1 and len(candidate) < 6):
        return False  # tells nothing of anybody
    if len(groups) <= 2 and max(map(len, groups), default=0) <= 2:
        return marked or _in_context(scan.text, start, end)  # `a[1::2]`
    if _LETTERS.match(candidate):
        return marked or len(groups) > 2
    return len(groups) > 3 or any(byte in b"0123456789" for byte in candidate)


_CONTEXT = compiled(
    r"(?i)(?:\bipv?6?\b|addr|route|peer|host|server|listen|inet6|AAAA|ping6?|gateway|dns"
    r"|client|bind|://\[)[^\n]{0,24}$"
)


def _in_context(text: bytes, start: int, end: int) -> bool:
    if (
        text[end : end + 1] in (b"]",)
        and text[start - 1 : start] == b"["
        and text[start - 2 : start - 1] in _INDEXED
    ):
        return False
    return _CONTEXT.search(text[max(0, start - 40) : start]) is not None


_INDEXED = tuple(bytes([byte]) for byte in WORD | frozenset(b")]"))
