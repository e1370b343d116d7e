"""Preference training of one adapter: DPO on mean log-probabilities, resumable to the bit.

A pair's margin is beta times how much more its chosen answer has gained on the reference than its
rejected one, and its loss is -log sigmoid(margin) (DPO, Rafailov et al. 2023, eq. 7). The
log-probabilities are means over an answer's tokens, as in Tülu 3 (Lambert et al. 2024) and SimPO
(Meng et al. 2024), because a sum is decided by which answer is longer. A share of the chosen
answer's own loss is added (Pang et al. 2024), because DPO alone is content to make both answers
less likely, the rejected one more so.

The losses of a pair's answers stand in one sum, so the gradient is that of plain losses with
weights that are known after the forward: one forward and one backward for both answers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from ..ports import Example, PreferenceJob, Progress, Report, Trained
from . import checkpoint, files, reference
from .adapter import Adapters, Weigh
from .backend import Backend, fastest_dtype, open_backend
from .chassis import open_chassis
from .checkpoint import Place
from .encode import Encoder
from .preference import PairLosses
from .reference import EncodedPair, Reference
from .steps import Steps, batches

ANCHOR = 2.5  # of the chosen answer's loss: as much as a preference pulls at the start, beta / 2


def prefer(
    job: PreferenceJob,
    report: Report,
    *,
    dtype: torch.dtype | None = None,
    open_model: Callable[[Path, torch.dtype], Backend] = open_backend,
) -> Trained:
    """Move the job's warm start towards the chosen answers; `job.work` is used as by `sft.train`.

    dtype: of the chassis; None asks the CPU which is faster, or the reference which it was.
    """
    if not job.pairs:
        raise ValueError("no preference pairs to train on")
    fingerprint = _fingerprint(job)
    job.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    done = files.finished(job.work, fingerprint)
    if done:
        return done
    chassis, schedule = open_chassis(job.chassis), job.schedule
    shapes = chassis.adapter_shapes(schedule.rank, chassis.targets)
    adapters = Adapters(shapes, schedule.rank, schedule.alpha)
    files.warm_start(job.warm_start, adapters, chassis)
    pairs, plan = _planned(job)
    chosen = str(dtype or fastest_dtype()).removeprefix("torch.")
    known = reference.begun(job.work, fingerprint, chosen, len(pairs))
    report(Progress("reference", known.measured, len(pairs), "loading the chassis"))
    model = open_model(chassis.path, getattr(torch, known.dtype))
    model.bind(adapters)
    known = reference.measure(job.work, known, model, pairs, report)
    steps = Steps.of(job.work, schedule, job.checkpoint_steps, adapters)
    place = steps.resume(fingerprint) or Place(fingerprint, known.dtype, 0, 0, 0.0, ())
    model.refresh()

    def learn(step: int) -> tuple[int, float]:
        loss = _learn(model, plan[step], pairs, known, job.beta)
        return sum(pairs[index].length for index in plan[step]), loss

    trained = files.finish(job.work, adapters, steps.take("prefer", place, model, learn, report))
    for name in (checkpoint.NAME, reference.NAME):
        (job.work / name).unlink(missing_ok=True)
    return trained


def _planned(job: PreferenceJob) -> tuple[list[EncodedPair], list[list[int]]]:
    """The pairs that some step sees, and each step's, by their place among them."""
    encoder, tokens_max = Encoder(job.chassis), job.schedule.tokens_max
    pairs = []
    for pair in job.pairs:
        both = (Example("", pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
        pairs.append(EncodedPair(*encoder.encode_all(both, tokens_max=tokens_max)))
    plan = batches([pair.length for pair in pairs], job.schedule)
    used = sorted({index for batch in plan for index in batch})
    place = {index: at for at, index in enumerate(used)}
    return [pairs[index] for index in used], [[place[index] for index in batch] for batch in plan]


def _learn(
    model: Backend,
    batch: Sequence[int],
    pairs: Sequence[EncodedPair],
    known: Reference,
    beta: float,
) -> float:
    """Add the gradient of the batch's mean objective to the adapters', and return that mean."""
    total = 0.0
    for part in reference.parts([pairs[index] for index in batch]):
        here = [batch[index] for index in part]
        before = [known[index] for index in here]
        both = [pairs[index].chosen for index in here] + [pairs[index].rejected for index in here]
        losses = model.learn(both, weights(before, beta, len(batch)))
        total += sum(objective(losses, before, beta))
    return total / len(batch)


def weights(known: Sequence[PairLosses], beta: float, count: int) -> Weigh:
    """Weights of the answers' losses whose sum has the gradient of the mean over `count` pairs.

    The losses are those of all chosen answers, then of all rejected ones. The derivative of
    -log sigmoid(m) is -sigmoid(-m), and that of m by the chosen answer's loss is -beta.
    """

    def weigh(losses: Sequence[float]) -> list[float]:
        pulls = [beta * _sigmoid(-margin) for margin in _margins(losses, known, beta)]
        return [(pull + ANCHOR) / count for pull in pulls] + [-pull / count for pull in pulls]

    return weigh


def objective(losses: Sequence[float], known: Sequence[PairLosses], beta: float) -> list[float]:
    """What each pair adds to the sum that is minimised."""
    return [
        ANCHOR * chosen + max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
        for chosen, margin in zip(losses, _margins(losses, known, beta), strict=False)
    ]


def _margins(losses: Sequence[float], known: Sequence[PairLosses], beta: float) -> list[float]:
    chosen, rejected = losses[: len(known)], losses[len(known) :]
    return [
        beta * ((before.chosen - liked) - (before.rejected - disliked))
        for liked, disliked, before in zip(chosen, rejected, known, strict=True)
    ]


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))  # exp overflows


def _fingerprint(job: PreferenceJob) -> str:
    """What must be equal for a checkpoint to be of use."""
    digest = hashlib.sha256(b"groove/prefer/1")
    digest.update(open_chassis(job.chassis).sha256.encode())
    told = (job.pairs, job.schedule, job.beta, ANCHOR)
    digest.update(msgspec.json.encode(told, order="deterministic"))
    digest.update(hashlib.sha256(job.warm_start.read_bytes()).digest())
    return digest.hexdigest()
