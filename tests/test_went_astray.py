"""What is no number or no note any more: it stops one training, and never the home."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_llama
from support_engine import Bench, Killed, TopicEvaluator, sessions

from leaves.bundle import BundleError
from leaves.model import Evaluation, Instant, Interval, Stage, Verdict
from leaves.ports import EvaluateJob, Losses, Report, silent
from node.measuring import measured
from node.notes import Notes, Step

NOW = Instant(1_700_100_000)
DAMAGE = {"text": b'{"split":"\xff"}', "deep": b"[" * 100_000, "empty": b"", "list": b"[]"}


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


class Astray(TopicEvaluator):
    """One loss under one label is no number."""

    def __init__(self, label: str, value: float) -> None:
        super().__init__()
        self._label, self._value = label, value

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        found = super().losses(job, report)
        by_label = dict(found.by_label)
        if self._label in by_label:
            by_label[self._label] = (*by_label[self._label][:-1], self._value)
        return replace(found, by_label=by_label)


class Stopped(TopicEvaluator):
    """Killed when what was measured on the held-out sessions is kept, and the rest is not."""

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        if [label for label, _ in job.adapters] == ["parent", "candidate"]:
            raise Killed
        return super().losses(job, report)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_refused(value: float, chassis: Path) -> None:
    job = EvaluateJob(chassis, (), (("style", None),))
    with pytest.raises(BundleError, match="a loss under 'style' is not finite"):
        measured(Astray("style", value), job)


@pytest.mark.parametrize(
    ("label", "value"),
    [("candidate", math.nan), ("parent", math.inf), ("style", math.nan), ("second", -math.inf)],
)
def test_a_training_with_such_a_loss_went_astray_and_the_forest_is_read(
    tmp_path: Path, chassis: Path, label: str, value: float
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100), evaluator=Astray(label, value), control_pairs=3)
    row = bench.round().run(NOW)
    notes = [note for note in row.state["done"].values() if "went astray" in note]
    assert notes
    forest = bench.store.forest()
    astray = [leaf for leaf in forest if leaf.level == 2 and leaf.adapter is None]
    assert len(astray) == len(notes)
    assert {(leaf.stage, leaf.attempts) for leaf in astray} == {(Stage.SEED, 0)}
    bench.evaluator = TopicEvaluator()
    bench.captured = sessions(200)
    bench.round().run(Instant(NOW + 86_400))
    assert all(leaf.adapter for leaf in bench.store.forest() if leaf.level == 2)


def test_the_store_refuses_a_number_that_nobody_could_read_again(
    tmp_path: Path, chassis: Path
) -> None:
    bench = Bench(tmp_path, chassis, sessions(60), train=False)
    bench.round().run(NOW)
    leaf = next(iter(bench.store.forest()))
    sound = Interval(0.1, 0.0, 0.2)
    wrong = Interval(math.nan, 0.0, 0.2)
    judged = Evaluation(20, 2.0, sound, wrong, None, None, False, Verdict.NOT_BETTER, NOW)
    for broken in (replace(leaf, evaluation=judged), replace(leaf, growth_per_day=math.inf)):
        with pytest.raises(ValueError, match="not finite"):
            bench.store.change(broken, "renamed", "by the owner", NOW)
    assert bench.store.forest().leaves[leaf.id] == leaf


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_note_is_no_note(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{Step.SFT}.json").write_bytes(damage)
    assert Notes(tmp_path).read(Step.SFT, None, str) is None
    assert "note cannot be read" in caplog.text and "xff" not in caplog.text


def _shorter(data: bytes) -> bytes:
    return data.replace(b"[", b"[1.0,", 1)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, lambda data, to=to: to) for name in ("measured.json", "margins.json")
          for to in DAMAGE.values()),
        ("measured.json", _shorter),
    ],
    ids=[*(f"{name}-{what}" for name in ("measured", "margins") for what in DAMAGE), "longer"],
)  # fmt: skip
def test_a_round_goes_on_over_damaged_measurements(
    tmp_path: Path, chassis: Path, name: str, how: Callable[[bytes], bytes]
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100), evaluator=Stopped(), control_pairs=3)
    with pytest.raises(Killed):
        bench.round().run(NOW)
    (tmp_path / "training" / "margins.json").write_bytes(b"{}")
    (path,) = (tmp_path / "training").rglob(name)
    path.write_bytes(how(path.read_bytes()))
    bench.evaluator = TopicEvaluator()
    bench.round().run(NOW)
    assert all(leaf.adapter for leaf in bench.store.forest() if leaf.level == 2)
