"""Families: leaves of many origins that are one domain, worked out by each node alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.families import Candidate, families
from leaves.model import LeafId, Vector, leaf_id, unit

ENC8 = b"encoder1"
AXES = np.eye(16, dtype=np.float32)


def origin(number: int) -> bytes:
    return number.to_bytes(32, "big")


def candidate(
    by: int, vector: Vector, *, birth: int = 0, evidence: float = 0.0, enc8: bytes = ENC8
) -> Candidate:
    return Candidate(origin(by), leaf_id(origin(by), birth), enc8, vector, evidence)


def near(axis: int, seed: int, spread: float = 0.03) -> Vector:
    noise = np.random.default_rng(seed).normal(size=16).astype(np.float32)
    return unit((AXES[axis] + spread * noise)[None])[0]


def test_leaves_of_one_domain_are_one_family() -> None:
    leaves = [candidate(n, near(0, n)) for n in range(3)]
    leaves += [candidate(n, near(1, n), birth=1) for n in range(3)]
    found = families(leaves)
    assert sorted(len(family.members) for family in found) == [3, 3]
    assert all(family.origins() == tuple(map(origin, range(3))) for family in found)


@pytest.mark.parametrize(("cosine", "together"), [(0.921, 1), (0.919, 2)])
def test_a_family_reaches_as_far_as_a_merge_would(cosine: float, together: int) -> None:
    other = np.array([cosine, (1 - cosine**2) ** 0.5, *[0.0] * 14], np.float32)
    assert len(families([candidate(1, AXES[0]), candidate(2, other)])) == together


def test_what_this_node_has_verified_leads() -> None:
    leaves = [candidate(n, near(0, n), evidence=0.1 if n == 7 else 0.0) for n in range(10)]
    (family,) = families(leaves)
    assert family.leader.origin == origin(7)


def test_vectors_of_two_encoders_are_never_one_family() -> None:
    both = [candidate(1, AXES[0]), candidate(2, AXES[0], enc8=b"encoder2")]
    assert [family.enc8 for family in families(both)] == [ENC8, b"encoder2"]


def test_a_flood_from_one_origin_counts_eight_times_at_most() -> None:
    flood = [candidate(1, near(0, n), birth=n) for n in range(50)]
    (family,) = families([*flood, candidate(2, AXES[0])])
    assert sum(member.origin == origin(1) for member in family.members) == 8
    assert origin(2) in family.origins()


def test_each_origin_has_one_vote_in_the_prototype() -> None:
    honest = [candidate(n, near(0, n, spread=0.005)) for n in range(2, 7)]
    pull = unit((AXES[0] + 0.3 * AXES[1])[None])[0]
    flood = [candidate(1, pull, birth=n) for n in range(8)]
    (family,) = families([*honest, *flood])
    assert len(family.members) == 13
    assert float(family.prototype @ AXES[0]) > 0.999


def test_the_same_leaf_twice_counts_once() -> None:
    (family,) = families([candidate(1, AXES[0]), candidate(1, AXES[0])])
    assert len(family.members) == 1


def test_no_leaves_are_no_families() -> None:
    assert families([]) == ()


@settings(max_examples=40)
@given(st.permutations(range(24)))
def test_the_same_set_gives_the_same_families_in_any_order(order: list[int]) -> None:
    leaves = [
        candidate(n % 5, near(n % 4, n, spread=0.08), birth=n, evidence=float(n % 3))
        for n in range(24)
    ]
    expected = families(leaves)
    found = families([leaves[n] for n in order])
    assert found == expected
    assert all((a.prototype == b.prototype).all() for a, b in zip(found, expected, strict=True))
    members = [member.leaf for family in found for member in family.members]
    assert len(members) == len(set(members))


def test_ids_are_of_the_wire_form() -> None:
    assert len(bytes.fromhex(candidate(1, AXES[0]).leaf)) == 16
    assert LeafId(candidate(1, AXES[0]).leaf) == leaf_id(origin(1), 0)
