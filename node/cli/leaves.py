"""Rounds, and the leaves that grow in them: shown, renamed, retracted."""

from __future__ import annotations

from typing import Annotated

import msgspec
from cyclopts import Parameter

from node import orders, overview, planning, publishing, rounds
from node.app import App
from node.shelf import Shelf
from node.terminal import Terminal

from .base import AsJson, Yes, command, leaf


@command.command(name="round")
def round_(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print what would be done, and change nothing.")
    ] = False,
    if_due: Annotated[
        bool,
        Parameter(
            negative="", help="Only if one is due by [rounds] in groove.toml; else say why not."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Embed, cluster, detect, train, evaluate, deploy. A killed round is taken up again.

    --dry-run tells about how long each step would take: as former rounds here took, or a guess.
    Splits and merges wait for your word if `approve = "ask"` under [rules]: `groove-node approve`.
    """
    out = Terminal(json)
    app = App.open()
    if if_due:
        why = rounds.due(app)
        if why is None:
            out.done({"round": None, "events": []}, "no round is due")
            return
        out.line(f"a round is due: {why}")
    if dry_run:
        plan = app.plan(out.progress)
        out.line(plan.mode)
        if rows := [*plan.transitions, *plan.trainings]:
            out.table(("WHAT", "LEAF", "WHY"), rows)
        out.table(("STEP", "ABOUT", "BY"), planning.told(plan.expected))
        document = {**msgspec.to_builtins(plan), "minutes": round(plan.minutes, 1)}
        out.done(document, plan.note)
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


@leaf.command(name="publish")
def leaf_publish(
    *names: str,
    all_: Annotated[
        bool, Parameter(name="--all", negative="", help="Every leaf that waits for your word.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Allow peers to be shown a topic that none of them shows; without a name: list what waits."""
    out = Terminal(json)
    app = App.open()
    app.require("publish")
    kept = publishing.kept_back(app)
    if not names and not all_:
        rows = [(str(each["name"]), str(each["reason"])) for each in kept]
        out.table(("LEAF", "KEPT BACK"), rows)
        out.done({"kept_back": kept}, "" if kept else "no leaf is kept back")
        return
    ids = [overview.own_leaf(app, name).id for name in names]
    ids += sorted(app.withheld().asked) if all_ else []
    publishing.say(app.home, ids, True)
    out.done({"published": ids}, f"{len(ids):,} allowed; peers are told {_when(app)}")


@leaf.command(name="withhold")
def leaf_withhold(name: str, /, *more: str, json: AsJson = False) -> None:
    """Keep a leaf here: peers are shown nothing of it, and drop it if they had it."""
    out = Terminal(json)
    app = App.open()
    ids = [overview.own_leaf(app, each).id for each in (name, *more)]
    publishing.say(app.home, ids, False)
    out.done({"withheld": ids}, f"{len(ids):,} kept here; peers are told {_when(app)}")


def _when(app: App) -> str:
    return "now" if overview.running(app) else "when the node runs: `groove-node run`"


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
    out.done({"retracted": retracted}, f"retracted {found.name}; peers are told {_when(app)}")


@leaf.command(name="pin")
def leaf_pin(name: str, /, *, json: AsJson = False) -> None:
    """Keep a peer's leaf on disk: its bundle makes room for no other, and stays though the leaf
    is archived or leaves its origin's table. Only if its owner retracts it does it go.

    Own leaves need no pin. Example: `groove-node leaf pin k8s-networking`.
    """
    out = Terminal(json)
    app = App.open()
    found = overview.foreign_leaf(app, name)
    Shelf.of(app).pin(found)
    out.done({"pinned": found.leaf.leaf, "origin": found.leaf.origin}, f"{found.name} is pinned")


@leaf.command(name="unpin")
def leaf_unpin(name: str, /, *, json: AsJson = False) -> None:
    """Let a pinned leaf's bundle go when there is no room, or once its leaf is gone."""
    out = Terminal(json)
    app = App.open()
    pin = overview.pinned(app, name)
    Shelf.of(app).unpin(pin.origin, pin.leaf)
    out.done({"unpinned": pin.leaf, "origin": pin.origin}, f"{pin.name} is pinned no more")
