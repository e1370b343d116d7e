"""Long unbroken runs of letters and digits: hexadecimal secrets, keys of the common form, base64.

One scan finds them all; most of what ordinary text has of them, hashes and long names, is told
apart by a few comparisons.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from . import hexes, services
from .drawn import entropy, exemplary, is_drawn, mixed, switches
from .scan import RANK, WORD, Label, Scan, Span

DEPTH_MAX: Final = 3  # of base64 in base64
_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_PRINTABLE: Final = bytes(range(32, 127)) + b"\t\n\r"
# The first digit of four stands for the first six bits of three bytes: those that text begins with.
_FIRST: Final = b"CDIJKLMNOPQRSTUVWXYZabcdefwxyz0123456789"
_RUN_BYTES = 20
_INTEGRITY: Final = (b"sha512-", b"sha384-", b"sha256-")
_OUTSIDE: Final = bytes(chr(byte) not in _LETTERS for byte in range(256))
_WRAPPED = re.compile(
    rb"(?:[A-Za-z0-9+/]{40,80}(?:\r?\n|\\n))+[A-Za-z0-9+/]{1,80}(?![A-Za-z0-9+/])"
)
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{40,}")
# A short word, a mark, and twenty letters and digits in no order: what most issuers have agreed on.
_PREFIX = WORD | {45}
_NO_KEY = re.compile(
    rb"(?i)^(?:sha\d*|md5|blake\w*|crc\d*|uuid|guid|id|img|image|build|commit|rev|chunk|hash"
    rb"|data|asset|css|js|v\d+|x86|i\d86|amd64|arm64|win\d*|utf\d*|base\d*|index|main"
    rb"|vendor|runtime|h1|git|integrity|refs?)(?:[_-]|$)"
)
_ASSIGNS = (b"=", b":", b'"', b"'", b"`", b" ")


def find(
    scan: Scan, rules: Callable[[Scan], Iterable[Span]], depth: int = DEPTH_MAX
) -> Iterator[Span]:
    """Yield the runs that are secrets, and those in whose text the rules find something."""
    text, done = scan.text, 0
    for start, end in _long(text):
        run = text[start:end]
        if text.startswith(_INTEGRITY, start - 7) and run[:24:4].translate(None, _FIRST):
            continue  # of which a lock file holds thousands; and it hides no text
        if end - start >= 40:
            if _HEXADECIMAL.fullmatch(run):
                if hexes.is_secret(text, start, end):
                    yield Span(start, end, Label.API_KEY, "long run of hexadecimal digits")
                continue
            for found in _HEXADECIMAL.finditer(run):
                first, last = start + found.start(), start + found.end()
                if hexes.is_secret(text, first, last):
                    yield Span(first, last, Label.API_KEY, "long run of hexadecimal digits")
        if run[:2] == b"0x" and 62 <= end - start <= 70 and is_drawn(run):
            yield Span(start, end, Label.API_KEY, "number as long as a key")
        elif text[start - 1 : start] in (b"_", b"-") and (span := _prefixed(scan, start, end)):
            yield span
        elif (
            end - start <= 64 and text[start - 1 : start] in _ASSIGNS and _serves(text, start, run)
        ):
            yield Span(start, end, Label.API_KEY, "value of a service's name")
        if start < done:
            continue
        if (
            end - start >= 40
            and text[end : end + 1] in b"\r\n\\"
            and (whole := _WRAPPED.match(text, start))
        ):
            done = end = whole.end()
        if span := _encoded(scan, start, end, rules, depth):
            yield span


def _long(text: bytes) -> list[tuple[int, int]]:
    """Where runs of at least `_RUN_BYTES` stand. RE2 needs four times as long for it."""
    marks = np.frombuffer(b"\1" + text.translate(_OUTSIDE) + b"\1", np.bool_)
    outside = np.flatnonzero(marks)
    at = np.flatnonzero(np.diff(outside) > _RUN_BYTES)
    return list(zip(outside[at].tolist(), (outside[at + 1] - 1).tolist(), strict=True))


def _serves(text: bytes, start: int, run: bytes) -> bool:
    """True for a drawn value after the name of a service: `twilio = "…"`."""
    if _HEXADECIMAL.match(run) or not is_drawn(run):
        return False
    return services.named(text, start)


def _prefixed(scan: Scan, start: int, end: int) -> Span | None:
    text = scan.text
    first = scan.back(start - 1, _PREFIX, 24)
    if first == start - 1 or _NO_KEY.match(text[first:start]):
        return None  # first of all `sha512-`, of which a lock file holds thousands
    if text[first - 1 : first] in (b"/", b".", b"=", b"+") or text[end : end + 1] in (b"/", b"."):
        return None
    body = text[start : min(end, start + 256)]
    if b"/" in body or b"+" in body or not (mixed(body) or len(body) >= 24):
        return None
    turns = switches(body)
    if turns < 3 or (turns < 6 and not mixed(body)) or entropy(body) < 3.4 or exemplary(body):
        return None
    word = scan.back(start, WORD, 200)
    if text[word : word + 2] == b"_Z":
        return None  # a mangled name of C++
    return Span(first, end, Label.API_KEY, "form of a key with a prefix")


def _encoded(
    scan: Scan, start: int, end: int, rules: Callable[[Scan], Iterable[Span]], depth: int
) -> Span | None:
    hidden = _decoded(scan.text[start:end])
    if hidden is None:
        return None
    inner = scan.within(hidden)
    spans = list(rules(inner))
    if depth > 1:
        spans += find(inner, rules, depth - 1)
    if not spans:
        return None
    first = min(spans, key=lambda span: RANK[span.label])
    while scan.text[end : end + 1] == b"=":
        end += 1
    return Span(start, end, first.label, f"base64 of: {first.reason}")


def _decoded(run: bytes) -> bytes | None:
    """The text in a run, or None if it is none."""
    if run[:24:4].translate(None, _FIRST):
        return None  # the common case: a hash or a name
    if b"\n" in run or b"\\" in run:
        run = run.replace(b"\\n", b"").replace(b"\r", b"").replace(b"\n", b"")
    if len(run) % 4 == 1:
        run = run[:-1]
    try:
        text = binascii.a2b_base64(run + b"=" * (-len(run) % 4))
    except binascii.Error:
        return None
    if text.isascii():
        return text if not text.translate(None, _PRINTABLE) else None
    try:
        readable = text.decode()
    except UnicodeDecodeError:
        return None
    return text if readable.replace("\n", "").isprintable() else None
