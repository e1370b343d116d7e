"""What is brought in: `groove-node import …`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from cyclopts import Parameter

from node import importing
from node.app import App
from node.terminal import Terminal

from .base import AsJson, command


@command.command(name="import")
def import_(
    source: Literal["pydoc", "jsonl"],
    what: Annotated[
        Sequence[str], Parameter(help="pydoc: package names; jsonl: files (.jsonl, .jsonl.gz).")
    ],
    /,
    *,
    share: Annotated[
        str, Parameter(help="Only this part of the groups (modules), by their hash: 0.0:0.5.")
    ] = "0:1",
    part: Annotated[str, Parameter(help="Of those only this part of the sessions.")] = "0:1",
    dry_run: Annotated[
        bool, Parameter(negative="", help="Count what would be imported, and write nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Import sessions: `pydoc` (docstrings of installed packages) or `jsonl` (prompt, completion).

    A second import of the same adds nothing.
    """
    out = Terminal(json)
    app = App.open()
    result = importing.import_sessions(app, source, what, share, part, dry_run, out.progress)
    out.facts([(key.replace("_", " "), f"{value:,}") for key, value in result.items()])
    out.done(result)
