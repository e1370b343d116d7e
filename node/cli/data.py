"""The owner's rights over what is stored: `groove-node data …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from node import rights, show
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, Yes, command


@command.command
def data(
    *,
    stats: Annotated[bool, Parameter(negative="", help="What is stored.")] = False,
    export: Annotated[Path | None, Parameter(help="Write all records to this JSONL file.")] = None,
    delete: Annotated[
        bool, Parameter(negative="", help="Delete everything, and retract what was trained on it.")
    ] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Your data: what is there, a copy of it, or its deletion."""
    out = Terminal(json)
    app = App.open()
    if stats + (export is not None) + delete > 1:
        raise MisuseError("one of --stats, --export and --delete at a time; nothing was done")
    if export is not None:
        count = rights.export(app, export)
        out.done({"exported": count, "file": str(export)}, f"{count:,} records in {export}")
    elif delete:
        if not yes and not out.ask("Delete all captured data, and retract every leaf made of it?"):
            out.done({"deleted": False}, "Nothing was deleted.")
            return
        result = rights.delete(app)
        out.facts([(key.replace("_", " "), str(value)) for key, value in result.items()])
        out.done(result)
    else:
        summary = rights.stats(app)
        out.facts(show.stats_facts(summary))
        out.done(summary)
