"""Splits and merges that wait for the owner: `groove-node approve`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from node import approvals
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, Yes, command


@command.command
def approve(
    proposal: Annotated[
        str | None, Parameter(help="Its number, or the name of a leaf that it is about.")
    ] = None,
    /,
    *,
    yes: Yes = False,
    refuse: Annotated[
        bool, Parameter(name=("--refuse", "--no"), negative="", help="Say no to it.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Say yes or no to a split or merge that waits for you; without a number, list what waits.

    With `approve = "ask"` under [rules] in groove.toml no round splits or merges leaves by itself.
    A proposal is shown with what it would do to the routing of your last sessions, then you are
    asked. What you approve is carried out by the next round, if it still holds; what you refuse is
    asked again only when it has clearly changed. Until then you may change your mind.
    """
    out = Terminal(json)
    app = App.open()
    if proposal is None:
        if yes or refuse:
            raise MisuseError("say which one: `groove-node approve` lists them with their numbers")
        _list(app, out)
        return
    if yes and refuse:
        raise MisuseError("--yes and --refuse cannot both be meant; nothing was answered")
    found = approvals.find(app, proposal)
    document: dict[str, Any] = {"proposal": approvals.as_json(found, app.forests.forest())}
    out.facts([(key, _text(value)) for key, value in document["proposal"].items() if value])
    effect = approvals.effect(app, found)
    if isinstance(effect, str):
        out.line(f"What it would do to routing cannot be told: {effect}.")
        document["effect"] = {"unknown": effect}
    else:
        out.line(approvals.told(effect))
        rows = [(shift.leaf, f"{shift.before:,}", f"{shift.after:,}") for shift in effect.shifts]
        out.table(("GOES TO", "NOW", "THEN"), rows)
        document["effect"] = msgspec.to_builtins(effect)
    if not (yes or refuse) and not out.ask(f"Approve this {found.kind}?"):
        out.done({**document, "answer": None}, "Nothing was answered; `--refuse` says no to it.")
        return
    kept = approvals.answer(app, found, not refuse)
    document["proposal"] = approvals.as_json(kept, app.forests.forest())
    out.done({**document, "answer": "no" if refuse else "yes"}, approvals.stands(kept))


def _list(app: App, out: Terminal) -> None:
    found = approvals.listed(app)
    rows = [
        (str(x["id"]), x["kind"], _text(x["leaves"]), x["since"], x["stands"], x["reason"])
        for x in found
    ]
    if rows:
        out.table(("ID", "WHAT", "LEAVES", "SINCE", "STANDS", "WHY"), rows)
    asks = app.config.rules.approve == "ask"
    none = "nothing waits" if asks else 'nothing waits: rules.approve is "auto", so rounds decide'
    out.done({"proposals": found}, "" if rows else none)


def _text(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
