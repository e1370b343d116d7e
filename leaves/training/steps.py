"""The steps of a training, whatever is learned: which samples, how fast, and what a kill leaves.

Each step is a function of the job and of what the steps before it left.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..ports import Progress, Report, Schedule
from . import checkpoint
from .adapter import Adapters
from .backend import Backend
from .checkpoint import Place

_WINDOW = 4  # batches drawn together and cut by length: less padding, still a random order
_BETAS, _EPS, _CLIP = (0.9, 0.999), 1e-8, 1.0
_STATE = ("values", "mean", "square")

# Adds one step's gradient to the adapters'; gives its tokens and its loss.
Learn = Callable[[int], tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Steps:
    """One training's optimiser, and where it keeps its place."""

    work: Path
    schedule: Schedule
    checkpoint_steps: int
    adapters: Adapters
    state: dict[str, torch.Tensor]

    @classmethod
    def of(cls, work: Path, schedule: Schedule, checkpoint_steps: int, adapters: Adapters) -> Steps:
        """The state is the adapters' values, which stay theirs, and Adam's two means of zero."""
        state = {name: torch.zeros_like(adapters.values) for name in _STATE[1:]}
        return cls(work, schedule, checkpoint_steps, adapters, {"values": adapters.values, **state})

    def resume(self, job: str) -> Place | None:
        """Take over the checkpoint of this job, if there is one, and say how far it is."""
        found = checkpoint.load(self.work, self.adapters.values.numel(), _STATE)
        if found is None or found[0].job != job:
            return None
        for name in _STATE:
            self.state[name].copy_(found[1][name])
        return found[0]

    def take(self, phase: str, place: Place, model: Backend, learn: Learn, report: Report) -> Place:
        """Take the steps that are left, with a checkpoint every few; raises ValueError if a loss
        or a gradient is not finite."""
        adapters, schedule = self.adapters, self.schedule
        for step in range(place.step, schedule.steps):
            start = time.monotonic()
            adapters.grads.zero_()
            tokens, loss = learn(step)
            if not (math.isfinite(loss) and bool(adapters.grads.isfinite().all())):
                raise ValueError(
                    f"step {step + 1}: the loss or its gradient is not finite; use a learning rate "
                    f"below {schedule.learning_rate:g}"
                )
            adamw(adapters.grads, self.state, step, learning_rate(schedule, step))
            model.refresh()
            place = place.after_step(tokens, time.monotonic() - start, loss)
            if place.step % self.checkpoint_steps == 0 and place.step < schedule.steps:
                checkpoint.save(self.work, place, self.state)
            report(Progress(phase, place.step, schedule.steps, _rate(place, schedule.steps)))
        return place


def _rate(place: Place, steps: int) -> str:
    left_s = place.seconds / place.step * (steps - place.step)
    return f"{place.tokens / place.seconds:.0f} tokens/s, {left_s:.0f} s left"


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
