"""A leaf's metadata under the names of the leaf architecture document, for programs to read.

The document's `origin` is `grown_from` here; its `gossip_propagation_count` is how many origins
report usage; its "sft_only" is a leaf without a preference step.
"""

from __future__ import annotations

import datetime
from typing import Any

from .model import Instant, Interval, Leaf, Stage
from .rules import Rules

_SHIPPED = Rules()
_METHODS = {"": None, "sft": "sft_only"}


def metadata(leaf: Leaf, rules: Rules = _SHIPPED) -> dict[str, Any]:
    """Return the fields of §5 and §8; what the leaf does not have yet is None. Dates are UTC."""
    evaluation = leaf.evaluation
    return {
        "leaf_id": leaf.id,
        "stage": leaf.stage.value,
        "origin": leaf.grown_from.value,
        "parent_leaf_id": leaf.parent,
        "lineage": list(leaf.lineage),
        "cluster_id": leaf.cluster,
        "session_count": leaf.sessions,
        "created": _day(leaf.created),
        "growth_rate": _pace(leaf.growth_per_day),
        "first_trained": _day(leaf.first_trained),
        "eval_vs_parent": _gain(evaluation.over_parent) if evaluation else None,
        "confidence_gate": rules.sprout_gate if leaf.stage is Stage.SPROUT else None,
        "training_method": _METHODS.get(leaf.method, leaf.method),
        "maturity_date": _day(leaf.matured_at),
        "retrain_count": max(leaf.trainings - 1, 0),
        "gossip_propagation_count": leaf.used_by,
        "note": leaf.note or None,
    }


def _day(instant: Instant | None) -> str | None:
    if instant is None:
        return None
    return datetime.datetime.fromtimestamp(instant, datetime.UTC).date().isoformat()


def _pace(per_day: float) -> str:
    """ "12/day"; a slow one with the digit that tells it from none."""
    return f"{per_day:.0f}/day" if per_day >= 10 else f"{per_day:.1f}/day"


def _gain(gain: Interval) -> str:
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] nats per token"
