"""The loop of supervised training: checkpoints, progress, pauses, devices and hostile sessions."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny_llama
import torch

from leaves.bundle import read_adapter
from leaves.ports import Example, Progress, Report, Schedule, TrainJob, silent
from leaves.training.backend import best_device, fastest_dtype
from leaves.training.chassis import open_chassis
from leaves.training.checkpoint import Place
from leaves.training.child import ChildTrainer
from leaves.training.sft import train

SCHEDULE = Schedule(steps=8, batch=4, learning_rate=5e-3)


class StopError(Exception):
    """Raised by a report, which is how work is cancelled."""


def examples(count: int) -> tuple[Example, ...]:
    asks = (f"what does step {n} of the tour do?" for n in range(count))
    answers = (f"it turns stone {n % 7} to sand" for n in range(count))
    return tuple(Example(ask, ask, answer) for ask, answer in zip(asks, answers, strict=True))


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


@pytest.fixture(autouse=True)
def _no_autograd() -> object:
    """As in the child: our own backward needs none."""
    with torch.no_grad():
        yield


def stop_at(step: int) -> Report:
    def report(progress: Progress) -> None:
        if progress.done == step:
            raise StopError

    return report


@pytest.mark.parametrize(("every", "begins_at"), [(1, 5), (3, 3), (100, 0)])
def test_a_checkpoint_is_written_after_so_many_steps(
    tmp_path: Path, chassis: Path, every: int, begins_at: int
) -> None:
    job = TrainJob(tmp_path, chassis, examples(12), SCHEDULE, checkpoint_steps=every)
    with pytest.raises(StopError):
        train(job, stop_at(5), dtype=torch.float32)
    told: list[Progress] = []
    train(job, told.append, dtype=torch.float32)
    assert told[0].done == begins_at


def test_a_resumed_training_counts_each_step_once(tmp_path: Path, chassis: Path) -> None:
    def job(name: str) -> TrainJob:
        return TrainJob(tmp_path / name, chassis, examples(12), SCHEDULE)

    unbroken = train(job("unbroken"), silent, dtype=torch.float32)
    with pytest.raises(StopError):
        train(job("broken"), stop_at(6), dtype=torch.float32)
    told: list[Progress] = []
    resumed = train(job("broken"), told.append, dtype=torch.float32)
    assert resumed.sha256 == unbroken.sha256
    assert resumed.tokens == unbroken.tokens
    assert [progress.done for progress in told] == [4, 5, 6, 7, 8]
    rate = re.fullmatch(r"(\d+) tokens/s, 0 s left", told[-1].detail)
    assert rate and int(rate[1]) == round(resumed.tokens / resumed.seconds)


def test_a_pause_hardly_counts_as_time_of_work() -> None:
    place = Place("job", "float32", 4, 1000, 10.0, (1.0,) * 4)
    assert place.after_step(200, 3600.0, 0.9).seconds == pytest.approx(10 + 5 * 2)
    assert place.after_step(200, 6.0, 0.9) == Place("job", "float32", 5, 1200, 16, (*[1] * 4, 0.9))
    assert Place("job", "float32", 0, 0, 0.0, ()).after_step(100, 7.0, 2.0).seconds == 7


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_checkpoint(
    tmp_path: Path, chassis: Path
) -> None:
    steep = Schedule(steps=30, batch=4, learning_rate=1e30, warmup=0)
    job = TrainJob(tmp_path, chassis, examples(12), steep, checkpoint_steps=1)
    with pytest.raises(ValueError, match=r"step \d+: the loss or its gradient is not finite"):
        train(job, silent, dtype=torch.float32)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"checkpoint.safetensors"}, "no adapter came of it"


def test_a_paused_child_computes_nothing_and_goes_on_to_the_same_bytes(
    tmp_path: Path, chassis: Path
) -> None:
    trainer = ChildTrainer(dtype="float32")
    paused: list[int] = []

    def pause_at_3(progress: Progress) -> None:
        if progress.done == 3:
            child = next(iter(psutil.Process().children()))
            trainer.pause()
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            before = child.cpu_times()[:2]
            assert child.status() == psutil.STATUS_STOPPED
            assert child.cpu_times()[:2] == before
            paused.append(child.pid)
            trainer.resume()

    job = TrainJob(tmp_path / "paused", chassis, examples(12), SCHEDULE)
    trained = trainer.train(job, pause_at_3)
    other = TrainJob(tmp_path / "unbroken", chassis, examples(12), SCHEDULE)
    assert trained.sha256 == ChildTrainer(dtype="float32").train(other).sha256
    assert paused


HOSTILE = {
    "empty": "",
    "one letter": "a",
    "long word": "x" * 100_000,
    "long text": "of all the words " * 6_000,
    "only marks": "<|im_end|><|im_start|><|endoftext|>" * 50,
    "zeros": "\x00" * 300,
    "not text": "\u202e\ufeff\U000e0041\uffff" * 40,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_session_is_trained_on_without_harm(
    tmp_path: Path, chassis: Path, name: str, dtype: torch.dtype
) -> None:
    text = HOSTILE[name]
    hostile = (Example("h1", "ask", text), Example("h2", text, "answer"), Example("h3", text, text))
    schedule = Schedule(steps=3, batch=4, learning_rate=5e-3)
    job = TrainJob(tmp_path, chassis, (*hostile, *examples(2)), schedule)
    trained = train(job, silent, dtype=dtype)
    assert np.isfinite([trained.loss_first, trained.loss_last]).all()
    read = read_adapter(trained.adapter.read_bytes(), open_chassis(chassis))
    assert all(np.isfinite(tensor).all() for tensor in read.tensors.values())


def test_a_batch_of_empty_completions_alone_teaches_to_end(tmp_path: Path, chassis: Path) -> None:
    schedule = Schedule(steps=8, batch=4, learning_rate=5e-3)
    empty = tuple(Example(str(n), f"ask {n}", "") for n in range(4))
    trained = train(TrainJob(tmp_path, chassis, empty, schedule), silent, dtype=torch.float32)
    assert trained.loss_last < trained.loss_first


def test_no_examples_and_no_room_for_tokens_are_refused(tmp_path: Path, chassis: Path) -> None:
    with pytest.raises(ValueError, match="no examples"):
        train(TrainJob(tmp_path, chassis, (), SCHEDULE), silent)
    narrow = Schedule(tokens_max=1)
    with pytest.raises(ValueError, match="tokens_max must be at least 2, not 1"):
        train(TrainJob(tmp_path, chassis, examples(4), narrow), silent, dtype=torch.float32)


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted", "chosen"),
    [
        (False, False, "", "cpu"),
        (True, False, "", "cuda"),
        (False, True, "", "mps"),
        (True, True, "", "cuda"),
        (True, True, "cpu", "cpu"),
        (True, True, "mps", "mps"),
        (True, False, "cuda:1", "cuda:1"),
    ],
)
def test_the_device_is_the_one_named_or_the_best_that_is_here(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, wanted: str, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setenv("GROOVE_DEVICE", wanted)
    assert best_device() == torch.device(chosen)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("gpu", "is no device; use cpu, cuda or mps"), ("cuda", "this machine has cpu")],
)
def test_a_device_that_is_not_here_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, wanted: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("GROOVE_DEVICE", wanted)
    with pytest.raises(ValueError, match=f"GROOVE_DEVICE='{wanted}'.*{said}"):
        best_device()


@pytest.mark.parametrize("short", [True, False], ids=["bf16", "fp32"])
def test_a_gpu_computes_in_bfloat16_if_it_can(monkeypatch: pytest.MonkeyPatch, short: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: short)
    monkeypatch.delenv("GROOVE_DEVICE", raising=False)
    assert fastest_dtype() == (torch.bfloat16 if short else torch.float32)
