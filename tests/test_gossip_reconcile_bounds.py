"""The bounds of a round of reconciliation, each at its edge."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from random import Random

import pytest
from gossip_kit import seed
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.reconcile import HIGHEST, LIST_MAX, LOWEST, Items, answer, opening
from gossip.wire import Digest, Range


def slots(count: int) -> list[bytes]:
    """Items whose slots are evenly spread."""
    step = (1 << 128) // max(count, 1)
    return [(n * step).to_bytes(16, "big") + seed(n)[:16] for n in range(count)]


def other(span: tuple[bytes, bytes], count: int = 1_000) -> Range:
    """A range of a peer who holds something else there, and lists nothing."""
    return Range(*span, count, bytes(16), b"")


def naive(items: list[bytes], low: bytes, high: bytes) -> bytes:
    within = [item for item in items if low <= item[:16] <= high]
    total = sum(int.from_bytes(item, "big") for item in within) % (1 << 256)
    counted = total.to_bytes(32, "big") + len(within).to_bytes(4, "big")
    return hashlib.sha256(counted).digest()[:16]


@pytest.mark.parametrize(("count", "listed"), [(0, True), (32, True), (33, False)])
def test_a_round_opens_with_a_list_of_at_most_32(count: int, listed: bool) -> None:
    [whole] = opening(Items(slots(count))).ranges
    assert (whole.low, whole.high, whole.count) == (LOWEST, HIGHEST, count)
    assert whole.items == (b"".join(slots(count)) if listed else b"")


@pytest.mark.parametrize(("count", "parts"), [(31, 1), (32, 1), (33, 11), (48, 16), (400, 16)])
def test_a_range_that_differs_is_listed_up_to_32_and_split_beyond(count: int, parts: int) -> None:
    items = slots(count)
    reply = answer(Items(items), Digest((other((LOWEST, HIGHEST)),))).reply
    assert reply is not None
    assert len(reply.ranges) == parts
    assert sum(part.count for part in reply.ranges) == count
    assert (reply.ranges[0].low, reply.ranges[-1].high) == (LOWEST, HIGHEST)
    assert [bool(part.items) for part in reply.ranges] == [count <= LIST_MAX] * parts
    for before, after in pairwise(reply.ranges):
        assert int.from_bytes(before.high, "big") + 1 == int.from_bytes(after.low, "big")
        assert after.low in [item[:16] for item in items]


@pytest.mark.parametrize("found", [[0, 1, 2], [0, 2, 4], [], [3]])
def test_what_only_one_side_lists_is_found_and_nothing_else(found: list[int]) -> None:
    mine, theirs = slots(5), slots(5)
    for n in found:
        theirs[n] = theirs[n][:16] + seed("changed")[:16]
    span = Range(LOWEST, HIGHEST, 5, naive(theirs, LOWEST, HIGHEST), b"".join(theirs))
    result = answer(Items(mine), Digest((span,)))
    assert result.slots == [mine[n][:16] for n in found]
    assert result.reply is None


def test_one_message_has_at_most_256_ranges() -> None:
    items, spans = slots(20 * 64), []
    for n in range(20):
        low, high = items[n * 64][:16], items[n * 64 + 63][:16]
        spans.append(other((low, high)))
    reply = answer(Items(items), Digest(tuple(spans))).reply
    assert reply is not None and len(reply.ranges) == 256


@pytest.mark.parametrize(("spans", "listed"), [(39, 39 * 32), (40, 1280), (41, 1280), (60, 1280)])
def test_one_message_lists_at_most_1280_items(spans: int, listed: int) -> None:
    items = slots(spans * 32)
    ranges = [other((items[n * 32][:16], items[n * 32 + 31][:16])) for n in range(spans)]
    reply = answer(Items(items), Digest(tuple(ranges))).reply
    assert reply is not None
    assert sum(len(part.items) // 32 for part in reply.ranges) == listed


def test_a_list_that_does_not_fit_leaves_room_for_a_shorter_one_after_it() -> None:
    items = slots(1300)
    edges = [*range(0, 1249, 32), 1264, 1281, 1285]  # 39 lists of 32, one of 16, of 17, of 4
    ranges = [other((items[a][:16], items[b - 1][:16])) for a, b in pairwise(edges)]
    reply = answer(Items(items), Digest(tuple(ranges))).reply
    assert reply is not None
    assert [len(part.items) // 32 for part in reply.ranges] == [32] * 39 + [16, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_fingerprint_of_any_range_is_that_of_the_items_in_it(number: int) -> None:
    chance = Random(number)
    bytes_ = chance.sample(range(256), chance.choice((1, 2, 3, 20)))
    items = {
        bytes([chance.choice(bytes_)]) + chance.randbytes(31) for _ in range(chance.randint(1, 200))
    }
    held = Items(())
    for item in items:
        held.add(item)
    for gone in chance.sample(sorted(items), len(items) // 3):
        held.remove(gone)
        items.discard(gone)
    kept = sorted(items)
    assert len(held) == len(kept)
    for _ in range(20):
        low, high = sorted(
            bytes([chance.choice(bytes_)])
            + chance.choice((bytes(15), b"\xff" * 15, chance.randbytes(15)))
            for _ in range(2)
        )
        assert held.fingerprint(low, high) == naive(kept, low, high)
        assert held.between(low, high) == [i for i in kept if low <= i[:16] <= high]
    assert held.fingerprint(LOWEST, HIGHEST) == naive(kept, LOWEST, HIGHEST)
