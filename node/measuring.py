"""Losses as every step of a training asks for them: numbers, or the training went astray."""

from __future__ import annotations

import math

from leaves.bundle import BundleError
from leaves.ports import EvaluateJob, Evaluator, Report, silent


def measured(
    evaluator: Evaluator, job: EvaluateJob, report: Report = silent
) -> dict[str, tuple[float, ...]]:
    """The losses by label. Raises BundleError if one is no finite number.

    Whatever is computed of such a one is none either: a verdict on it would say nothing.
    """
    by_label = evaluator.losses(job, report).by_label
    for label, losses in by_label.items():
        if not all(map(math.isfinite, losses)):
            raise BundleError(f"a loss under {label!r} is not finite")
    return by_label
