"""Modes of scale: what a round looks at, by how many sessions there are and what came since."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import support_engine
from support_engine import Bench, TopicEncoder, sessions

from leaves.discover import default_clusterer
from leaves.lifecycle import Rules
from leaves.model import DAY_S, Instant, Matrix
from leaves.ports import (
    Clusterer,
    Clustering,
    ClusterSizes,
    Executor,
    Findings,
    Found,
    NoiseReason,
    Progress,
    Report,
    silent,
)
from leaves.scale import Full, Incremental, drifted, mode
from node.engine import Round, Tools
from node.executors import ChildClusterer
from node.regrouping import how_sure

NOW = Instant(20_000 * DAY_S + 7200)
SMALL = msgspec.structs.replace(support_engine.RULES, full_each_round_sessions=50)


@pytest.fixture(autouse=True)
def children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))


def days_ago(days: int) -> Instant:
    return Instant(NOW - days * DAY_S)


@pytest.mark.parametrize(
    ("sessions", "days", "kind"),
    [
        (10_000, 0, Full),  # up to here each round
        (10_001, 0, Incremental),
        (10_001, 1, Full),  # daily
        (99_999, 1, Full),
        (100_000, 6, Incremental),
        (100_000, 7, Full),  # weekly
        (999_999, 7, Full),
        (1_000_000, 29, Incremental),
        (1_000_000, 30, Full),  # monthly
    ],
)
def test_the_more_sessions_the_rarer_all_are_clustered_anew(
    sessions: int, days: int, kind: type[Full | Incremental]
) -> None:
    assert isinstance(mode(sessions, days_ago(days), NOW, Rules()), kind)


def test_a_first_look_is_full_however_many_sessions_there_are() -> None:
    assert isinstance(mode(5_000_000, None, NOW, Rules()), Full)


def test_a_nightly_round_that_begins_earlier_than_the_night_before_is_still_daily() -> None:
    assert isinstance(mode(20_000, Instant(days_ago(1) + 3600), NOW, Rules()), Full)


def test_new_sessions_that_no_leaf_takes_ask_for_a_full_look() -> None:
    assert drifted(250, 1000, Rules()) is not None
    assert drifted(249, 1000, Rules()) is None


def test_fewer_than_make_a_leaf_ask_for_nothing() -> None:
    assert drifted(199, 199, Rules()) is None
    assert drifted(0, 0, Rules(seed_sessions=1, child_sessions=1, drift_share=0.0)) is None


# A round over the real stores


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "home", tmp_path, sessions(60), train=False)


def small_round(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Round:
    """A round for which 50 sessions are many."""
    monkeypatch.setattr(support_engine, "RULES", SMALL)
    return bench.round(SMALL)


def told(bench: Bench) -> list[str]:
    return [event.event for event in bench.told]


def test_between_full_looks_new_sessions_go_to_the_leaves_that_are_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_round(bench, monkeypatch).run(NOW)
    before = bench.store.forest()
    assert before.live()
    bench.captured = [*bench.captured, *sessions(10, start=60)]
    small_round(bench, monkeypatch).run(Instant(NOW + 3600))
    after = bench.store.forest()
    assert "placed" in told(bench)
    assert set(after.leaves) == set(before.leaves)
    assert all(leaf.missed == 0 for leaf in after)
    grown = {leaf.name: leaf.sessions - before.leaves[leaf.id].sessions for leaf in after.live()}
    assert grown and all(gain >= 8 for gain in grown.values())
    assert len(bench.store.assignment()) >= 200


def test_a_leaf_that_no_new_session_comes_to_keeps_its_own_and_is_not_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_round(bench, monkeypatch).run(NOW)
    kept = bench.store.assignment()
    gears = [s for s in sessions(70, start=60) if s.session_id.startswith("gears")]
    bench.captured = [*bench.captured, *gears]
    small_round(bench, monkeypatch).run(Instant(NOW + 3600))
    assert kept.items() <= bench.store.assignment().items()
    assert all(leaf.missed == 0 for leaf in bench.store.forest())


def test_what_no_leaf_takes_makes_the_round_a_full_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_round(bench, monkeypatch).run(NOW)
    new = [
        replace(s, session_id=f"new-{s.session_id}", prompt=s.prompt.replace("gears", "wines"))
        for s in sessions(60, start=100)
        if s.session_id.startswith("gears")
    ]
    bench.captured = [*bench.captured, *new]
    small_round(bench, monkeypatch).run(Instant(NOW + 3600))
    assert told(bench).count("clustered") == 2
    assert len(bench.store.forest().live()) == 4


def test_the_next_round_knows_of_the_last_full_look_also_after_a_restart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_round(bench, monkeypatch).run(NOW)
    for hours in (1, 2):
        again = Bench(bench.home, bench.chassis, bench.captured, train=False)
        small_round(again, monkeypatch).run(Instant(NOW + 3600 * hours))
        assert "placed" in told(again)
    again = Bench(bench.home, bench.chassis, bench.captured, train=False)
    small_round(again, monkeypatch).run(Instant(NOW + DAY_S))
    assert "clustered" in told(again)


def test_a_plan_says_which_look_and_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no full re-cluster yet" in _embedded(bench, monkeypatch).plan(NOW).mode
    small_round(bench, monkeypatch).run(NOW)
    plan = small_round(bench, monkeypatch).plan(Instant(NOW + 60))
    assert plan.mode.startswith("new sessions go to the nearest leaf")
    assert plan.transitions == ()


def _embedded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Round:
    vectors = TopicEncoder().encode([s.prompt for s in bench.captured])
    ids = [s.session_id for s in bench.captured]
    bench.embeddings.append(ids, [19_000] * len(ids), vectors)
    return small_round(bench, monkeypatch)


# Cancelled in the middle


@dataclass(frozen=True, slots=True)
class Endless:
    """A clusterer in a call that does not look up, as Leiden does not."""

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        report(Progress("cluster: domains", 0, 1))
        time.sleep(600)
        raise AssertionError("nobody ended it")


def endless(executor: Executor) -> Clusterer:
    return Endless()


def round_with(bench: Bench, clusterer: Clusterer, report: Report) -> Round:
    made = bench.round()
    tools: Tools = replace(made._tools, clusterer=clusterer)
    return Round(tools, support_engine.RULES, bench.told.append, report)


def test_ctrl_c_ends_a_round_in_a_call_that_does_not_look_up(bench: Bench) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.phase.startswith("cluster"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        round_with(bench, ChildClusterer(endless), interrupt).run(NOW)
    open_ = bench.store.open_round()
    assert open_ is not None and open_.phase == "cluster"


def test_a_child_finds_the_leaves_that_are_found_here(bench: Bench, tmp_path: Path) -> None:
    bench.round().run(NOW)
    other = Bench(tmp_path / "other", tmp_path, bench.captured, train=False)
    round_with(other, ChildClusterer(default_clusterer), lambda progress: None).run(NOW)
    assert _named(other) == _named(bench)


@pytest.mark.parametrize("seed", range(3))
def test_a_round_that_was_cancelled_at_any_moment_is_taken_up_to_the_same_leaves(
    bench: Bench, tmp_path: Path, seed: int
) -> None:
    left = moment = seed

    def cancel(progress: Progress) -> None:
        nonlocal left
        if progress.phase.startswith("cluster"):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

    while bench.store.last_round() is None:
        try:
            round_with(bench, default_clusterer(), cancel).run(NOW)
        except KeyboardInterrupt:
            left = moment = moment + 3
    whole = Bench(tmp_path / "whole", tmp_path, bench.captured, train=False)
    whole.round().run(NOW)
    assert moment > seed, f"seed {seed}: never cancelled"
    assert _named(bench) == _named(whole), f"seed {seed}"


def _named(bench: Bench) -> dict[str, list[str]]:
    return {leaf.name: bench.store.members(leaf.id) for leaf in bench.store.forest().live()}


def test_how_sure_domains_are_is_told_in_words() -> None:
    findings = Findings(
        (Found(0.9, 0.6, 300), Found(0.4, 0.5, 210)),
        {NoiseReason.COPIES: 1_000, NoiseReason.BETWEEN: 40},
        0.87,
        "15 neighbours, resolution 1",
    )
    assert how_sure(findings) == (
        "subsamples agree by 0.87 (adjusted Rand index); 1 of 2 domains may be chance; "
        "in no domain: 1,000 copies of one ask, 40 between domains; 15 neighbours, resolution 1"
    )
