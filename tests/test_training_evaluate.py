"""The judgement: who wins, by which bound, and when there is no verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from leaves.bundle import BundleError
from leaves.model import Evaluation, Instant, Verdict
from leaves.ports import EvaluateJob, Example, silent
from leaves.training.backend import Backend
from leaves.training.encode import Encoded
from leaves.training.evaluate import PARENT_MARGIN, bootstrap, judge, measure


def spread(mean: float, count: int = 40, width: float = 0.1, seed: int = 0) -> list[float]:
    values = np.random.Generator(np.random.PCG64(seed)).normal(0, width, count)
    centre = values.mean() if count else 0.0
    return [float(value) for value in values - centre + mean]


def judged(
    over_parent: float = 1.0,
    over_style: float = 0.2,
    over_previous: float | None = None,
    *,
    count: int = 40,
    rise: float | None = None,
    parent_margin: float = 0.0,
) -> Evaluation:
    zero = [0.0] * count
    losses = {
        "candidate": zero,
        "parent": spread(over_parent, count),
        "style": spread(over_style, count),
    }
    if over_previous is not None:
        losses["previous"] = spread(over_previous, count)
    general = None if rise is None else {"candidate": spread(rise, 24, 0.01), "parent": [0.0] * 24}
    return judge(losses, general=general, at=Instant(5), parent_margin=parent_margin)


def test_a_clear_gain_over_parent_and_style_wins() -> None:
    evaluation = judged()
    assert evaluation.won and evaluation.verdict is Verdict.BETTER
    assert evaluation.held_out == 40 and evaluation.at == 5
    assert evaluation.over_parent.low < evaluation.over_parent.mean < evaluation.over_parent.high


@pytest.mark.parametrize(
    "figures",
    [
        {"over_parent": 0.01},
        {"over_style": 0.09},
        {"over_style": 0.0},
        {"rise": 0.03},
    ],
)
def test_one_bound_that_is_missed_is_no_win(figures: dict[str, float]) -> None:
    evaluation = judged(**figures)  # type: ignore[arg-type]
    assert not evaluation.won and evaluation.verdict is Verdict.NOT_BETTER


def test_over_a_trained_parent_a_gain_as_small_as_two_runs_differ_by_is_no_win() -> None:
    gain = PARENT_MARGIN / 2 + 0.03  # its lower bound is 0.026 below it
    assert judged(over_parent=gain).won
    against_a_leaf = judged(over_parent=gain, parent_margin=PARENT_MARGIN)
    assert not against_a_leaf.won and against_a_leaf.over_parent.low > 0
    assert judged(over_parent=0.06, parent_margin=PARENT_MARGIN).won


def test_a_rise_that_is_small_on_other_text_does_not_stop_a_win() -> None:
    evaluation = judged(rise=0.005)
    assert evaluation.won
    assert evaluation.general_rise is not None and 0.005 < evaluation.general_rise < 0.02


def test_below_twenty_held_out_there_is_no_verdict() -> None:
    assert judged(count=20).verdict is Verdict.BETTER
    few = judged(count=19)
    assert few.verdict is Verdict.TOO_FEW and not few.won
    assert judged(count=0).verdict is Verdict.TOO_FEW


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (0.10, Verdict.IMPROVED),
        (0.015, Verdict.HOLDS),  # its bound may be above 0, but it is too little to replace
        (0.019, Verdict.HOLDS),
        (-0.2, Verdict.REGRESSED),
    ],
)
def test_a_retrained_version_is_judged_against_the_one_before(
    gain: float, verdict: Verdict
) -> None:
    evaluation = judged(over_previous=gain, count=400)
    assert evaluation.verdict is verdict
    assert evaluation.won, "winning is against parent and style; the version before is another"


def test_near_copies_make_a_bound_wider_not_tighter() -> None:
    values = spread(0.1, 30, 0.3)
    copied = [value for value in values for _ in range(4)]
    groups = [str(index) for index in range(30) for _ in range(4)]
    honest = bootstrap(copied, groups)
    assert honest.low == pytest.approx(bootstrap(values).low, abs=0.01)
    assert bootstrap(copied).low > honest.low + 0.02


def test_equal_adapters_are_called_better_about_once_in_twenty() -> None:
    random = np.random.Generator(np.random.PCG64(3))
    trials = [bootstrap(list(random.normal(0, 0.3, 60)), resamples=2000).low for _ in range(400)]
    assert 0.02 < np.mean(np.array(trials) > 0) < 0.09


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_bounds_stand_around_the_mean_and_are_the_same_each_time(values: list[float]) -> None:
    interval = bootstrap(values, resamples=2000)
    assert interval == bootstrap(values, resamples=2000)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_groups_must_be_one_for_each_difference() -> None:
    with pytest.raises(ValueError, match="2 groups for 3 differences"):
        bootstrap([1.0, 2.0, 3.0], ["a", "b"])


class Broken:
    """A backend that finds no number."""

    def losses(self, sessions: Sequence[Encoded]) -> list[float]:
        return [math.nan for _ in sessions]


@pytest.mark.parametrize(
    ("adapter", "error"), [(Path("leaf"), BundleError), (None, ValueError)], ids=["leaf", "chassis"]
)
def test_a_loss_that_is_no_number_is_refused(
    tmp_path: Path, adapter: Path | None, error: type[Exception]
) -> None:
    chassis = tiny_llama.build(tmp_path)
    job = EvaluateJob(chassis, (Example("s", "ask", "answer"),), (("it", adapter),))
    backend = cast(Backend, Broken())
    with pytest.raises(error, match="a loss under 'it' is not finite"):
        measure(job, backend, lambda path: None, silent)
