"""What grew, to look at: the tree in the terminal, the map in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from node import overview, past, publishing, show, transition
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, command


@command.command
def tree(
    *,
    at: Annotated[
        str | None, Parameter(help="A day, 2026-11-22: the forest as it was at its end, UTC.")
    ] = None,
    diff: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            consume_multiple=True,
            help="Two days, or a day until now: which leaves came, went, changed, grew.",
        ),
    ] = None,
    table: Annotated[
        bool, Parameter(negative="", help="As a table, with gains, last routing and ids.")
    ] = False,
    json: AsJson = False,
) -> None:
    """The leaves of this node, and those of peers: their stage, and what they wait for.

    `groove-node restore DATE` brings the forest of a past day back.
    """
    from node.pictures import atlas, tree

    out = Terminal(json)
    app = App.open()
    if diff is not None:
        if at is not None or table:
            raise MisuseError("--diff shows two days as a table; it takes neither --at nor --table")
        _difference(app, out, *past.span(diff))
        return
    forest, foreign = overview.tree(app, at)
    standing = atlas.standing(app, at)
    lines = tree.drawn(standing, out.width)
    if table and lines:
        out.table(*tree.table_rows(forest, foreign, app.now()))
    elif not table:
        for line in lines:
            out.styled(line)
    routing = transition.standing(app) if at is None else None
    if routing is not None and routing["state"] != "leaves":
        out.line(routing["line"])
    kept_back = publishing.kept_back(app) if at is None else []
    for text in publishing.lines(kept_back):
        out.line(text)
    document = {
        "leaves": [show.as_json(leaf, standing.gates) for leaf in forest.live()],
        "foreign": [show.foreign_json(known) for known in foreign],
        "starters": list(standing.starters),
        "sessions": standing.sessions,
        "unassigned": standing.unassigned,
        "routing": routing,
        "kept_back": kept_back,
    }
    out.done(document, "" if lines else f"no leaves {'yet' if at is None else f'on {at}'}")


def _difference(app: App, out: Terminal, start: str, end: str) -> None:
    changes = past.differences(past.at_end_of(app, start), past.at_end_of(app, end))
    if changes:
        out.table(past.COLUMNS, [change.row() for change in changes])
    document = {"from": start, "to": end, "changes": past.as_json(changes)}
    out.done(document, past.summary(changes, start, end))


@command.command(name="map")
def map_(
    file: Annotated[Path, Parameter(help="Where to: a file that ends in .html or .png.")],
    /,
    *,
    texts: Annotated[
        bool, Parameter(negative="", help="Put the beginning of each prompt into the .html.")
    ] = False,
    growth: Annotated[
        bool, Parameter(negative="", help="Draw growth over time below the map of a .png.")
    ] = False,
    sample: Annotated[int | None, Parameter(help="Show at most so many sessions.")] = None,
    force: Annotated[
        bool, Parameter(negative="", help="Replace a file that this command did not make.")
    ] = False,
    json: AsJson = False,
) -> None:
    """A map of your sessions, coloured by leaf, with the tree and its growth.

    The page is one file that opens without a network, and is readable by you alone. It holds no
    text of a prompt unless --texts is given; names of leaves are made of words of prompts.
    """
    from node.pictures import atlas, target
    from node.pictures.page import note
    from node.pictures.projection import SHOWN_MAX

    out = Terminal(json)
    file = file.expanduser()
    out.starts_anew("no file was written")
    target.check(file, force=force, texts=texts, growth=growth)
    app = App.open()
    wanted = SHOWN_MAX if sample is None else sample
    gathered = atlas.gather(app, sample=wanted, texts=texts, report=out.progress)
    written = target.write(file, gathered, growth=growth)
    dots = gathered.dots
    if texts:
        out.note(f"{file} holds texts of your prompts: do not share it")
    leaves = len({leaf for leaf in dots.leaves if leaf})
    document = {
        "file": str(file),
        "bytes": written,
        "sessions": gathered.standing.sessions,
        "shown": len(dots.ids),
        "leaves": leaves,
        "unassigned": gathered.standing.unassigned,
        "method": dots.method,
        "why": dots.why,
        "texts": texts,
    }
    out.done(document, f"{file} ({show.size(written)}). {note(gathered)}")
