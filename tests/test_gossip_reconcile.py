"""Set reconciliation: all differences are found, and nothing is paid for what is equal."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import merkle
from gossip.reconcile import HIGHEST, LOWEST, Items, answer, fingerprint_of, opening
from gossip.wire import SYNC_FRAME_BYTES_MAX, Digest, Range, encode

ITEM = st.binary(min_size=32, max_size=32)
ITEM16 = st.binary(min_size=16, max_size=16)


def items(count: int, seed: object) -> list[bytes]:
    chance = Random(f"{seed}/{count}")
    return sorted(chance.randbytes(32) for _ in range(count))


def changed(base: list[bytes], count: int, seed: object) -> list[bytes]:
    """The same slots, a few of which hold something else."""
    chance = Random(f"{seed}/changed")
    other = dict.fromkeys(chance.sample(base, count))
    return sorted(i[:16] + chance.randbytes(16) if i in other else i for i in base)


def reconcile(a: list[bytes], b: list[bytes]) -> tuple[set[bytes], int, int]:
    """Play one round; return the slots found, the frames and the bytes."""
    message: Digest | None = opening(Items(a))
    found: set[bytes] = set()
    frames = size = 0
    sides = [Items(b), Items(a)]
    while message is not None:
        frames, size = frames + 1, size + len(encode(message))
        assert len(encode(message)) <= SYNC_FRAME_BYTES_MAX
        assert frames < 20
        result = answer(sides[(frames - 1) % 2], message)
        found |= set(result.slots)
        message = result.reply
    return found, frames, size


def differing(a: list[bytes], b: list[bytes]) -> set[bytes]:
    return {item[:16] for item in set(a) ^ set(b)}


@settings(max_examples=200, deadline=None)
@given(st.lists(ITEM, max_size=80, unique_by=lambda i: i[:16]), st.data())
def test_every_difference_is_found(mine: list[bytes], data: st.DataObject) -> None:
    mine.sort()
    keep = data.draw(st.sets(st.sampled_from(mine)) if mine else st.just(set()))
    added = data.draw(st.lists(ITEM, max_size=20, unique_by=lambda i: i[:16]))
    slots = {i[:16] for i in mine}
    theirs = sorted(keep | {i for i in added if i[:16] not in slots})
    found, _, _ = reconcile(mine, theirs)
    assert found == differing(mine, theirs)


@pytest.mark.parametrize("count", [0, 1, 31, 33, 500, 5_000])
@pytest.mark.parametrize("changes", [0, 1, 10])
def test_a_few_differences_in_many_are_found_in_few_frames(count: int, changes: int) -> None:
    mine = items(count, "a")
    theirs = changed(mine, min(changes, count), "b")
    found, frames, _ = reconcile(mine, theirs)
    assert found == differing(mine, theirs)
    assert frames <= 5


def test_what_is_equal_costs_one_small_frame() -> None:
    mine = items(10_000, "a")
    found, frames, size = reconcile(mine, list(mine))
    assert (found, frames) == (set(), 1)
    assert size < 100


def test_one_difference_in_a_thousand_costs_less_than_a_list_of_all() -> None:
    mine = items(1_000, "a")
    _, _, size = reconcile(mine, changed(mine, 1, "b"))
    assert size < 4_000  # of 32,000


def test_two_that_share_nothing_find_much_in_one_round_and_never_a_frame_too_large() -> None:
    found, _, _ = reconcile(items(20_000, "a"), items(20_000, "b"))
    assert len(found) > 200


def test_rounds_go_on_until_all_is_found_although_each_is_bounded() -> None:
    mine, theirs = items(3_000, "a"), items(3_000, "b")
    rounds = 0
    while mine != theirs:
        found, _, _ = reconcile(mine, theirs)
        given_ = {item for item in (*mine, *theirs) if item[:16] in found}
        mine, theirs = sorted(given_ | {*mine}), sorted(given_ | {*theirs})
        rounds += 1
        assert found and rounds < 60


def test_a_fingerprint_depends_on_every_item_and_on_their_number() -> None:
    one, two = items(2, "a")
    lists = ([], [one], [two], [one, two], [bytes(32), one])
    assert len({Items(some).fingerprint(LOWEST, HIGHEST) for some in lists}) == 5


@settings(max_examples=100, deadline=None)
@given(st.lists(ITEM, max_size=300, unique=True), st.data())
def test_a_fingerprint_of_a_range_is_that_of_the_items_in_it(
    some: list[bytes], data: st.DataObject
) -> None:
    kept = Items()
    for item in some:
        kept.add(item)
    for item in some[::3]:
        kept.remove(item)
    left = sorted(item for i, item in enumerate(some) if i % 3)
    low, high = sorted(data.draw(st.tuples(st.binary(min_size=16, max_size=16), ITEM16)))
    within = [item for item in left if low <= item[:16] <= high]
    assert kept.between(low, high) == within
    total = sum(int.from_bytes(item, "big") for item in within)
    assert kept.fingerprint(low, high) == fingerprint_of(total, len(within))
    assert len(kept) == len(left)


def test_what_a_peer_lists_out_of_order_or_outside_of_its_range_does_no_harm() -> None:
    mine = items(10, "a")
    lies = b"".join(reversed(items(5, "b"))) + bytes(32)
    span = Range(b"\x40" + bytes(15), b"\x60" + bytes(15), 6, bytes(16), lies)
    result = answer(Items(mine), Digest((span,)))
    assert result.reply is None
    assert result.slots == sorted(result.slots)


def test_the_merkle_root_is_that_of_rfc_6962() -> None:
    # The test vectors of the certificate-transparency project.
    leaves = [b"", b"\0", b"\x10", b" !", b"01", b"@ABC", b"PQRSTUVW", b"`abcdefghijklmno"]
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    assert {n: merkle.root(leaves[:n]).hex() for n in roots} == roots
