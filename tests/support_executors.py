"""The contract of `leaves.ports.Executor`, which each implementation's module runs as its own.

A module subclasses what applies and has a fixture `executor`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama

from leaves.model import Matrix
from leaves.parallel import map_in_order
from leaves.ports import Example, Executor, NoiseReason, Progress, Schedule, TrainJob
from leaves.training.child import ChildTrainer, TrainingError
from node.executors import ExecutorClosedError, WorkerDiedError
from node.frames import ASIDE_BYTES_MIN, FrameError
from node.spreading import ExecutorTrainer


@dataclass(frozen=True, slots=True)
class Part:
    reason: NoiseReason
    rows: tuple[int, ...]


class Contract:
    """What holds of every executor."""

    def test_a_job_gives_its_result(self, executor: Executor) -> None:
        assert executor.submit(divmod, 17, 5).result() == (3, 2)

    def test_a_job_that_fails_fails_its_own_future_alone(self, executor: Executor) -> None:
        failing, sound = executor.submit(divmod, 1, 0), executor.submit(divmod, 1, 1)
        with pytest.raises(ZeroDivisionError):
            failing.result()
        assert sound.result() == (1, 0)

    def test_a_closed_executor_takes_no_job(self, executor: Executor) -> None:
        executor.close()
        with pytest.raises(ExecutorClosedError):
            executor.submit(divmod, 1, 1)

    def test_an_executor_may_be_closed_twice(self, executor: Executor) -> None:
        executor.close()
        executor.close()

    def test_many_items_give_the_results_of_doing_them_in_order(self, executor: Executor) -> None:
        told: list[Progress] = []
        results = map_in_order(executor, abs, range(-9, 9), told.append)
        assert results == [abs(x) for x in range(-9, 9)]
        assert (told[-1].done, told[-1].total) == (18, 18)

    def test_the_first_item_that_fails_is_the_failure_of_all(self, executor: Executor) -> None:
        with pytest.raises(ZeroDivisionError):
            map_in_order(executor, partial(divmod, 1), [1, 0, 2])

    def test_dataclasses_and_enumerations_come_back_as_they_were(self, executor: Executor) -> None:
        part = Part(NoiseReason.ALONE, (1, 2))
        assert executor.submit(same, part).result() == part

    @pytest.mark.parametrize("rows", [4, 4 * ASIDE_BYTES_MIN], ids=["small", "large"])
    def test_an_array_is_read_as_it_is(self, executor: Executor, rows: int) -> None:
        matrix = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)[:, ::2]
        sums = executor.submit(sums_of, (matrix, 2.0), matrix).result()
        assert sums == sums_of((matrix, 2.0), matrix)

    def test_an_array_that_is_changed_between_two_jobs_is_read_as_it_is_then(
        self, executor: Executor
    ) -> None:
        matrix = np.zeros((ASIDE_BYTES_MIN, 1), np.float32)
        assert executor.submit(sums_of, (matrix, 0.0), matrix).result()[0] == 0.0
        matrix[0] = 1.0
        assert executor.submit(sums_of, (matrix, 0.0), matrix).result()[0] == 1.0


class ChildContract(Contract):
    """And of those that compute in processes that can be killed. `executor` has one worker."""

    def test_a_worker_that_dies_is_told_and_the_next_job_has_another(
        self, executor: Executor
    ) -> None:
        with pytest.raises(WorkerDiedError):
            executor.submit(die).result()
        assert executor.submit(abs, -3).result() == 3

    def test_what_cannot_be_sent_fails_its_own_job_alone(self, executor: Executor) -> None:
        with pytest.raises(FrameError, match="cannot be sent"):
            executor.submit(abs, object()).result()
        with pytest.raises(RuntimeError, match="cannot be sent"):
            executor.submit(unsendable).result()
        assert executor.submit(abs, -1).result() == 1

    def test_closing_kills_what_runs_and_fails_what_waits(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        found = tmp_path / "pid"
        running = executor.submit(write_pid, str(found))
        waiting = executor.submit(abs, 1)
        until(lambda: found.exists() and bool(found.read_text()))
        executor.close()
        for future in (running, waiting):
            with pytest.raises(ExecutorClosedError):
                future.result(timeout=60)
        until(lambda: ended(int(found.read_text())))

    def test_a_job_that_waits_can_be_cancelled_and_is_not_begun(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        gate, mark = tmp_path / "gate", tmp_path / "mark"
        first = executor.submit(wait_for, str(gate))
        second = executor.submit(write_pid, str(mark))
        third = executor.submit(abs, -2)
        assert second.cancel()
        gate.touch()
        assert first.result() and third.result() == 2 and second.cancelled()
        assert not mark.exists()

    def test_a_worker_gives_way_to_other_work(self, executor: Executor) -> None:
        assert executor.submit(os.nice, 0).result() >= min(os.nice(0) + 10, 19)

    def test_jobs_may_be_handed_over_from_several_threads(self, executor: Executor) -> None:
        futures: list[Future[int]] = []
        threads = [
            threading.Thread(target=lambda n=n: futures.append(executor.submit(abs, -n)))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait(futures)
        assert sorted(future.result() for future in futures) == [0, 1, 2, 3]


def examples(count: int) -> tuple[Example, ...]:
    return tuple(
        Example(f"s{n:03}", f"what is behind door {n}?", f"the hall with {n % 7} lamps")
        for n in range(count)
    )


class TrainingContract:
    """What holds of trainings on every executor of children."""

    @pytest.fixture
    def chassis(self, tmp_path: Path) -> Path:
        (tmp_path / "chassis").mkdir()
        return tiny_llama.build(tmp_path / "chassis")

    def test_a_training_ends_in_the_bytes_that_a_child_of_ours_makes(
        self, executor: Executor, chassis: Path, tmp_path: Path
    ) -> None:
        schedule = Schedule(steps=4, batch=4, learning_rate=5e-3)
        job = TrainJob(tmp_path / "there", chassis, examples(12), schedule)
        there = ExecutorTrainer(executor, dtype="float32").train(job)
        ours = ChildTrainer(dtype="float32").train(replace(job, work=tmp_path / "ours"))
        assert there.adapter.read_bytes() == ours.adapter.read_bytes()
        left = {path.name for path in job.work.iterdir()}
        assert left == {path.name for path in ours.adapter.parent.iterdir()}

    def test_a_training_that_is_told_to_end_does_and_keeps_its_checkpoint(
        self, executor: Executor, chassis: Path, tmp_path: Path
    ) -> None:
        schedule = Schedule(steps=20_000, batch=4)
        job = TrainJob(tmp_path / "work", chassis, examples(12), schedule)

        def enough(progress: Progress) -> None:
            assert progress.total == schedule.steps
            if progress.done > job.checkpoint_steps:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ExecutorTrainer(executor, dtype="float32").train(job, enough)
        kept = {path.name for path in job.work.iterdir()}
        assert kept and not kept & {"adapter.safetensors", "stop", "progress.json"}
        assert executor.submit(abs, -4).result() == 4

    def test_a_training_that_fails_says_why(self, executor: Executor, tmp_path: Path) -> None:
        job = TrainJob(tmp_path / "work", tmp_path / "nothing", examples(12), Schedule())
        with pytest.raises(TrainingError, match="nothing"):
            ExecutorTrainer(executor).train(job)


def same(value: Any) -> Any:
    return value


def sums_of(weighted: tuple[Matrix, float], matrix: Matrix) -> tuple[float, float, float]:
    one, other = (float(each.sum(dtype=np.float64)) for each in (weighted[0], matrix))
    return one, weighted[1], other


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unsendable() -> object:
    return object()


def write_pid(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def wait_for(path: str) -> bool:
    until(Path(path).exists)
    return True


def until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take note."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return not stat.parent.parent.joinpath("self").exists()
