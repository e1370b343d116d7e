"""Routing: where a prompt goes and why, the tables that decide it, and the way back to one."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from node import asking, deploying, past, show_routes
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, Yes, command


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
    day: str | None = None,
    /,
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
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Go back to the forest of a past DAY, as 2026-11-22, or to a routing table of before.

    With a day: what would change is shown, then you are asked. Leaves are set back to what they
    were at its end, UTC; those born since end; the routing table follows. Nothing is unwritten:
    `leaf history` shows the way there and back. What was made of sessions deleted since stays gone.
    The next round decides anew by what your sessions show; `approve = "ask"` under [rules] has it
    ask before it splits or merges.

    With --table: until the next round replaces it, unless it is pinned. Leaves that were archived,
    retracted or deleted since do not come back with it. Without --table, --pin and --unpin are
    about the table in force.
    """
    out = Terminal(json)
    if day is not None:
        if table is not None or pin is not None:
            raise MisuseError("give a day or --table, not both; nothing was restored")
        _restore_day(App.open(), out, day, yes)
        return
    app = App.open()
    if table is None:
        if pin is None:
            raise MisuseError(
                "give a day, as in `groove-node restore 2026-11-22`, or --table NUMBER; "
                "`groove-node route --history` lists tables"
            )
        kept = deploying.pin(app, pin)
        text = f"table {kept.number} is {'pinned' if pin else 'no longer pinned'}"
    else:
        kept = deploying.restore(app, table, pin=bool(pin))
        until = "until it is unpinned" if pin else "until the next round finds a table for today"
        text = f"table {table} is in force again, as table {kept.number}, {until}"
    out.done({"table": kept.number, "entries": len(kept.table), "pinned": kept.note.pinned}, text)


def _restore_day(app: App, out: Terminal, day: str, yes: bool) -> None:
    found = past.plan(app, day)
    changes = past.differences(app.forests.forest(), found.forest)
    document = {"day": day, "changes": past.as_json(changes), "stays_gone": found.kept_out}
    if changes:
        out.table(past.COLUMNS, [change.row() for change in changes])
    for line in found.kept_out:
        out.line(line)
    if not found.leaves:
        out.done({**document, "restored": 0}, f"the forest is as it was on {day}")
        return
    count = len(found.leaves)
    if not yes and not out.ask(f"Set {count:,} leaves back to {day}?"):
        out.done({**document, "restored": None}, "Nothing was restored.")
        return
    done = past.restore(app, day)
    text = f"{len(done.leaves):,} leaves are as they were on {day}; `groove-node tree` shows them"
    out.done({**document, "restored": len(done.leaves)}, text)
