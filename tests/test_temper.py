"""An adapter that spoils other text is made weaker; one that does not stays as it is."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_llama

from leaves.bundle import read_adapter
from leaves.ports import EvaluateJob, Losses, Probed, ProbeJob, Progress, Report, Trained, silent
from leaves.training.chassis import Chassis, open_chassis
from leaves.training.temper import FACTORS, FOUND, temper
from leaves.training.tensors import pack


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Chassis:
    return open_chassis(tiny_llama.build(tmp_path_factory.mktemp("chassis")))


@pytest.fixture
def trained(tmp_path: Path, chassis: Chassis) -> Trained:
    random = np.random.default_rng(0)
    shapes = chassis.adapter_shapes(4, chassis.targets)
    tensors = {
        name: (random.standard_normal(shape) * 0.01).astype(np.float32)
        for name, shape in shapes.items()
    }
    data = pack(tensors, {"format": "pt", "rank": "4", "alpha": "8"})
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    return Trained(path, hashlib.sha256(data).hexdigest(), 100, 1.0, 3.0, 2.0)


class Spoiled:
    """An evaluator for whom general text suffers once an adapter is stronger than `bearable`."""

    def __init__(self, full: Path, chassis: Chassis, bearable: float) -> None:
        self._chassis, self._bearable = chassis, bearable
        self._full = self._size(full)
        self.asked = 0

    def _size(self, path: Path) -> float:
        read = read_adapter(path.read_bytes(), self._chassis)
        return sum(float(np.abs(v).sum()) for k, v in read.tensors.items() if "lora_B" in k)

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        self.asked += 1
        by_label = {}
        for label, path in job.adapters:
            strength = self._size(path) / self._full if path else 0.0
            rise = 0.1 if strength > self._bearable + 0.01 else -0.1
            values = (3.0 + (rise if path else 0.0) for _ in job.examples)
            by_label[label] = tuple(values)
        report(Progress("evaluate", 2, 2, ""))
        return Losses(by_label, tuple(1 for _ in job.examples))

    def probe(self, job: ProbeJob, report: Report = silent) -> Probed:
        raise AssertionError("nothing is looked for here")


@pytest.mark.parametrize("bearable", FACTORS)
def test_an_adapter_is_as_strong_as_other_text_bears(
    trained: Trained, chassis: Chassis, bearable: float
) -> None:
    kept = temper(trained, chassis, Spoiled(trained.adapter, chassis, bearable))
    assert kept.strength == bearable
    assert kept.sha256 == hashlib.sha256(kept.adapter.read_bytes()).hexdigest()
    before = read_adapter(trained.adapter.read_bytes(), chassis).tensors
    after = read_adapter(kept.adapter.read_bytes(), chassis).tensors
    for name, values in before.items():
        factor = bearable if "lora_B" in name else 1.0
        assert np.array_equal(after[name], values * np.float32(factor))


def test_one_that_spoils_nothing_is_the_file_that_was_trained(
    trained: Trained, chassis: Chassis
) -> None:
    evaluator = Spoiled(trained.adapter, chassis, 1.0)
    assert temper(trained, chassis, evaluator) == trained
    assert evaluator.asked == 1


def test_an_adapter_is_not_measured_again_unless_it_or_its_chassis_is_another(
    trained: Trained, chassis: Chassis, tmp_path: Path
) -> None:
    evaluator = Spoiled(trained.adapter, chassis, 0.5)
    kept = temper(trained, chassis, evaluator)
    assert temper(trained, chassis, evaluator) == kept and evaluator.asked == 3
    temper(replace(trained, sha256="0" * 64), chassis, evaluator)
    assert evaluator.asked == 6
    temper(trained, open_chassis(tiny_llama.build(tmp_path / "other", seed=7)), evaluator)
    assert evaluator.asked == 9


def test_what_was_found_counts_only_if_it_was_written_whole(
    trained: Trained, chassis: Chassis
) -> None:
    evaluator = Spoiled(trained.adapter, chassis, 0.7)
    kept = temper(trained, chassis, evaluator)
    path = trained.adapter.with_name(FOUND)
    path.write_bytes(path.read_bytes()[:-1])
    assert temper(trained, chassis, evaluator) == kept
    assert evaluator.asked == 4


def test_progress_is_told_as_that_of_one_step(trained: Trained, chassis: Chassis) -> None:
    told: list[Progress] = []
    temper(trained, chassis, Spoiled(trained.adapter, chassis, 0.5), told.append)
    assert [(each.done, each.total) for each in told] == [(2, 10), (4, 10), (6, 10)]
    assert {each.phase for each in told} == {"temper"}


def test_one_that_spoils_at_any_strength_is_left_at_the_weakest(
    trained: Trained, chassis: Chassis
) -> None:
    """The judgement refuses it; that is not for this step to say."""
    kept = temper(trained, chassis, Spoiled(trained.adapter, chassis, 0.0))
    assert kept.strength == FACTORS[-1]
