"""Supervised training of one adapter: an own loop, resumable to the bit.

Each step is a function of the job and of what the steps before it left, so a training that was
killed goes on from its checkpoint and ends in the same bytes, with another number of threads too
(measured with 1 and 2 on SmolLM2 in bfloat16). On another type of CPU or device the bytes differ:
peers judge an adapter by its losses, never by training it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from ..ports import Progress, Report, Trained, TrainJob
from . import checkpoint, files
from .adapter import Adapters, Weigh
from .backend import Backend, fastest_dtype, open_backend
from .chassis import open_chassis
from .checkpoint import Place
from .encode import Encoded, Encoder, chunks
from .steps import Steps, adamw, batches, learning_rate

__all__ = ["adamw", "batches", "learning_rate", "train"]


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
    known = files.finished(job.work, fingerprint)
    if known:
        return known
    chassis = open_chassis(job.chassis)
    schedule = job.schedule
    shapes = chassis.adapter_shapes(schedule.rank, chassis.targets)
    adapters = Adapters(shapes, schedule.rank, schedule.alpha)
    steps = Steps.of(job.work, schedule, job.checkpoint_steps, adapters)
    place = steps.resume(fingerprint)
    if place is None:
        chosen = str(dtype or fastest_dtype()).removeprefix("torch.")
        place = Place(fingerprint, chosen, 0, 0, 0.0, ())
        if job.warm_start is None:
            adapters.initialise(schedule.seed)
        else:
            files.warm_start(job.warm_start, adapters, chassis)
    report(Progress("train", place.step, schedule.steps, "loading the chassis"))
    model = open_model(chassis.path, getattr(torch, place.dtype))
    model.bind(adapters)
    encoded = Encoder(chassis.path).encode_all(job.examples, tokens_max=schedule.tokens_max)
    plan = batches([len(session.tokens) for session in encoded], schedule)

    def learn(step: int) -> tuple[int, float]:
        batch = [encoded[index] for index in plan[step]]
        return sum(len(session.tokens) for session in batch), _learn(model, batch)

    trained = files.finish(job.work, adapters, steps.take("train", place, model, learn, report))
    (job.work / checkpoint.NAME).unlink(missing_ok=True)
    return trained


def _learn(model: Backend, batch: Sequence[Encoded]) -> float:
    """Add the gradient of the batch's mean loss to the adapters', and return that mean."""
    loss = 0.0
    for part in chunks(batch):
        losses = model.learn([batch[index] for index in part], _equal(len(batch)))
        loss += sum(losses) / len(batch)
    return loss


def _equal(count: int) -> Weigh:
    """The mean of `count` sessions, whichever part of them is given."""
    return lambda losses: [1 / count] * len(losses)


def _fingerprint(job: TrainJob) -> str:
    """What must be equal for a checkpoint to be of use."""
    digest = hashlib.sha256(b"groove/train/1")
    digest.update(open_chassis(job.chassis).sha256.encode())
    digest.update(msgspec.json.encode((job.examples, job.schedule), order="deterministic"))
    if job.warm_start:
        digest.update(hashlib.sha256(job.warm_start.read_bytes()).digest())
    return digest.hexdigest()
