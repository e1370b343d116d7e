"""One prompt to its leaf: who would serve it, how sure the router is, what the leaf gains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leaves.ports import EvaluateJob, Example, Report, silent
from router.table import Considered, Route

from .errors import OwnerError

if TYPE_CHECKING:
    from .app import App


class NoTableError(OwnerError):
    """Nothing can be routed yet."""


def route(app: App, prompt: str, answer: str | None, report: Report = silent) -> dict[str, Any]:
    """Route a prompt by the table in force.

    answer: a known answer; then its loss, in nats per token, is measured under the chassis and
    under the adapter that would serve. Nothing of prompt or answer is kept.
    """
    table = app.tables.load()
    if table is None:
        raise NoTableError(
            "there is no routing table yet",
            unchanged="Nothing was done.",
            next_step="Run `groove-node round`: it builds one, at first of ten starters.",
        )
    vector = app.encoder().encode_one(prompt)
    chosen = table.route(vector)
    result = _described(chosen, table.explain(vector))
    server = chosen.served_by
    if chosen.leaf is not None and not chosen.leaf.origin:
        app.forests.routed(chosen.leaf.leaf, app.now())
    if answer is not None:
        bundle = server.bundle if server else None
        result["loss"] = _loss(app, prompt, answer, bundle, report)
    return result


def _loss(
    app: App, prompt: str, answer: str, bundle: str | None, report: Report
) -> dict[str, float]:
    example = (Example("asked", prompt, answer),)
    with app.adapter_files([bundle]) as (leaf,):
        adapters = (("chassis", None), *((("leaf", leaf),) if leaf else ()))
        losses = app.evaluator.losses(EvaluateJob(app.chassis.path, example, adapters), report)
    return {label: round(values[0], 4) for label, values in losses.by_label.items()}


def _described(route_: Route, considered: list[Considered]) -> dict[str, Any]:
    leaf, server = route_.leaf, route_.served_by
    return {
        "leaf": leaf.leaf if leaf else None,
        "leaf_name": leaf.name if leaf else "chassis",
        "confidence": round(route_.score, 4),
        "gate": round(route_.gate, 4),
        "level": route_.level,
        "served_by": server.leaf if server else None,
        "served_by_name": server.name if server else "chassis",
        "origin": server.origin if server else "",
        "fallback_used": route_.fallback_used,
        "candidates": [
            {
                "leaf": each.entry.leaf,
                "name": each.entry.name,
                "level": each.entry.level,
                "cosine": round(each.score, 4),
                "gate": round(each.gate, 4),
                "passes": each.passed,
            }
            for each in considered
        ],
    }
