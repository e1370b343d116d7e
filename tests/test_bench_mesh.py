"""The bench of the mesh's goals measures what it says: its shape, its verdicts, its merging."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import mesh as bench
from mesh_goals import MEASUREMENTS, Figure

WANTED = ("value", "worst", "seeds", "nodes", "goal", "stretch", "met")


@pytest.mark.parametrize("name", ["retraction", "fork", "one-record"])
def test_a_goal_is_measured_and_met_in_a_small_mesh(name: str) -> None:
    played = bench.play(name, 30, 0)
    assert played.reason == ""
    result = json.loads(json.dumps(bench.report([played], 30, ["g1", "g2", "g3", "g9"])))
    for figure in MEASUREMENTS[name].figures.values():
        goal, _, key = figure.key.partition(".")
        found = result[goal][key]
        assert set(WANTED) <= found.keys()
        assert (found["seeds"], found["nodes"], found["met"]) == (1, 30, True), found


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (bench.play("retraction", 30, 7).sample for _ in range(2))
    assert first == second


def test_every_figure_of_a_goal_is_measured_or_missing_with_a_reason() -> None:
    result = bench.report([], 30, bench.GOALS)
    figures = {f.key for m in MEASUREMENTS.values() for f in m.figures.values()}
    assert result["missing"].keys() >= figures
    assert {key.partition(".")[0] for key in result["missing"]} == set(bench.GOALS)


def test_what_never_happened_is_worse_than_anything_that_did() -> None:
    figure = Figure("g1.base", "s", goal=1.0)
    found = bench.summary(figure, [0.5, None, 0.6], 30)
    assert (found["value"], found["worst"], found["never"], found["met"]) == (0.6, None, 1, True)
    found = bench.summary(figure, [0.5, None], 30)
    assert (found["value"], found["met"]) == (None, False)


def test_a_goal_of_the_worst_seed_is_not_met_by_the_median() -> None:
    worst = Figure("g2.loss0", "rounds", goal=12, by_worst=True)
    assert not bench.summary(worst, [9, 9, 13], 30)["met"]
    least = Figure("g6.push", "share", goal=1.0, at_least=True, by_worst=True)
    assert not bench.summary(least, [1.0, 1.0, 0.99], 30)["met"]
    assert bench.summary(least, [1.0, 1.0], 30)["met"]


def test_a_measurement_that_fails_is_reported_with_its_seed() -> None:
    played = bench.play("retraction", 0, 3)
    assert played.sample is None
    assert played.reason.startswith("seed 3: ")
    assert bench.report([played], 0, ["g1"])["missing"]["g1.base"] == played.reason
