"""A round whose work is spread over an executor comes to what it comes to without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_llama
from support_engine import Bench, sessions

from leaves.model import Forest, Instant
from leaves.ports import Report, Trained, TrainJob
from node.config import ExecutorConfig
from node.executors import ProcessExecutor
from node.spreading import TEXTS, ExecutorEncoder, opened, spread

NOW = Instant(1_700_100_000)
LATER = Instant(NOW + 86_400)


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


class Ahead:
    """Trains whatever it is given, and notes how many trainings came at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.bench: Bench | None = None

    def __call__(self, jobs: Sequence[TrainJob], report: Report) -> list[Trained]:
        assert self.bench is not None
        self.batches.append(len(jobs))
        return [self.bench.trainer.train(job, report) for job in reversed(jobs)]


def bundles(forest: Forest) -> dict[str, tuple[str, str, str]]:
    return {
        leaf.id: (leaf.stage.value, leaf.adapter.bundle, leaf.adapter.control)
        for leaf in forest
        if leaf.adapter
    }


def test_trained_side_by_side_leaves_come_to_the_same(tmp_path: Path, chassis: Path) -> None:
    ahead = Ahead()
    plain = Bench(tmp_path / "plain", chassis, sessions(100))
    side = Bench(tmp_path / "side", chassis, sessions(100), train_all=ahead)
    ahead.bench = side
    for now in (NOW, LATER):
        for bench in (plain, side):
            bench.round().run(now)
            bench.captured += sessions(100, start=100)
    assert bundles(side.store.forest()) == bundles(plain.store.forest()) != {}
    assert ahead.batches == [6, 6], "each of three leaves, and its style control"
    assert sorted(side.trainer.trained) == sorted(plain.trainer.trained), "nothing is trained twice"


def test_a_killed_round_whose_leaves_were_trained_ahead_trains_none_of_them_again(
    tmp_path: Path, chassis: Path
) -> None:
    ahead = Ahead()
    bench = Bench(tmp_path, chassis, sessions(100), train_all=ahead)
    ahead.bench = bench

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    losses, bench.evaluator.losses = bench.evaluator.losses, dies  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        bench.round().run(NOW)
    trained = list(bench.trainer.trained)
    bench.evaluator.losses = losses  # type: ignore[method-assign]
    bench.round().run(LATER)
    assert bench.trainer.trained == trained
    assert len(bundles(bench.store.forest())) == 3


def test_texts_encoded_in_chunks_have_the_rows_of_one_batch() -> None:
    encoder = opened("", 1)
    executor = ProcessExecutor(1)
    texts = [f"question {n} about the tides" for n in range(TEXTS + 3)]
    try:
        there = ExecutorEncoder(encoder, executor, "", 1)
        rows = there.encode(texts)
        assert np.allclose(rows, encoder.encode(texts), atol=1e-5)
        assert np.array_equal(there.encode(texts[:2]), encoder.encode(texts[:2]))
    finally:
        executor.close()
    assert (there.enc8, there.name, there.dimensions) == (
        encoder.enc8,
        encoder.name,
        encoder.dimensions,
    )


def test_by_itself_a_round_has_no_executor() -> None:
    with spread(ExecutorConfig()) as nothing:
        assert nothing is None


def test_more_workers_than_one_are_an_executor_of_processes() -> None:
    with spread(ExecutorConfig(workers=2)) as two:
        assert two is not None and isinstance(two.executor, ProcessExecutor) and not two.ray


def test_the_daemon_imports_neither_ray_nor_obstore() -> None:
    code = (
        "import sys, node.daemon, node.app, node.cli, node.rounds, node.registry, node.spreading\n"
        "print([name for name in ('ray', 'obstore', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
