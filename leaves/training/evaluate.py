"""Whether an adapter is better: losses measured side by side, and a judgement with a bound.

`measure` runs in the child. Judging is pure and runs anywhere: a paired bootstrap over sessions,
by group where sessions are near-copies, because a mean alone calls noise a gain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..model import Evaluation, Instant, Interval, Verdict
from ..ports import EvaluateJob, Losses, Progress, Report
from .encode import TOKENS_MAX, Encoder, chunks

if TYPE_CHECKING:
    from .backend import Backend

HELD_OUT_MIN = 20  # fewer give no verdict: a percentile bootstrap on so few is too lenient
STYLE_MARGIN = 0.08  # nats per token; two controls of other seeds differ by up to 0.05
GENERAL_RISE_MAX = 0.02
IMPROVED_MEAN_MIN = 0.02
HOLDS_LOW_MIN = -0.02
_RESAMPLES = 10_000
_CONFIDENCE = 0.95


def measure(
    job: EvaluateJob, backend: Backend, bind: Callable[[Path | None], None], report: Report
) -> Losses:
    """Measure each example under each adapter. `bind` puts an adapter's file on the backend."""
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
        by_label[label] = tuple(losses)
    return Losses(by_label, tuple(session.completion for session in encoded))


def bootstrap(
    differences: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    confidence: float = _CONFIDENCE,
    resamples: int = _RESAMPLES,
) -> Interval:
    """The mean of paired differences, with its one-sided bounds at `confidence` each.

    groups: one for each difference; whole groups are drawn. The draw is seeded by the shape of the
    data alone, so that the same losses give the same verdict wherever they are judged.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        return Interval(0.0, 0.0, 0.0)
    sums, counts = _by_group(values, groups)
    seed = hashlib.sha256(b"groove/bootstrap/1" + repr((len(sums), resamples)).encode()).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(seed[:8], "big")))
    drawn = random.integers(0, len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [1 - confidence, confidence])
    return Interval(float(values.mean()), float(low), float(high))


def _by_group(
    values: NDArray[np.float64], groups: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} differences")
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros(int(index.max()) + 1)
    np.add.at(sums, index, values)
    return sums, np.bincount(index).astype(np.float64)


def judge(
    losses: Mapping[str, Sequence[float]],
    *,
    groups: Sequence[str] | None = None,
    general: Mapping[str, Sequence[float]] | None = None,
    style_margin: float = STYLE_MARGIN,
    confidence: float = _CONFIDENCE,
    at: Instant,
) -> Evaluation:
    """Judge a candidate by held-out losses under the labels candidate, parent, style, and previous
    if there is one.

    It wins if the lower bounds of its gains are above 0 against the parent and above `style_margin`
    against the style control, and the upper bound of the rise on `general` text (labels candidate
    and parent) stays below 0.02. confidence: of each one-sided bound; a caller that tries again on
    the same sessions asks for more.
    """
    count = len(losses["candidate"])
    over = {
        rival: _gain(losses[rival], losses["candidate"], groups, confidence)
        for rival in ("parent", "style", "previous")
        if rival in losses
    }
    rise = None
    if general is not None:
        rise = _gain(general["candidate"], general["parent"], None, confidence).high
    won = (
        count >= HELD_OUT_MIN
        and over["parent"].low > 0
        and over["style"].low > style_margin
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
        verdict=_verdict(count, won, previous),
        at=at,
    )


def _gain(
    rival: Sequence[float],
    candidate: Sequence[float],
    groups: Sequence[str] | None,
    confidence: float,
) -> Interval:
    pairs = zip(rival, candidate, strict=True)
    return bootstrap([theirs - ours for theirs, ours in pairs], groups, confidence=confidence)


def _verdict(count: int, won: bool, over_previous: Interval | None) -> Verdict:
    if count < HELD_OUT_MIN:
        return Verdict.TOO_FEW
    if over_previous is None:
        return Verdict.BETTER if won else Verdict.NOT_BETTER
    if over_previous.low > 0 and over_previous.mean >= IMPROVED_MEAN_MIN:
        return Verdict.IMPROVED
    return Verdict.HOLDS if over_previous.low > HOLDS_LOW_MIN else Verdict.REGRESSED
