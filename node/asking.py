"""One prompt to its leaf: who would serve it, how sure the router is, what the leaf gains.

Routing never stands in the way of an answer: without a usable table the chassis answers, and it is
said why.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from leaves.model import Vector
from leaves.ports import EvaluateJob, Example, Report, silent
from router.table import Considered, Entry, Route, Table

from . import deploying, routing, transition
from .shelf import Shelf
from .tables import Kept, RoutingError, Starters

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

_LEVELS = {3: "a specialisation", 2: "a domain", 1: "a branch"}
RIVALS = 3  # leaves that were near and not asked, shown beside those that were


def route(app: App, prompt: str, answer: str | None, report: Report = silent) -> dict[str, Any]:
    """Route a prompt by the table in force; in the first minute, by starters.

    answer: a known answer; then its loss, in nats per token, is measured under the chassis and
    under the adapter that would serve. Nothing of prompt or answer is kept.
    """
    kept, trouble = in_force(app)
    if kept is None:
        chosen, considered = Route(None, None, 0.0, 0.0, 0, False), []
    else:
        vector = app.encoder().encode_one(prompt)
        near, trouble = app.neighbours()
        chosen = routing.way(kept.table, vector, near)
        considered = kept.table.explain(vector, near)
    result = _described(chosen, considered)
    result["not_asked"] = _not_asked(kept.table, vector, considered) if kept else []
    result["path"] = path(chosen, considered) if kept else [trouble]
    result["trouble"] = trouble
    result["table"] = kept.number if kept else None
    if kept is None or kept.note.starters is not Starters.GONE:
        result["standing"] = transition.standing(app)["line"]
    if chosen.leaf is not None and not chosen.leaf.origin and not chosen.leaf.system:
        app.forests.routed(chosen.leaf.leaf, app.now())
    if answer is not None:
        bundle = chosen.served_by.bundle if chosen.served_by else None
        result["loss"] = _loss(app, prompt, answer, bundle, report)
    return result


def path(chosen: Route, considered: list[Considered]) -> list[str]:
    """How the prompt came to whoever answers it, in plain words."""
    words = [_asked(each) for each in considered]
    if not considered:
        words.append("there is no leaf to ask")
    if chosen.leaf is None:
        words.append("no leaf takes it: the chassis answers, without a system prompt")
        return words
    return [*words, _served(chosen.leaf, chosen.served_by)]


def _asked(each: Considered) -> str:
    what = "a starter" if each.entry.system else _LEVELS[each.entry.level]
    if each.passed:
        return f"{each.entry.name}, {what}, takes it: {each.why}"
    return f"{each.entry.name}, {what}, does not: {each.why}"


def _served(leaf: Entry, server: Entry | None) -> str:
    if server is leaf:
        how = "by its system prompt" if leaf.system else "by its adapter"
        return f"{leaf.name} answers, {how}"
    why = "has not won yet" if leaf.bundle else "has no adapter yet"
    if server is None:
        return f"{leaf.name} {why}, nor has a leaf above it one: the chassis answers"
    if server.system:
        return f"{leaf.name} {why}: {server.name} answers, by its system prompt"
    if server.origin:
        return f"{leaf.name} {why}: {server.name} of {server.origin[:8]}, of its domain, answers"
    return f"{leaf.name} {why}: {server.name} above it answers"


def _not_asked(table: Table, vector: Vector, considered: list[Considered]) -> list[dict[str, Any]]:
    """The nearest of the leaves that were not put forward for their level."""
    asked = {(each.entry.leaf, each.entry.origin) for each in considered}
    others = [
        (float(entry.centroid @ vector), entry)
        for entry in table.entries
        if (entry.leaf, entry.origin) not in asked
    ]
    others.sort(key=lambda each: (-each[0], each[1].leaf, each[1].origin))
    return [
        {
            "leaf": entry.leaf,
            "name": entry.name,
            "level": entry.level,
            "origin": entry.origin,
            "cosine": round(cosine, 4),
        }
        for cosine, entry in others[:RIVALS]
    ]


def in_force(app: App) -> tuple[Kept | None, str]:
    """The table to route by; or none, and what is wrong."""
    try:
        kept = deploying.begin(app)
    except RoutingError as problem:
        log.warning("prompt answered by the chassis reason=%s", problem)
        return None, f"{problem.what}: the chassis answers. {problem.next_step}"
    if kept.table.enc8 != app.enc8:
        log.warning("prompt answered by the chassis reason=%s", "table of another encoder")
        return None, (
            f"routing table {kept.number} is of another encoder: the chassis answers. "
            "Run `groove-node round`: it builds a new table."
        )
    return kept, ""


def _loss(
    app: App, prompt: str, answer: str, bundle: str | None, report: Report
) -> dict[str, float]:
    example = (Example("asked", prompt, answer),)
    if bundle is not None and not sits(app, bundle):
        bundle = None  # the chassis was changed since, and answers by itself
    if bundle is not None:
        Shelf.of(app).used(bundle)
    with app.adapter_files([bundle]) as (leaf,):
        adapters = (("chassis", None), *((("leaf", leaf),) if leaf else ()))
        losses = app.evaluator.losses(EvaluateJob(app.chassis.path, example, adapters), report)
    return {label: round(values[0], 4) for label, values in losses.by_label.items()}


def sits(app: App, bundle: str) -> bool:
    """True if a bundle's adapter is of the chassis in use, by its label."""
    from leaves.bundle import BundleError, read_label

    path = app.bundles.path(bundle)
    try:
        return path is not None and read_label(path).chassis == app.chassis.tag8.hex()
    except BundleError as problem:
        log.warning("bundle not used bundle=%s reason=%s", bundle, problem)
        return False


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
                "origin": each.entry.origin,
                "cosine": round(each.cosine, 4),
                "hubness": round(each.entry.hubness, 4),
                "weight": round(each.entry.weight, 4),
                "votes": None if each.votes is None else round(each.votes, 4),
                "chosen_by": round(each.chosen_by, 4),
                "score": round(each.score, 4),
                "gate": round(each.gate, 4),
                "passes": each.passed,
                "why": each.why,
            }
            for each in considered
        ],
    }
