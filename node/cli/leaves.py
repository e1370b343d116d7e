"""Rounds, and the leaves that grow in them: shown, renamed, retracted."""

from __future__ import annotations

from typing import Annotated

import msgspec
from cyclopts import Parameter

from node import orders, overview
from node.app import App
from node.terminal import Terminal

from .base import AsJson, Yes, command, leaf


@command.command(name="round")
def round_(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print what would be done, and change nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Embed, cluster, detect, train, evaluate, deploy. A killed round is taken up again."""
    out = Terminal(json)
    app = App.open()
    if dry_run:
        plan = app.plan(out.progress)
        out.line(plan.mode)
        out.table(("WHAT", "LEAF", "WHY"), [*plan.transitions, *plan.trainings])
        out.done(msgspec.to_builtins(plan), plan.note)
        return
    row = app.round(out.event, out.progress)
    out.done({"round": row.id, "events": out.events})


@leaf.command(name="show")
def leaf_show(
    name: str,
    /,
    *,
    texts: Annotated[
        bool, Parameter(negative="", help="Show the ask nearest to its centroid.")
    ] = False,
    json: AsJson = False,
) -> None:
    """One leaf, own or foreign, by name, id or start of an id."""
    out = Terminal(json)
    facts, details = overview.describe(App.open(), name, texts)
    out.facts(facts)
    out.done(details)


@leaf.command(name="history")
def leaf_history(name: str, /, *, json: AsJson = False) -> None:
    """Every change of one own leaf, with its reason."""
    out = Terminal(json)
    entries = overview.history(App.open(), name)
    out.table(("WHEN", "ROUND", "WHAT", "STAGE", "WHY"), [tuple(e.values()) for e in entries])
    out.done({"history": entries})


@leaf.command(name="rename")
def leaf_rename(name: str, to: str, /, *, json: AsJson = False) -> None:
    """Give an own leaf another name; re-clustering keeps it."""
    out = Terminal(json)
    renamed = orders.rename(App.open(), name, to)
    out.done({"leaf_id": renamed.id, "name": renamed.name}, f"{renamed.id[:8]} is now {to}")


@leaf.command(name="retract")
def leaf_retract(name: str, /, *, yes: Yes = False, json: AsJson = False) -> None:
    """Withdraw an own leaf from all peers, for ever."""
    out = Terminal(json)
    app = App.open()
    found = overview.own_leaf(app, name)
    if not yes and not out.ask(f"Retract {found.name}? Peers will drop it for ever."):
        out.done({"retracted": None}, "Nothing was retracted.")
        return
    retracted = orders.retract(app, found.id)
    told = "now" if overview.running(app) else "when the node runs: `groove-node run`"
    out.done({"retracted": retracted}, f"retracted {found.name}; peers are told {told}")
