"""Finding what two replicas hold differently, for a price that grows with the difference.

Each replica has a sorted list of 32-byte items, one for each origin: 16 bytes that say which (its
slot), 16 that hash all that is held of it. Ranges of it are compared by fingerprint; where these
differ the range is split, and when few items are left they are listed. The answer to a message
depends on that message and the list alone, so nothing is remembered between messages, and a lost
one costs only its round. (Range-based set reconciliation, arXiv 2212.13567; the fingerprint is
negentropy's: a sum, so that it could be kept in a tree, then a hash, so that it cannot be steered.)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .wire import Digest, Range

BRANCH: Final = 16  # parts into which a differing range is split
LIST_MAX: Final = 32  # a range of so few items is listed when it differs, not split
LOWEST: Final = bytes(16)
HIGHEST: Final = b"\xff" * 16
_SLOT_BYTES: Final = 16
_RANGES_MAX: Final = 256  # as `Digest` allows
_ITEMS_MAX: Final = 1280  # listed in one message: 40 KiB, and 256 ranges are 16 KiB


@dataclass(frozen=True, slots=True)
class Answer:
    """What a message shows: slots held differently, and what to send back to find more."""

    slots: list[bytes]
    reply: Digest | None


class Items:
    """The sorted items, with the sum of all and of those that share their first byte.

    To compare all of it costs nothing that grows with it; a range costs the sums of the first bytes
    that it spans and the items at its two ends, a few dozen of 10,000.
    """

    def __init__(self, items: Iterable[bytes] = ()) -> None:
        self._items = sorted(items)
        self._sums = [0] * 256
        self._total = 0
        for item in self._items:
            self._count(item, 1)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: bytes) -> None:
        insort(self._items, item)
        self._count(item, 1)

    def remove(self, item: bytes) -> None:
        del self._items[bisect_left(self._items, item)]
        self._count(item, -1)

    def between(self, low: bytes, high: bytes) -> list[bytes]:
        """The items with `low ≤ slot ≤ high`."""
        return self._items[bisect_left(self._items, low) : self._end(high)]

    def fingerprint(self, low: bytes, high: bytes) -> bytes:
        """Return 16 bytes that two lists share only if they are equal there."""
        if (low, high) == (LOWEST, HIGHEST):
            return fingerprint_of(self._total, len(self._items))
        start, end = bisect_left(self._items, low), self._end(high)
        return fingerprint_of(self._sum(start, end, low[0], high[0]), end - start)

    def _end(self, high: bytes) -> int:
        return bisect_right(self._items, high + HIGHEST)

    def _sum(self, start: int, end: int, first: int, last: int) -> int:
        if end - start <= LIST_MAX or last - first < 2:
            return _sum(self._items[start:end])
        head_end = bisect_left(self._items, bytes([first + 1]))
        tail_start = bisect_left(self._items, bytes([last]))
        ends = _sum(self._items[start:head_end]) + _sum(self._items[tail_start:end])
        return ends + sum(self._sums[first + 1 : last])

    def _count(self, item: bytes, sign: int) -> None:
        value = sign * int.from_bytes(item, "big")
        self._sums[item[0]] += value
        self._total += value


def opening(items: Items) -> Digest:
    """Return the first message of a round."""
    return Digest((_range(items, LOWEST, HIGHEST, listed=len(items) <= LIST_MAX),))


def answer(items: Items, theirs: Digest) -> Answer:
    """Compare a peer's ranges with one's own items."""
    slots: list[bytes] = []
    ranges: list[Range] = []
    listed = 0
    for span in theirs.ranges:
        if span.fingerprint == items.fingerprint(span.low, span.high):
            continue
        mine = items.between(span.low, span.high)
        if len(span.items) == 32 * span.count:
            slots += _differing(mine, span.items)
            continue
        for part in _parts(items, mine, span):
            if len(ranges) < _RANGES_MAX and listed + len(part.items) // 32 <= _ITEMS_MAX:
                ranges.append(part)
                listed += len(part.items) // 32
    return Answer(slots, Digest(tuple(ranges)) if ranges else None)


def fingerprint_of(total: int, count: int) -> bytes:
    """Return the fingerprint of items by their sum and their number."""
    counted = (total % (1 << 256)).to_bytes(32, "big") + count.to_bytes(4, "big")
    return hashlib.sha256(counted).digest()[:16]


def _sum(items: Sequence[bytes]) -> int:
    return sum(int.from_bytes(item, "big") for item in items)


def _parts(items: Items, mine: Sequence[bytes], span: Range) -> Iterator[Range]:
    """Cover a span with ranges small enough to list, or of equal size."""
    if len(mine) <= LIST_MAX:
        yield _range(items, span.low, span.high, listed=True)
        return
    step = -(-len(mine) // BRANCH)
    low = span.low
    for start in range(0, len(mine), step):
        last = start + step >= len(mine)
        high = span.high if last else _before(mine[start + step][:_SLOT_BYTES])
        yield _range(items, low, high, listed=False)
        low = mine[start + step][:_SLOT_BYTES] if not last else low


def _range(items: Items, low: bytes, high: bytes, *, listed: bool) -> Range:
    within = items.between(low, high)
    shown = b"".join(within) if listed else b""
    return Range(low, high, len(within), items.fingerprint(low, high), shown)


def _differing(mine: Sequence[bytes], listed: bytes) -> list[bytes]:
    """The slots of items that only one side has, ascending. What a peer lists may be unsorted."""
    theirs = {listed[i : i + 32] for i in range(0, len(listed), 32)}
    return sorted({item[:_SLOT_BYTES] for item in theirs.symmetric_difference(mine)})


def _before(slot: bytes) -> bytes:
    return (int.from_bytes(slot, "big") - 1).to_bytes(_SLOT_BYTES, "big")
