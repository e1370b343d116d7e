"""The last step: an adapter and all that is known of it, as the one blob that may travel."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..bundle import (
    EvaluationFigures,
    GainFigures,
    Label,
    PreferenceFigures,
    Privacy,
    encode_label,
    pack,
    read_adapter,
)
from ..model import Evaluation, Interval, LeafId, PreferenceEvaluation
from .chassis import Chassis

LICENCE = "Apache-2.0"
_PLACES = 4  # of a published figure: floating sums differ between machines further on


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an adapter comes from, as its label tells it."""

    leaf: LeafId
    name: str
    method: str  # "sft", "sft+dpo" or "control"
    dtype: str
    tokens: int
    privacy: Privacy
    terms: str  # which sessions it was allowed to learn from
    lineage: Sequence[LeafId] = ()


def package(
    adapter: bytes,
    chassis: Chassis,
    origin: Origin,
    evaluation: Evaluation | None,
    *,
    control_root: str = "",
    control_bytes: int = 0,
) -> bytes:
    """Return the bundle. Our own adapter passes the same checks as a peer's, or is not packed.

    evaluation is None for a style control. control_root: the address of the style control's own
    bundle, so that receivers can judge by the same measure. Raises BundleError if the adapter
    would be refused.
    """
    read = read_adapter(adapter, chassis)
    label = Label(
        leaf=origin.leaf,
        name=origin.name,
        chassis=chassis.tag8.hex(),
        adapter=hashlib.sha256(adapter).hexdigest(),
        rank=read.rank,
        alpha=read.alpha,
        targets=read.targets,
        method=origin.method,
        dtype=origin.dtype,
        tokens=origin.tokens,
        evaluation=_figures(evaluation) if evaluation else None,
        control_root=control_root,
        control_bytes=control_bytes,
        privacy=origin.privacy,
        lineage=tuple(origin.lineage),
        licence=LICENCE,
        terms=origin.terms,
    )
    return pack(encode_label(label), adapter)


def _figures(evaluation: Evaluation) -> EvaluationFigures:
    previous, rise = evaluation.over_previous, evaluation.general_rise
    return EvaluationFigures(
        held_out=evaluation.held_out,
        loss=round(evaluation.loss, _PLACES),
        over_parent=_gain(evaluation.over_parent),
        over_style=_gain(evaluation.over_style),
        over_previous=_gain(previous) if previous else None,
        general_rise=None if rise is None else round(rise, _PLACES),
        verdict=evaluation.verdict.value,
        at=evaluation.at,
        confidence=round(evaluation.confidence, 6),
        attempt=evaluation.attempt,
        margin=round(evaluation.margin, _PLACES),
        answers=evaluation.answers,
        right_before=round(evaluation.right[0], _PLACES) if evaluation.right else None,
        right_after=round(evaluation.right[1], _PLACES) if evaluation.right else None,
        preference=_preference(evaluation.preference) if evaluation.preference else None,
    )


def _preference(preference: PreferenceEvaluation) -> PreferenceFigures:
    return PreferenceFigures(
        pairs=preference.pairs,
        accuracy_before=round(preference.accuracy_before, _PLACES),
        accuracy_after=round(preference.accuracy_after, _PLACES),
        gain=_gain(preference.gain),
        loss_rise=round(preference.loss_rise, _PLACES),
        verdict=preference.verdict.value,
    )


def _gain(interval: Interval) -> GainFigures:
    return GainFigures(
        round(interval.mean, _PLACES), round(interval.low, _PLACES), round(interval.high, _PLACES)
    )
