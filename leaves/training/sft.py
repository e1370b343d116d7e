"""Supervised training of one adapter: an own loop, resumable to the bit.

Each step is a function of the job and of what the steps before it left, so a training that was
killed goes on from its checkpoint and ends in the same bytes. (On another type of CPU the bytes
differ: peers judge an adapter by its losses, never by training it again.)
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from ..bundle import read_adapter
from ..ports import Progress, Report, Schedule, Trained, TrainJob
from . import checkpoint
from .adapter import Adapters
from .backend import Backend, fastest_dtype, open_backend
from .chassis import Chassis, open_chassis
from .checkpoint import Place, write_whole
from .encode import Encoded, Encoder, chunks

ADAPTER, RESULT = "adapter.safetensors", "result.json"
_CHECKPOINT_STEPS = 4
_WINDOW = 4  # batches drawn together and cut by length: less padding, still a random order
_BETAS, _EPS, _CLIP = (0.9, 0.999), 1e-8, 1.0
_STATE = ("values", "mean", "square")


@dataclass(frozen=True, slots=True)
class _Result:
    """What is left in the working folder when a training is done."""

    job: str
    trained: Trained


def train(
    job: TrainJob,
    report: Report,
    *,
    dtype: torch.dtype | None = None,
    open_model: Callable[[Path, torch.dtype], Backend] = open_backend,
) -> Trained:
    """Train the job's adapter; `job.work` holds it, and the checkpoint until it is done.

    dtype: of the chassis; None asks the CPU which is faster, or the checkpoint which it was.
    """
    if not job.examples:
        raise ValueError("no examples to train on")
    fingerprint = _fingerprint(job)
    job.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    finished = _finished(job.work, fingerprint)
    if finished:
        return finished
    chassis = open_chassis(job.chassis)
    schedule = job.schedule
    shapes = chassis.adapter_shapes(schedule.rank, chassis.targets)
    adapters = Adapters(shapes, schedule.rank, schedule.alpha)
    state = {"values": adapters.values, "mean": torch.zeros_like(adapters.values)}
    state["square"] = torch.zeros_like(adapters.values)
    found = checkpoint.load(job.work, adapters.values.numel(), _STATE)
    if found and found[0].job == fingerprint:
        place = found[0]
        for name in _STATE:
            state[name].copy_(found[1][name])
    else:
        chosen = str(dtype or fastest_dtype()).removeprefix("torch.")
        place = Place(fingerprint, chosen, 0, 0, 0.0, ())
        _start(adapters, job, chassis)
    report(Progress("train", place.step, schedule.steps, "loading the chassis"))
    model = open_model(chassis.path, getattr(torch, place.dtype))
    model.bind(adapters)
    encoded = Encoder(chassis.path).encode_all(job.examples, tokens_max=schedule.tokens_max)
    place = _run(job, model, adapters, state, encoded, place, report)
    return _finish(job.work, adapters, place)


def _run(
    job: TrainJob,
    model: Backend,
    adapters: Adapters,
    state: dict[str, torch.Tensor],
    encoded: Sequence[Encoded],
    place: Place,
    report: Report,
) -> Place:
    schedule = job.schedule
    plan = batches([len(session.tokens) for session in encoded], schedule)
    for step in range(place.step, schedule.steps):
        start = time.monotonic()
        batch = [encoded[index] for index in plan[step]]
        adapters.grads.zero_()
        loss = 0.0
        for part in chunks(batch):
            loss += model.train([batch[index] for index in part], 1 / len(batch))
        adamw(adapters.grads, state, step, learning_rate(schedule, step))
        model.refresh()
        place = Place(
            place.job,
            place.dtype,
            step + 1,
            place.tokens + sum(len(session.tokens) for session in batch),
            place.seconds + time.monotonic() - start,
            (*place.losses, loss),
        )
        if place.step % _CHECKPOINT_STEPS == 0 and place.step < schedule.steps:
            checkpoint.save(job.work, place, state)
        report(Progress("train", place.step, schedule.steps, _rate(place, schedule.steps)))
    return place


def _rate(place: Place, steps: int) -> str:
    left_s = place.seconds / place.step * (steps - place.step)
    return f"{place.tokens / place.seconds:.0f} tokens/s, {left_s:.0f} s left"


def _start(adapters: Adapters, job: TrainJob, chassis: Chassis) -> None:
    if job.warm_start is None:
        adapters.initialise(job.schedule.seed)
        return
    before = read_adapter(job.warm_start.read_bytes(), chassis)
    if (before.rank, before.alpha, before.targets) != (
        adapters.rank,
        adapters.alpha,
        chassis.targets,
    ):
        raise ValueError(
            f"{job.warm_start}: rank {before.rank}, alpha {before.alpha} on {before.targets}; "
            f"the schedule asks rank {adapters.rank}, alpha {adapters.alpha} on {chassis.targets}"
        )
    adapters.load(before.tensors)


def batches(lengths: Sequence[int], schedule: Schedule) -> list[list[int]]:
    """Which sessions each step sees: shuffled epochs, alike in length within a batch. Pure."""
    order = random.Random(schedule.seed)
    wanted = schedule.steps * schedule.batch
    stream: list[int] = []
    while len(stream) < wanted:
        epoch = list(range(len(lengths)))
        order.shuffle(epoch)
        stream += epoch
    plan: list[list[int]] = []
    size = schedule.batch
    for start in range(0, wanted, size * _WINDOW):
        window = stream[start : min(start + size * _WINDOW, wanted)]
        window.sort(key=lambda index: lengths[index])
        cut = [window[at : at + size] for at in range(0, len(window), size)]
        order.shuffle(cut)
        plan += cut
    return plan


def learning_rate(schedule: Schedule, step: int) -> float:
    """A few steps of linear warm-up, then linear decay that would reach zero after the last."""
    if step < schedule.warmup:
        return schedule.learning_rate * (step + 1) / schedule.warmup
    left = schedule.steps - step
    return schedule.learning_rate * left / max(schedule.steps - schedule.warmup, 1)


def adamw(
    grads: torch.Tensor, state: dict[str, torch.Tensor], step: int, learning_rate: float
) -> None:
    """One step of Adam on flat vectors, the gradient's norm clipped to 1; no weight decay."""
    grads.mul_(min(1.0, _CLIP / (float(grads.norm()) + 1e-6)))
    mean, square = state["mean"], state["square"]
    mean.mul_(_BETAS[0]).add_(grads, alpha=1 - _BETAS[0])
    square.mul_(_BETAS[1]).addcmul_(grads, grads, value=1 - _BETAS[1])
    size = learning_rate / (1 - _BETAS[0] ** (step + 1))
    spread = (square / (1 - _BETAS[1] ** (step + 1))).sqrt_().add_(_EPS)
    state["values"].addcdiv_(mean, spread, value=-size)


def _fingerprint(job: TrainJob) -> str:
    """What must be equal for a checkpoint to be of use."""
    digest = hashlib.sha256(b"groove/train/1")
    digest.update(open_chassis(job.chassis).sha256.encode())
    digest.update(msgspec.json.encode((job.examples, job.schedule), order="deterministic"))
    if job.warm_start:
        digest.update(hashlib.sha256(job.warm_start.read_bytes()).digest())
    return digest.hexdigest()


def _finished(work: Path, fingerprint: str) -> Trained | None:
    """The result of the same job, done before, if its adapter is still the same."""
    path = work / RESULT
    if not path.exists():
        return None
    result = msgspec.json.decode(path.read_bytes(), type=_Result, dec_hook=lambda kind, v: kind(v))
    adapter = work / ADAPTER
    if result.job != fingerprint or not adapter.exists():
        return None
    if hashlib.sha256(adapter.read_bytes()).hexdigest() != result.trained.sha256:
        return None
    return replace(result.trained, adapter=adapter)


def _finish(work: Path, adapters: Adapters, place: Place) -> Trained:
    data = adapters.file()
    write_whole(work / ADAPTER, data)
    edge = max(len(place.losses) // 4, 1)
    trained = Trained(
        adapter=work / ADAPTER,
        sha256=hashlib.sha256(data).hexdigest(),
        tokens=place.tokens,
        seconds=place.seconds,
        loss_first=sum(place.losses[:edge]) / edge,
        loss_last=sum(place.losses[-edge:]) / edge,
        dtype=place.dtype,
    )
    result = _Result(place.job, trained)
    write_whole(work / RESULT, msgspec.json.encode(result, enc_hook=str))
    (work / checkpoint.NAME).unlink(missing_ok=True)
    return trained
