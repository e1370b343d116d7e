"""The table of legal transitions: `apply` keeps to it, and the page in docs is drawn from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leaves.lifecycle import (
    LEGAL,
    Archived,
    Born,
    Dissolved,
    Drifted,
    LifecycleError,
    Merged,
    Missed,
    Promoted,
    Proposed,
    Revived,
    Rules,
    Split,
    Trained,
    Transition,
    Withdrawn,
    apply,
    ids_of,
    kind_of,
)
from leaves.metadata import metadata
from leaves.model import (
    Adapter,
    Evaluation,
    Forest,
    GrownFrom,
    Instant,
    Interval,
    Kind,
    Leaf,
    LeafId,
    Stage,
    Verdict,
)
from leaves.observe import Seen
from node.cli import main

NOW = Instant(1_800_000_000)
ONE, OTHER, NEW = (LeafId(digit * 32) for digit in "123")
AT = np.array([1.0, 0.0], np.float32)
GAIN = Interval(0.2, 0.15, 0.25)
PAGE = Path(__file__).parents[1] / "docs" / "lifecycle.md"


def leaf(id_: LeafId, stage: Stage, **changes: object) -> Leaf:
    base = Leaf(
        id=id_,
        name=id_[:4],
        stage=stage,
        stage_since=NOW,
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=NOW,
        sessions=400,
        growth_per_day=12.0,
        centroid=AT,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def adapter(chassis: str = "e") -> Adapter:
    return Adapter("b" * 64, "d" * 64, "c" * 64, chassis * 16, 8)


def transitions(stage: Stage) -> list[Transition]:
    """One of each kind, as they would be for a leaf of this stage."""
    seen = Seen(ONE, None, 2, ("s",), AT, Kind.SKILL, 1.0, "x", NOW)
    evaluation = Evaluation(60, 2.0, GAIN, GAIN, None, None, True, Verdict.IMPROVED, NOW)
    child = leaf(NEW, Stage.SPROUT, level=3, lineage=(ONE,), parent=ONE)
    union = leaf(NEW, Stage.SEED, lineage=(ONE, OTHER))
    split = Split(ONE, (child,), "why", (1,), 2)
    return [
        Born(leaf(NEW, stage), 0, "why"),
        Drifted(ONE, 1, AT, Kind.SKILL, 1.0, 2, None, "why"),
        Missed(ONE, "why"),
        Dissolved(ONE, "why"),
        Archived(ONE, "why"),
        Revived(ONE, seen, "why"),
        Trained(ONE, evaluation, adapter(), "sft", "", "why"),
        Trained(ONE, evaluation, adapter("f"), "sft", "", "on another chassis"),
        Promoted(ONE, "why"),
        split,
        Merged((ONE, OTHER), union, "why"),
        Proposed(split, "why"),
        Withdrawn(ONE, True, "why"),
        Withdrawn(ONE, False, "why"),
    ]


@pytest.mark.parametrize("stage", list(Stage))
def test_no_leaf_leaves_a_stage_but_by_the_table(stage: Stage) -> None:
    arrows = {(arrow.source, arrow.kind, arrow.to) for arrow in LEGAL}
    one = leaf(ONE, stage, adapter=adapter())
    standing = Forest({ONE: one, OTHER: leaf(OTHER, Stage.SEED)}, 2, b"\1" * 32)
    for transition in transitions(stage):
        kind = kind_of(transition)
        touched = isinstance(transition, Born)
        known = any(a[0] is (None if touched else stage) and a[1] == kind for a in arrows)
        if not known and not isinstance(transition, Proposed):
            with pytest.raises(LifecycleError, match=f"{kind} does not lead from"):
                apply(standing, transition, NOW)
            continue
        if touched and (None, kind, stage) not in arrows:
            with pytest.raises(LifecycleError, match="does not lead from no leaf"):
                apply(standing, transition, NOW)
            continue
        after = apply(standing, transition, NOW)
        for id_ in after.leaves:
            was = standing.leaves.get(id_)
            if was is None or was != after.leaves[id_]:
                step = (was.stage if was else None, kind, after.leaves[id_].stage)
                assert step in arrows, step


def test_every_arrow_of_the_table_can_be_taken() -> None:
    taken = set()
    for stage in Stage:
        one = leaf(ONE, stage, adapter=adapter())
        standing = Forest({ONE: one, OTHER: leaf(OTHER, Stage.SPROUT)}, 2, b"\1" * 32)
        union = leaf(NEW, Stage.SPROUT, lineage=(ONE, OTHER))
        for transition in [*transitions(stage), Merged((ONE, OTHER), union, "why")]:
            try:
                after = apply(standing, transition, NOW)
            except LifecycleError:
                continue
            for id_ in ids_of(transition):
                was = standing.leaves.get(id_)
                now_is = after.leaves.get(id_)
                if now_is is not None and not isinstance(transition, Proposed):
                    taken.add((was.stage if was else None, kind_of(transition), now_is.stage))
    assert {(arrow.source, arrow.kind, arrow.to) for arrow in LEGAL} - taken == set()


def test_an_id_is_never_given_twice() -> None:
    standing = Forest({NEW: leaf(NEW, Stage.DISSOLVED)}, 1, b"\1" * 32)
    with pytest.raises(LifecycleError, match="there was one of this id"):
        apply(standing, Born(leaf(NEW, Stage.SEED), 0, "why"), NOW)


def test_a_proposal_changes_no_leaf() -> None:
    standing = Forest({ONE: leaf(ONE, Stage.MATURE)}, 1, b"\1" * 32)
    child = leaf(NEW, Stage.SPROUT, level=3, lineage=(ONE,))
    assert apply(standing, Proposed(Split(ONE, (child,), "why"), "why"), NOW) == standing


def test_leaves_below_one_that_ends_go_to_the_leaf_above_it() -> None:
    standing = Forest(
        {
            ONE: leaf(ONE, Stage.SEED, level=1),
            OTHER: leaf(OTHER, Stage.MATURE, parent=ONE),
            NEW: leaf(NEW, Stage.SPROUT, level=3, parent=OTHER),
        },
        3,
        b"\1" * 32,
    )
    after = apply(standing, Archived(OTHER, "why", (NEW,)), NOW)
    assert after.leaves[NEW].parent == ONE
    assert after.leaves[NEW].version == 2


def test_the_page_in_docs_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["lifecycle", "--markdown"])
    assert ended.value.code in (None, 0)
    assert capsys.readouterr().out == PAGE.read_text()


def test_the_table_of_a_home_has_the_rules_of_that_home(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "groove.toml").write_text("[rules]\nmature_wins = 4\n")
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["lifecycle"])
    assert "4 rounds won on fresh sessions" in capsys.readouterr().out


def test_metadata_has_the_names_and_forms_of_the_specification() -> None:
    june = Instant(1_781_500_000)
    grown = leaf(
        ONE,
        Stage.SPROUT,
        created=june,
        sessions=247,
        trainings=4,
        first_trained=june,
        method="sft",
        cluster=47,
        used_by=3,
        evaluation=Evaluation(60, 2.0, GAIN, GAIN, None, None, True, Verdict.IMPROVED, NOW),
    )
    said = metadata(grown, Rules(sprout_gate=0.35))
    assert said["origin"] == "data_driven"
    assert (said["created"], said["growth_rate"]) == ("2026-06-15", "12/day")
    assert (said["session_count"], said["cluster_id"]) == (247, 47)
    assert (said["confidence_gate"], said["training_method"]) == (0.35, "sft_only")
    assert (said["retrain_count"], said["gossip_propagation_count"]) == (3, 3)
    assert said["eval_vs_parent"] == "+0.200 [+0.150, +0.250] nats per token"
    assert said["maturity_date"] is None
    mature = replace(grown, stage=Stage.MATURE, matured_at=june, method="sft+dpo")
    assert metadata(mature)["confidence_gate"] is None
    assert metadata(mature)["maturity_date"] == "2026-06-15"
    assert metadata(mature)["training_method"] == "sft+dpo"
