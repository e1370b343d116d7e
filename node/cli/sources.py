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
    source: Literal["claude-code", "codex", "llm", "jsonl", "pydoc"],
    what: Annotated[
        Sequence[str],
        Parameter(
            help="claude-code, codex, llm: files or folders; all that the tool keeps if none is "
            "named. jsonl: files (.jsonl, .jsonl.gz). pydoc: package names."
        ),
    ] = (),
    /,
    *,
    since: Annotated[
        str, Parameter(help="Only what was said since: 30d, 12h, 2w, or a date like 2026-11-01.")
    ] = "",
    share: Annotated[
        str, Parameter(help="Only this part of the groups (modules), by their hash: 0.0:0.5.")
    ] = "0:1",
    part: Annotated[str, Parameter(help="Of those only this part of the sessions.")] = "0:1",
    dry_run: Annotated[
        bool, Parameter(negative="", help="Count what would be imported, and write nothing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Import sessions that other tools, files or installed packages hold.

    A second import of the same adds nothing. `groove-node run` takes in what is said from then on.
    """
    out = Terminal(json)
    app = App.open()
    wanted = importing.Wanted(source, what, share, part, since, dry_run)
    done = importing.import_sessions(app, wanted, out.progress)
    out.facts(done.facts())
    if rows := done.folder_rows():
        out.table(("FOLDER NOT ALLOWED", "SESSIONS"), rows)
    for note in () if json else done.notes():
        out.note(note)
    out.done(done.as_json(), "Nothing was written: a dry run." if dry_run else "")
