"""What is brought in: `groove-node import …`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from node import importing
from node.app import App
from node.terminal import Terminal

from .base import AsJson, command

PARTS = Group("Parts of a source, for measurements", sort_key=9)


@command.command(name="import")
def import_(
    source: Literal["claude-code", "codex", "llm", "jsonl", "pydoc"],
    what: Annotated[
        Sequence[str],
        Parameter(
            help="claude-code, codex, llm: files or folders; all that the tool keeps if none is "
            "named. jsonl: files (.jsonl, .jsonl.gz), or - for the standard input. "
            "pydoc: package names."
        ),
    ] = (),
    /,
    *,
    since: Annotated[
        str, Parameter(help="Only what was said since: 30d, 12h, 2w, or a date like 2026-11-01.")
    ] = "",
    dry_run: Annotated[
        bool, Parameter(negative="", help="Count what would be imported, and write nothing.")
    ] = False,
    json: AsJson = False,
    share: Annotated[
        str,
        Parameter(
            group=PARTS,
            help="Import only some of the sessions, the same ones every time: 0.0:0.5 is one half "
            "and 0.5:1.0 the other; near-copies are never in both.",
        ),
    ] = "0:1",
    part: Annotated[
        str, Parameter(group=PARTS, help="The same again, of the sessions that --share leaves.")
    ] = "0:1",
) -> None:
    """Import sessions that other tools, files or installed packages hold.

    A second import of the same adds nothing. `groove-node run` takes in what is said from then on.

    A line of a jsonl file is one session: `{"prompt": "…", "completion": "…"}`, or
    `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`.
    It may also have `source_model`, `source_provider` and `terms_class` (own, open, restricted:
    whether it may be trained on; own if it says nothing), `outcome` (accepted, modified, iterated,
    rejected, error), `accepted` (true, false), `rating` (up, down, good, bad, 1 to 5) or `quality`
    (0 to 100), `timestamp` (Unix seconds), `session_id` and `group` (near-copies share it).
    """
    out = Terminal(json)
    app = App.open()
    wanted = importing.Wanted(source, what, share, part, since, dry_run)
    done = importing.import_sessions(app, wanted, out.progress)
    out.facts(done.facts())
    if rows := done.folder_rows():
        out.table(("FOLDER NOT ALLOWED", "SESSIONS"), rows)
    restricted = app.config.training.restricted_outputs
    for note in () if json else done.notes(restricted_outputs=restricted):
        out.note(note)
    out.done(done.as_json(), "Nothing was written: a dry run." if dry_run else "")
