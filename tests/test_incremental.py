"""New sessions and the leaves that take them."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import RULES

from leaves.incremental import Members, gates_of, observe_placed, place
from leaves.lifecycle import Missed, assignment, decide
from leaves.model import DAY_S, Forest, GrownFrom, Instant, Kind, Leaf, LeafId, Matrix, Stage, unit

NOW = Instant(20_000 * DAY_S)
TODAY = NOW // DAY_S
NEAR = np.float32(0.5)


def leaf(number: int, *, level: int = 2, parent: LeafId | None = None) -> Leaf:
    centroid = np.zeros(8, np.float32)
    centroid[number] = 1.0
    return Leaf(
        id=LeafId(f"{number:032x}"),
        name=f"leaf-{number}",
        stage=Stage.SEED,
        stage_since=NOW,
        level=level,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=parent,
        lineage=(),
        created=NOW,
        sessions=2,
        growth_per_day=1.0,
        centroid=centroid,
    )


def around(*numbers: int, spread: float = 0.1) -> Matrix:
    noise = np.random.default_rng(0).normal(0, spread, (len(numbers), 8))
    return unit((np.eye(8)[list(numbers)] + noise).astype(np.float32))


def test_a_session_goes_to_the_nearest_centroid() -> None:
    found = place(around(2, 0, 1, 2), np.eye(3, 8, dtype=np.float32), np.full(3, NEAR))
    assert found.leaves.tolist() == [2, 0, 1, 2]
    assert found.unplaced_share == 0.0


def test_what_no_gate_lets_in_has_no_leaf() -> None:
    found = place(around(5, 0), np.eye(3, 8, dtype=np.float32), np.full(3, NEAR))
    assert found.leaves.tolist() == [-1, 0]
    assert found.unplaced_share == 0.5


def test_without_leaves_nothing_is_placed() -> None:
    found = place(around(1), np.empty((0, 8), np.float32), np.empty(0, np.float32))
    assert found.leaves.tolist() == [-1]


def test_blocks_do_not_change_where_sessions_go(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, centroids = around(*range(8), *range(8), spread=0.4), np.eye(8, dtype=np.float32)
    whole = place(vectors, centroids, np.full(8, NEAR))
    monkeypatch.setattr("leaves.incremental.SCORES_MAX", 24)
    assert np.array_equal(place(vectors, centroids, np.full(8, NEAR)).leaves, whole.leaves)


def test_members_decide_where_centroids_mislead() -> None:
    # Half of leaf 0 lies at 2, beside the centroid of leaf 1 but away from its own.
    members = Members(around(*[0] * 20, *[2] * 20, *[1] * 20), np.repeat([0, 0, 1], 20))
    centroids = unit(np.array([[1, 0, 1] + [0] * 5, [0, 1.2, 1] + [0] * 5], np.float32))
    asked = unit(np.array([[0, 0.2, 1] + [0] * 5], np.float32))
    gates = np.full(2, 0.1, np.float32)
    assert place(asked, centroids, gates).leaves.tolist() == [1]
    assert place(asked, centroids, gates, members).leaves.tolist() == [0]


def test_a_gate_lets_nearly_all_members_in_and_a_small_leaf_has_the_usual_one() -> None:
    matrix = around(*[0] * 100, *[1] * 5)
    ids = [LeafId("a"), LeafId("b")]
    rows = {ids[0]: np.arange(100), ids[1]: np.arange(100, 105)}
    gates = gates_of(ids, np.eye(2, 8, dtype=np.float32), matrix, rows)
    assert 0.95 <= (matrix[:100, 0] >= gates[0]).mean() < 1.0
    assert gates[1] == gates[0]


def test_only_leaves_that_gained_are_seen_and_none_is_missed() -> None:
    domain, other = leaf(0), leaf(1)
    part = leaf(2, level=3, parent=domain.id)
    forest = Forest({x.id: x for x in (domain, other, part)}, 3)
    before = {"a": domain.id, "b": part.id, "c": other.id, "d": other.id}
    days = dict.fromkeys((*before, "new", "alone"), TODAY)
    seen = observe_placed(forest, before, {"new": part.id}, days, NOW)
    assert [(x.leaf, x.members) for x in seen.seen] == [
        (domain.id, ("a", "b", "new")),
        (part.id, ("b", "new")),
    ]
    assert (seen.full, seen.sessions, seen.noise) == (False, 6, 1)
    transitions = decide(forest, seen, NOW, RULES)
    assert not any(isinstance(x, Missed) for x in transitions)
    assert assignment(seen, transitions, forest) == {**before, "new": part.id}
