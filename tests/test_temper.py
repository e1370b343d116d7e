"""An adapter that spoils other text is made weaker; one that does not stays as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tiny_llama

from leaves.bundle import read_adapter
from leaves.ports import EvaluateJob, Losses, Report, Trained, silent
from leaves.training.chassis import Chassis, open_chassis
from leaves.training.temper import FACTORS, temper
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
        return Losses(by_label, tuple(1 for _ in job.examples))


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


def test_one_that_spoils_at_any_strength_is_left_at_the_weakest(
    trained: Trained, chassis: Chassis
) -> None:
    """The judgement refuses it; that is not for this step to say."""
    kept = temper(trained, chassis, Spoiled(trained.adapter, chassis, 0.0))
    assert kept.strength == FACTORS[-1]
