"""Gates: quantiles of what the centroids have not seen, shrunk where there is little of it."""

from __future__ import annotations

import numpy as np
import pytest

from leaves.model import LeafId, Matrix, unit
from router.calibrate import calibrate, calibrate_tree, offsets

A, B = LeafId("a" * 32), LeafId("b" * 32)
PART, DOMAIN, OTHER, BRANCH = (LeafId(letter * 32) for letter in "3214")
D = 64
NONE: Matrix = np.zeros((0, D), np.float32)


def around(axis: int, count: int, spread: float, seed: int = 0) -> Matrix:
    rng = np.random.default_rng([seed, axis, count])
    return unit(np.eye(D, dtype=np.float32)[axis] + spread * rng.normal(size=(count, D)))


@pytest.mark.parametrize("false_rejects", [0.02, 0.05, 0.20])
def test_a_gate_refuses_the_share_of_new_prompts_that_it_is_asked_to(false_rejects: float) -> None:
    members = {A: around(0, 800, 0.1), B: around(1, 800, 0.2)}
    gates = calibrate(members, NONE, false_rejects=false_rejects)
    for leaf, axis, spread in ((A, 0, 0.1), (B, 1, 0.2)):
        fresh = around(axis, 4000, spread, seed=5)
        centroid = unit(members[leaf].mean(axis=0)[None])[0]
        refused = np.mean(fresh @ centroid < gates[leaf])
        assert refused == pytest.approx(false_rejects, rel=0.25, abs=0.01)


def test_a_loose_leaf_has_a_lower_gate_than_a_tight_one() -> None:
    gates = calibrate({A: around(0, 300, 0.05), B: around(1, 300, 0.2)}, NONE)
    assert gates[A] > gates[B] + 0.2


def test_a_leaf_with_few_sessions_leans_on_the_others() -> None:
    tight, few = around(0, 500, 0.05), around(1, 9, 0.2)
    gates = calibrate({A: tight, B: few}, NONE)
    own = calibrate({B: around(1, 500, 0.2)}, NONE)[B]
    assert gates[B] > own + 0.1


def test_strays_near_a_leaf_lower_its_gate_and_distant_ones_do_not() -> None:
    members = {A: around(0, 300, 0.1)}
    alone = calibrate(members, NONE)[A]
    assert calibrate(members, around(0, 60, 0.25))[A] < alone
    assert calibrate(members, around(5, 60, 0.05))[A] == alone


def test_without_anything_to_hold_out_the_floors_alone_decide() -> None:
    assert calibrate({}, NONE) == {}
    assert calibrate({A: around(0, 1, 0.1)}, NONE) == {A: 0.0}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="folds=1"):
        calibrate({A: around(0, 20, 0.1)}, NONE, folds=1)
    with pytest.raises(ValueError, match=r"false_rejects=1\.0"):
        calibrate({A: around(0, 20, 0.1)}, NONE, false_rejects=1.0)


def test_a_domain_is_calibrated_on_its_parts_too_and_a_branch_on_all_below_it() -> None:
    parts = {PART: around(0, 300, 0.1), DOMAIN: around(1, 300, 0.1), OTHER: around(2, 300, 0.1)}
    matrix = np.concatenate(list(parts.values()))
    ids = [f"{i:04d}" for i in range(900)]
    of = dict(zip(ids, [leaf for leaf, rows in parts.items() for _ in rows], strict=True))
    levels = {PART: 3, DOMAIN: 2, OTHER: 2, BRANCH: 1}
    gates = calibrate_tree(ids, matrix, of, levels, {PART: DOMAIN, DOMAIN: BRANCH, OTHER: BRANCH})
    assert gates.keys() == levels.keys()
    assert gates[PART] > gates[DOMAIN] + 0.05 and gates[OTHER] > gates[DOMAIN] + 0.05
    assert gates[DOMAIN] > gates[BRANCH]
    order = np.random.default_rng(0).permutation(900)
    again = calibrate_tree(
        [ids[i] for i in order], matrix[order], of, levels,
        {PART: DOMAIN, DOMAIN: BRANCH, OTHER: BRANCH},
    )  # fmt: skip
    assert again == gates


def test_leaves_that_name_each_other_as_parents_are_calibrated_once_each() -> None:
    rows = around(0, 50, 0.1)
    ids = [f"{i:04d}" for i in range(50)]
    gates = calibrate_tree(ids, rows, dict.fromkeys(ids, A), {A: 2, B: 2}, {A: B, B: A})
    assert gates.keys() == {A, B}


def test_a_centroid_near_the_mean_of_all_sessions_stands_back() -> None:
    centroids = np.eye(D, dtype=np.float32)[:3]
    mean = np.array([0.6, 0.2, 0.1] + [0.0] * (D - 3), np.float32)
    assert offsets(centroids, mean) == pytest.approx([0.15, -0.05, -0.1])
    assert offsets(centroids[:0], mean) == []
