"""Routing: where a prompt goes and why, the tables that decide it, and the way back to one."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from node import asking, deploying, show_routes
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, command


@command.command
def route(
    prompt: str | None = None,
    /,
    *,
    explain: Annotated[
        bool,
        Parameter(negative="", help="Show the candidates, and the way to whoever answers."),
    ] = False,
    answer: Annotated[
        str | None, Parameter(help="A known answer: its loss under leaf and chassis is measured.")
    ] = None,
    history: Annotated[
        bool, Parameter(negative="", help="List the last routing tables instead, newest first.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Which leaf would serve a prompt, and how sure the router is."""
    out = Terminal(json)
    if history:
        if prompt is not None or explain or answer is not None:
            raise MisuseError("--history lists tables and takes neither a prompt nor its options")
        rows = App.open().tables.history()
        if rows:
            out.table(show_routes.TABLES, show_routes.table_rows(rows))
        out.done(
            {"tables": show_routes.tables_json(rows)},
            "" if rows else "no table yet: the first prompt that is routed begins one",
        )
        return
    if prompt is None:
        raise MisuseError('give a prompt, as in: groove-node route "How do I sort a list?"')
    result = asking.route(App.open(), prompt, answer, out.progress)
    out.facts(show_routes.route_facts(result))
    if explain:
        out.table(show_routes.CANDIDATES, show_routes.candidate_rows(result))
        out.facts(show_routes.path_facts(result))
    out.done(result)


@command.command
def restore(
    *,
    table: Annotated[
        int | None, Parameter(help="Its number in `groove-node route --history`.")
    ] = None,
    pin: Annotated[
        bool | None,
        Parameter(
            name="--pin", negative="--unpin", help="Rounds leave the table in force; or not."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Go back to a routing table of before. The next round replaces it, unless it is pinned.

    Leaves that were archived, retracted or deleted since do not come back with it. Without --table,
    --pin and --unpin are about the table in force.
    """
    out = Terminal(json)
    app = App.open()
    if table is None:
        if pin is None:
            raise MisuseError("give --table NUMBER; `groove-node route --history` lists them")
        kept = deploying.pin(app, pin)
        text = f"table {kept.number} is {'pinned' if pin else 'no longer pinned'}"
    else:
        kept = deploying.restore(app, table, pin=bool(pin))
        until = "until it is unpinned" if pin else "until the next round finds a table for today"
        text = f"table {table} is in force again, as table {kept.number}, {until}"
    out.done({"table": kept.number, "entries": len(kept.table), "pinned": kept.note.pinned}, text)
