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
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .wire import Digest, Range

BRANCH: Final = 16  # parts into which a differing range is split
LIST_MAX: Final = 32  # a range of so few items is listed when it differs, not split
TINY: Final = 2  # a part of so few items is listed unasked: that costs as much as to ask
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


def opening(items: Sequence[bytes]) -> Digest:
    """Return the first message of a round."""
    return Digest((_range(items, LOWEST, HIGHEST, listed=len(items) <= LIST_MAX),))


def answer(items: Sequence[bytes], theirs: Digest) -> Answer:
    """Compare a peer's ranges with one's own items.

    items: ascending, no slot twice. Costs one pass over the items that the ranges span.
    """
    slots: list[bytes] = []
    ranges: list[Range] = []
    listed = 0
    for span in theirs.ranges:
        mine = _within(items, span)
        if span.fingerprint == fingerprint(mine):
            continue
        if len(span.items) == 32 * span.count:
            slots += _differing(mine, span.items)
            continue
        for part in _parts(mine, span):
            if len(ranges) < _RANGES_MAX and listed + len(part.items) // 32 <= _ITEMS_MAX:
                ranges.append(part)
                listed += len(part.items) // 32
    return Answer(slots, Digest(tuple(ranges)) if ranges else None)


def fingerprint(items: Sequence[bytes]) -> bytes:
    """Return 16 bytes that two lists share only if they are equal."""
    total = sum(int.from_bytes(item, "big") for item in items) % (1 << 256)
    counted = total.to_bytes(32, "big") + len(items).to_bytes(4, "big")
    return hashlib.sha256(counted).digest()[:16]


def _within(items: Sequence[bytes], span: Range) -> Sequence[bytes]:
    return items[bisect_left(items, span.low) : bisect_right(items, span.high + HIGHEST)]


def _parts(mine: Sequence[bytes], span: Range) -> Iterator[Range]:
    """Cover a span with ranges small enough to list, or of equal size."""
    if len(mine) <= LIST_MAX:
        yield _range(mine, span.low, span.high, listed=True)
        return
    step = -(-len(mine) // BRANCH)
    low = span.low
    for start in range(0, len(mine), step):
        part = mine[start : start + step]
        last = start + step >= len(mine)
        high = span.high if last else _before(mine[start + step][:_SLOT_BYTES])
        yield _range(part, low, high, listed=len(part) <= TINY)
        low = mine[start + step][:_SLOT_BYTES] if not last else low


def _range(items: Sequence[bytes], low: bytes, high: bytes, *, listed: bool) -> Range:
    shown = b"".join(items) if listed else b""
    return Range(low, high, len(items), fingerprint(items), shown)


def _differing(mine: Sequence[bytes], listed: bytes) -> list[bytes]:
    """The slots of items that only one side has, ascending. What a peer lists may be unsorted."""
    theirs = {listed[i : i + 32] for i in range(0, len(listed), 32)}
    return sorted({item[:_SLOT_BYTES] for item in theirs.symmetric_difference(mine)})


def _before(slot: bytes) -> bytes:
    return (int.from_bytes(slot, "big") - 1).to_bytes(_SLOT_BYTES, "big")
