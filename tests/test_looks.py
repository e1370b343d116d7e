"""Looks by hand: which number each has, and when one counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leaves.looks import LOOKS_MAX, after, number, taken
from leaves.model import (
    Adapter,
    GrownFrom,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Look,
    Looking,
    Stage,
)

HERE, ELSEWHERE = "c" * 16, "d" * 16
LEAF = Leaf(
    id=LeafId("1" * 32),
    name="gears",
    stage=Stage.SPROUT,
    stage_since=Instant(0),
    level=2,
    kind=Kind.SKILL,
    grown_from=GrownFrom.DATA,
    parent=None,
    lineage=(),
    created=Instant(0),
    sessions=300,
    growth_per_day=1.0,
    centroid=np.eye(1, 8, dtype=np.float32)[0],
    attempts=3,
    preference_looks=1,
)
MOVED = replace(LEAF, adapter=Adapter("a", "b", "c", ELSEWHERE, 8))


def look(leaf: Leaf, seal: str, what: Looking = Looking.ADAPTER) -> Leaf:
    return taken(leaf, Look(what, HERE, seal, number(leaf, what, HERE, seal)))


@pytest.mark.parametrize(("what", "before"), [(Looking.ADAPTER, 3), (Looking.PREFERENCE, 1)])
def test_each_kind_of_look_is_numbered_by_itself(what: Looking, before: int) -> None:
    leaf = look(look(LEAF, "one", what), "two", what)
    assert number(leaf, what, HERE, "one") == before + 1
    assert number(leaf, what, HERE, "two") == before + 2
    assert number(leaf, what, HERE, "three") == before + 3
    counts = {Looking.ADAPTER: leaf.attempts, Looking.PREFERENCE: leaf.preference_looks}
    assert counts[what] == before + 2
    assert sum(counts.values()) == 3 + 1 + 2, "the other one stays"


def test_a_look_that_was_counted_is_not_counted_again() -> None:
    leaf = look(LEAF, "one")
    assert look(leaf, "one") is leaf
    assert after(leaf, Looking.ADAPTER, HERE, 4, judged=True) == 4
    assert after(leaf, Looking.ADAPTER, HERE, 5, judged=True) == 5
    assert after(leaf, Looking.ADAPTER, HERE, 5, judged=False) == 4


def test_looks_on_another_chassis_do_not_count_and_those_on_this_one_do() -> None:
    assert number(MOVED, Looking.ADAPTER, HERE, "one") == 1
    leaf = look(look(MOVED, "one"), "two")
    assert leaf.attempts == 3, "of the other chassis"
    assert number(leaf, Looking.ADAPTER, HERE, "three") == 3
    assert after(leaf, Looking.ADAPTER, HERE, 2, judged=True) == 2
    assert after(MOVED, Looking.ADAPTER, HERE, 1, judged=True) == 1


def test_ever_so_many_looks_are_counted_and_the_last_ones_known() -> None:
    leaf = LEAF
    for at in range(LOOKS_MAX + 5):
        leaf = look(leaf, f"{at}")
    assert len(leaf.looked) == LOOKS_MAX
    assert leaf.attempts == 3 + LOOKS_MAX + 5
    assert number(leaf, Looking.ADAPTER, HERE, "0") == leaf.attempts + 1
