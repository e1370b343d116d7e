"""Private keys: PEM, OpenSSH, PGP, PuTTY, XML and JWK; whole, cut, quoted or on one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .scan import Label, Scan, Span, compiled

BYTES_MAX = 32_768  # of a private key, from its first line to its last
_CUT_LINES_MAX = 400

_BEGIN = compiled(r"-{2,6} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{2,6}")
_END = compiled(r"-{2,6} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{2,6}")
_BODY_LINE = (
    rb"(?:\s|\\{1,2}[nrt]|[\"'+,>|\\#*;/]|&#1[03];|<br ?/?>|\d{1,5}(?:[:|\t]| {1,2}))*"
    rb"(?:[A-Za-z0-9+/=]{16,}|[A-Z][\w-]+: [^\n]*)"
)
# What follows a first line whose last is missing. Both repetitions eat all that they have read.
_REST = re.compile(
    rb"(?:"
    + _BODY_LINE
    + rb")*(?:(?:\s|\\{1,2}[nr]|[\"'+,>|\\])+[A-Za-z0-9+/=]{1,64}(?=\s|$|[\"'\\]))?(?:\s{1,4}$)?"
)
_BODY_LINE_ALONE = re.compile(rb"[A-Za-z0-9+/=]{1,128}")
_BODY = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\\")
_PUTTY = compiled(r"PuTTY-User-Key-File-\d:")
_PUTTY_END = compiled(r"Private-MAC: [0-9a-fA-F]{40,64}|Private-Hash: [0-9a-fA-F]{40}")
# The first bytes of a key's own encoding, for a body that has lost its first line.
_BARE = compiled(
    r"(?:MII[A-Za-z0-9+/]{3}IBA[ADQ]|MII[A-Za-z0-9+/]{3}(?:IBADAN|AgEAAo|AgEAMA)"
    r"|MH[cQ]CAQEEI|MI(?:GH|HuA|G2)AgEAM[A-Za-z0-9+/]|MC4CAQAwBQYDK2Vw|b3BlbnNzaC1rZXktdjE"
    r"|LS0tLS1CRUdJTi[A-Za-z0-9+/]{8,60}UFJJVkFURSBLRV)"
)
_BARE_REST = re.compile(
    rb"(?:(?:\\{1,2}[nr]|\s|[\"'+>"
    rb"|\\]){0,8}[A-Za-z0-9+/=]{16,})*(?:\s{0,4}[A-Za-z0-9+/=]{2,63}=)?"
)
_XML = compiled(r"<(?:D|P|Q|DP|DQ|InverseQ)>\s{0,4}[A-Za-z0-9+/=]{40,}")
_JWK = compiled(r"\"(?:d|p|q|dp|dq|qi|k)\"\s{0,3}:\s{0,3}\"([A-Za-z0-9_-]{32,})\"")
_JWK_NEAR = re.compile(rb"\"kty\"\s*:")


SHAPES: Final = (compiled(r"PRIVATE KEY|PuTTY-User-Key-File|DQ>|<D>|\"kty\""), _BARE)


def find(scan: Scan) -> Iterator[Span]:
    """Yield every private key."""
    text = scan.text
    yield from _armoured(scan)
    yield from _putty(scan)
    for match in scan.matches(_XML):
        yield scan.span(match, Label.PRIVATE_KEY, "element of an RSA key")
    for match in scan.matches(_JWK):
        start, end = match.span(1)
        if _JWK_NEAR.search(text, max(0, start - 2048), end + 2048):
            yield Span(start, end, Label.PRIVATE_KEY, "member of a JSON web key")
    done = 0
    for match in scan.matches(_BARE):
        start, end = match.span()
        if start >= done and not scan.joined_before(start):
            rest = _BARE_REST.match(text, end, end + BYTES_MAX)
            done = rest.end() if rest else end
            if done - start >= 40:
                yield Span(start, done, Label.PRIVATE_KEY, "encoding of a private key")


def _armoured(scan: Scan) -> Iterator[Span]:
    text = scan.text
    ends = [match.span() for match in scan.matches(_END)]
    after = 0  # index of the first end that is not yet passed
    done = 0
    for match in scan.matches(_BEGIN):
        start, end = match.span()
        while after < len(ends) and ends[after][0] < end:
            after += 1
        if start < done:
            continue
        if after < len(ends) and ends[after][0] - end <= BYTES_MAX:
            done = ends[after][1]
        else:
            rest = _REST.match(text, end, end + BYTES_MAX)
            done = rest.end() if rest else end
        yield Span(start, done, Label.PRIVATE_KEY, "armour of a private key")
    yield from _tails(scan, ends)


def _tails(scan: Scan, ends: list[tuple[int, int]]) -> Iterator[Span]:
    """A key that has lost its first line: what stands before the last one."""
    text, floor = scan.text, 0
    for start, end in ends:
        first = _body_start(text, max(floor, start - BYTES_MAX), start)
        if first == start:  # all on one line, its line ends escaped
            first = max(floor, scan.back(start, _BODY, BYTES_MAX))
        yield Span(first, end, Label.PRIVATE_KEY, "end of a private key")
        floor = end


def _body_start(text: bytes, low: int, end: int) -> int:
    """Where the lines of base64 that end at `end` begin, at `low` or after it."""
    start = end
    for _ in range(_CUT_LINES_MAX):
        line = text.rfind(b"\n", low, max(low, start - 1)) + 1 or low
        words = text[line:start].strip(b" \t\r\n\"'\\,>|#*+")
        if line <= low and not words:
            break
        if start == end and not words:
            start = line
            continue
        last = start >= end - 3  # only the line before the end may be short
        if not _BODY_LINE_ALONE.fullmatch(words) or (len(words) < 16 and not last):
            break
        start = line
        if line <= low:
            break
    return start


def _putty(scan: Scan) -> Iterator[Span]:
    ends = [match.end() for match in scan.matches(_PUTTY_END)]
    after = done = 0
    for match in scan.matches(_PUTTY):
        start, end = match.span()
        if start < done:
            continue
        while after < len(ends) and ends[after] < end:
            after += 1
        if after < len(ends) and ends[after] - end <= BYTES_MAX:
            end = ends[after]
        else:
            rest = _REST.match(scan.text, end, end + BYTES_MAX)
            end = rest.end() if rest else end
        done = end
        yield Span(start, end, Label.PRIVATE_KEY, "file of a PuTTY key")
