"""One text under examination, and the words in which findings are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from operator import itemgetter
from typing import Any, Final, NamedTuple

import re2

_TICK_CANDIDATES = 512  # between two looks at the clock


class Label(StrEnum):
    """What a span holds; the value is the specification's placeholder without its brackets.

    In the order of what stands where several meet.
    """

    PRIVATE_KEY = "PRIVATE_KEY"
    REDACTED_URL = "REDACTED_URL"
    AWS_KEY = "AWS_KEY"
    API_KEY = "API_KEY"
    EMAIL = "EMAIL"
    CREDIT_CARD = "CREDIT_CARD"
    SSN = "SSN"
    PHONE = "PHONE"
    IP = "IP"
    FILE_PATH = "FILE_PATH"


RANK: Final = {label: rank for rank, label in enumerate(Label)}

WORD: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
ALNUM: Final = WORD - {ord("_")}


class Span(NamedTuple):
    """Bytes of a text that must go, and why; `reason` never holds any of them."""

    start: int
    end: int
    label: Label
    reason: str


class Scan:
    """A text as bytes, and a clock that is looked at now and then."""

    __slots__ = ("_tick", "text")

    def __init__(self, text: bytes, tick: Callable[[], None]) -> None:
        self.text = text
        self._tick = tick

    def within(self, text: bytes) -> Scan:
        """Another text, such as a decoded one, on the same clock."""
        return Scan(text, self._tick)

    def matches(self, pattern: Pattern) -> Iterator[Found]:
        """The matches of an RE2 pattern, from left to right."""
        self._tick()
        return pattern.finditer(self.text, self._tick)

    def span(self, match: Found, label: Label, reason: str, group: int = 0) -> Span:
        """The span of a match, or of one of its groups."""
        start, end = match.span(group)
        return Span(start, end, label, reason)

    def has(self, pattern: Pattern) -> bool:
        """True if an RE2 pattern matches anywhere: one scan, and no candidate is looked at."""
        return pattern.search(self.text) is not None

    def joined(self, start: int, end: int, letters: frozenset[int] = WORD) -> bool:
        """True if a word goes on before or after the span."""
        return self.joined_before(start, letters) or self.joined_after(end, letters)

    def joined_before(self, start: int, letters: frozenset[int] = WORD) -> bool:
        r"""True if a word goes on before `start`. The n of an escaped line end, `\n`, is none."""
        text = self.text
        if start <= 0 or text[start - 1] not in letters:
            return False
        return not (text[start - 1] in b"nrt" and start > 1 and text[start - 2] == 92)

    def joined_after(self, end: int, letters: frozenset[int] = WORD) -> bool:
        """True if a word goes on at `end`."""
        return end < len(self.text) and self.text[end] in letters

    def back(self, start: int, allowed: frozenset[int], most: int) -> int:
        """Where the run of allowed bytes that ends at `start` begins, at most `most` before."""
        low = max(0, start - most)
        text = self.text
        while start > low and text[start - 1] in allowed:
            start -= 1
        return start


Rule = Callable[[Scan], Iterable[Span]]


class Found:
    """One match: what the rules ask of it, and no more."""

    __slots__ = ("_spans", "_text")

    def __init__(self, text: bytes, spans: list[tuple[int, int]]) -> None:
        self._text = text
        self._spans = spans

    def span(self, group: int = 0) -> tuple[int, int]:
        """(-1, -1) for a group that took no part."""
        return self._spans[group]

    def start(self, group: int = 0) -> int:
        return self._spans[group][0]

    def end(self, group: int = 0) -> int:
        return self._spans[group][1]

    def group(self, group: int = 0) -> bytes:
        start, end = self._spans[group]
        return self._text[start:end] if start >= 0 else b""

    __getitem__ = group


class Pattern:
    """An RE2 pattern over bytes.

    It calls the engine directly: what the module `re2` puts around each call, for offsets in
    characters, costs as much as the search of a short text.
    """

    def __init__(self, pattern: bytes, *, capture: bool = True, utf8: bool = False) -> None:
        """utf8: characters are matched; otherwise single bytes, by a smaller automaton."""
        options = re2.Options()
        options.max_mem = 64 << 20
        if not utf8:
            options.encoding = re2.Options.Encoding.LATIN1
        options.never_capture = not capture
        self.pattern = pattern
        self._match = re2.compile(pattern, options)._regexp.Match

    def search(self, text: bytes, start: int = 0, end: int | None = None) -> Found | None:
        return self._first(_UNANCHORED, text, start, end)

    def match(self, text: bytes, start: int = 0, end: int | None = None) -> Found | None:
        return self._first(_ANCHOR_START, text, start, end)

    def fullmatch(self, text: bytes, start: int = 0, end: int | None = None) -> Found | None:
        return self._first(_ANCHOR_BOTH, text, start, end)

    def finditer(self, text: bytes, tick: Callable[[], None] = lambda: None) -> Iterator[Found]:
        """The matches from left to right; after an empty one it goes on at the next byte."""
        match, at, end, count = self._match, 0, len(text), 0
        while at <= end:
            spans = match(_UNANCHORED, text, at, end)
            start, stop = spans[0]
            if start < 0:
                return
            count += 1
            if not count % _TICK_CANDIDATES:
                tick()
            yield Found(text, spans)
            at = stop if stop > start else stop + 1

    def _first(self, anchor: Any, text: bytes, start: int, end: int | None) -> Found | None:
        size = len(text)
        last = size if end is None or end > size else end
        if start > last:
            return None
        spans = self._match(anchor, text, start, last)
        return Found(text, spans) if spans[0][0] >= 0 else None


_UNANCHORED: Final = re2._re2.RE2.Anchor.UNANCHORED
_ANCHOR_START: Final = re2._re2.RE2.Anchor.ANCHOR_START
_ANCHOR_BOTH: Final = re2._re2.RE2.Anchor.ANCHOR_BOTH


def compiled(pattern: str) -> Pattern:
    """A pattern over single bytes."""
    return Pattern(pattern.encode("latin-1"))


def any_of(*patterns: Pattern) -> Pattern:
    """One pattern for what any of them matches, to pass over all of them in a single scan.

    Only for those whose union stays a small automaton: measure before adding one.
    """
    return Pattern(b"|".join(pattern.pattern for pattern in patterns), capture=False)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The union of the spans, in order; where several meet, the label that comes first stands."""
    union: list[Span] = []
    for span in sorted(spans, key=itemgetter(0)):  # of equals, the first found
        if union and span.start < union[-1].end:
            last = union[-1]
            first = min(last, span, key=lambda one: RANK[one.label])
            union[-1] = Span(last.start, max(last.end, span.end), first.label, first.reason)
        else:
            union.append(span)
    return union


def replaced(text: bytes, spans: list[Span]) -> bytes:
    """The text with each of the merged spans as its placeholder."""
    pieces: list[bytes] = []
    done = 0
    for span in spans:
        end = span.end
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end += 1  # never cut a character in two
        pieces += (text[done : span.start], b"[%s]" % span.label.encode())
        done = end
    pieces.append(text[done:])
    return b"".join(pieces)
