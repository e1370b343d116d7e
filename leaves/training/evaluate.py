"""Whether an adapter is better: losses measured side by side, and a judgement with a bound.

`measure` runs in the child. Judging is pure and runs anywhere: paired differences over sessions,
by group where sessions are near-copies, because a mean alone calls noise a gain. A win stands
against three kinds of luck: of the sessions, by the bound; of the run, by the margin over the style
control; and of many nights, by a bound that is stricter at each look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bundle import BundleError
from ..model import HOLDS_LOW_MIN, Evaluation, Instant, Interval, Verdict
from ..ports import EvaluateJob, Losses, Progress, Report
from .bounds import bootstrap, lower_bound
from .encode import TOKENS_MAX, Encoder, chunks
from .margin import STYLE_MARGIN

if TYPE_CHECKING:
    from .backend import Backend

__all__ = [
    "HELD_OUT_MIN",
    "PARENT_MARGIN",
    "STYLE_MARGIN",
    "bootstrap",
    "judge",
    "measure",
    "verdict_of",
]

HELD_OUT_MIN = 20  # fewer give no verdict: bounds on so few are not worth having
GENERAL_RISE_MAX = 0.02
IMPROVED_MEAN_MIN = 0.02
# In nats per token, over a parent that is an adapter. Trained twice on the same, it differs from
# itself by about so much, and the bound knows the luck of sessions only: without a margin a child
# that learned nothing stands above it on a third of nights. The bare chassis is always the same.
PARENT_MARGIN = 0.02


def measure(
    job: EvaluateJob, backend: Backend, bind: Callable[[Path | None], None], report: Report
) -> Losses:
    """Measure each example under each adapter. `bind` puts an adapter's file on the backend.

    Raises BundleError if an adapter makes of a loss what is no number, ValueError if the chassis
    itself does.
    """
    encoded = Encoder(job.chassis).encode_all(job.examples, tokens_max=TOKENS_MAX)
    parts = list(chunks(encoded))
    total, done = len(parts) * len(job.adapters), 0
    by_label: dict[str, tuple[float, ...]] = {}
    for label, adapter in job.adapters:
        bind(adapter)
        losses = [0.0] * len(encoded)
        for part in parts:
            values = backend.losses([encoded[index] for index in part])
            for index, value in zip(part, values, strict=True):
                losses[index] = value
            done += 1
            report(Progress("evaluate", done, total, label))
        if not all(map(math.isfinite, losses)):
            wrong = f"a loss under {label!r} is not finite"
            raise ValueError(wrong) if adapter is None else BundleError(wrong)
        by_label[label] = tuple(losses)
    return Losses(by_label, tuple(session.completion for session in encoded))


def judge(
    losses: Mapping[str, Sequence[float]],
    *,
    groups: Sequence[str] | None = None,
    general: Mapping[str, Sequence[float]] | None = None,
    style_margin: float = STYLE_MARGIN,
    confidence: float = 0.95,
    at: Instant,
    attempt: int = 1,
    parent_margin: float = 0.0,
) -> Evaluation:
    """Judge a candidate by held-out losses under the labels candidate, parent, style, and previous
    if there is one.

    It wins if the lower bounds of its gains are above `parent_margin` against the parent and above
    `style_margin` against the style control, and the upper bound of the rise on `general` text
    (labels candidate and parent) stays below 0.02.
    parent_margin: `PARENT_MARGIN` where the parent was trained, and 0 where it is the chassis.
    confidence: of the bounds against parent and style; `alpha.confidence_at(attempt)` for a leaf
    that may be tried again. The intervals of the evaluation, the rise, and what is said of the
    version before are at 95 %: the general texts are the same at every look, so their luck is not
    drawn anew, and replacing a version is no promotion.
    """
    count = len(losses["candidate"])
    gains = {
        rival: [theirs - ours for theirs, ours in zip(values, losses["candidate"], strict=True)]
        for rival, values in losses.items()
        if rival in ("parent", "style", "previous")
    }
    over = {rival: bootstrap(gain, groups) for rival, gain in gains.items()}
    decided = _decided(over, gains, groups, confidence)
    rise = _rise(general) if general is not None else None
    won = (
        decided is not None
        and decided[0] > parent_margin
        and decided[1] > style_margin
        and (rise is None or rise < GENERAL_RISE_MAX)
    )
    previous = over.get("previous")
    return Evaluation(
        held_out=count,
        loss=float(np.mean(losses["candidate"])) if count else 0.0,
        over_parent=over["parent"],
        over_style=over["style"],
        over_previous=previous,
        general_rise=rise,
        won=won,
        verdict=Verdict.TOO_FEW if decided is None else verdict_of(previous, won=won),
        at=at,
        confidence=confidence,
        attempt=attempt,
        margin=style_margin,
        parent_margin=parent_margin,
        decided=decided,
    )


def _decided(
    over: Mapping[str, Interval],
    gains: Mapping[str, Sequence[float]],
    groups: Sequence[str] | None,
    confidence: float,
) -> tuple[float, float] | None:
    """The bounds over parent and style that decide; None if there is too little to judge by.

    Never above the bounds that are shown, so that what wins is also seen to win.
    """
    if len(gains["style"]) < HELD_OUT_MIN:
        return None
    bounds = [
        min(over[rival].low, lower_bound(gains[rival], groups, confidence=confidence))
        for rival in ("parent", "style")
    ]
    return (bounds[0], bounds[1]) if all(map(math.isfinite, bounds)) else None


def _rise(general: Mapping[str, Sequence[float]]) -> float:
    pairs = zip(general["candidate"], general["parent"], strict=True)
    return bootstrap([ours - theirs for ours, theirs in pairs]).high


def verdict_of(over_previous: Interval | None, *, won: bool) -> Verdict:
    """What a look says that had enough to judge by; a first training is judged by its win."""
    if over_previous is None:
        return Verdict.BETTER if won else Verdict.NOT_BETTER
    if over_previous.low > 0 and over_previous.mean >= IMPROVED_MEAN_MIN:
        return Verdict.IMPROVED
    return Verdict.HOLDS if over_previous.low > HOLDS_LOW_MIN else Verdict.REGRESSED
