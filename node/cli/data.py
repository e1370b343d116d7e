"""The owner's rights over what is stored: `groove-node data …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from node import rights, show
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, Yes, command

Form = Literal["jsonl", "parquet", "chat", "preference"]

Export = Annotated[
    Path | None, Parameter(help="Write a copy to this file: .jsonl or .ndjson, .parquet or .pq.")
]
Delete = Annotated[
    bool,
    Parameter(
        negative="",
        help="Delete everything; or, with filters, whole sessions: each of which any record fits "
        "them. What was trained on it is retracted or trained again.",
    ),
]
Domain = Annotated[
    str | None,
    Parameter(
        help="Only this domain, as --stats names it: --export takes its records, --delete every "
        "session that has one of them."
    ),
]
After = Annotated[
    str | None, Parameter(help="Only what came after: 2026-04-26, or 7d for the last 7 days.")
]
AsForm = Annotated[
    Form | None,
    Parameter(
        help="With --export: records as jsonl or parquet; or a training set, of what may be "
        "trained on: chat ({messages}) or preference ({prompt, chosen, rejected})."
    ),
]


@command.command
def data(
    *,
    stats: Annotated[bool, Parameter(negative="", help="What is stored.")] = False,
    export: Export = None,
    delete: Delete = False,
    rescan: Annotated[
        bool, Parameter(negative="", help="Scrub what is stored by the rules of today.")
    ] = False,
    user: Annotated[str | None, Parameter(help="Only the records of this user.")] = None,
    domain: Domain = None,
    after: After = None,
    session: Annotated[
        list[str] | None,
        # Without a negative: an empty list would be no filter at all.
        Parameter(negative="", help="With --delete: only this session; may be repeated."),
    ] = None,
    leaf: Annotated[
        str | None, Parameter(help="With --export: only the sessions of this leaf.")
    ] = None,
    format: AsForm = None,
    vectors: Annotated[
        bool, Parameter(negative="", help="With --export: join the vectors of the sessions.")
    ] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Your data: what is there, a copy of it, its cleaning, or its deletion.

    Deleting everything withdraws your consent too; should you grant it again, an import takes in
    the history that your tools still hold. After a deletion by filters consent stays, and what was
    deleted is refused by every import for good: there is no command to take it in again.
    """
    out = Terminal(json)
    app = App.open()
    if stats + (export is not None) + delete + rescan > 1:
        raise MisuseError(
            "--stats, --export, --delete and --rescan were asked for together",
            unchanged="Nothing was done.",
            next_step="Give one of them at a time.",
        )
    _check("--export", export is not None, leaf=leaf, format=format, vectors=vectors or None)
    _check("--delete", delete, session=session)
    _check(
        "--export or --delete",
        delete or export is not None,
        user=user,
        domain=domain,
        after=after,
    )
    since = rights.parse_after(after, app.clock.now_s()) if after is not None else None
    if export is not None:
        filters = rights.Filters(user, domain, since, leaf)
        _export(out, app, export, filters, format, vectors)
    elif delete:
        chosen = rights.Selection(
            user_id=user, domain=domain, after=since, sessions=tuple(session or ())
        )
        _delete(out, app, chosen, yes)
    elif rescan:
        result = rights.rescan(app, out.progress)
        out.facts(show.counts_facts(result))
        out.done(result)
    else:
        summary = rights.stats(app, out.progress)
        out.facts(show.stats_facts(summary))
        out.done(summary)


def _export(
    out: Terminal,
    app: App,
    path: Path,
    filters: rights.Filters,
    form: Form | None,
    vectors: bool,
) -> None:
    result = rights.export(app, path, filters, form=form, vectors=vectors, report=out.progress)
    what = {"chat": "session", "preference": "pair"}.get(result["format"], "record")
    for reason, count in result["left_out"].items():
        out.line(f"left out  {show.counted(count, 'session')}: {reason}")
    if result["vectors"] == 0:
        out.note("there are no vectors yet: `groove-node round` makes them")
    rows = (
        f" (and {show.counted(closing, 'closing row')})" if (closing := result["closing"]) else ""
    )
    out.done(result, f"{show.counted(result['exported'], what)}{rows} in {path}")


def _delete(out: Terminal, app: App, chosen: rights.Selection, yes: bool) -> None:
    rights.check_deletion(app, chosen)
    if not yes:
        question = show.deletion_question(rights.preview_deletion(app, chosen, out.progress))
        if not sys.stdin.isatty():
            raise MisuseError(
                f"nobody is at a terminal to answer: {question}",
                unchanged="Nothing was deleted.",
                next_step="The same command with --yes deletes it without asking.",
            )
        if not out.ask(question):
            out.done({"deleted": False}, "Nothing was deleted.")
            return
    result = rights.delete(app, chosen, out.progress)
    out.facts(show.deletion_facts(result))
    out.done({"deleted": True, **result}, show.after_deletion(result))


def _check(owner: str, present: bool, **options: object) -> None:
    """Refuse options that would be ignored: a filter that is not heeded deletes too much."""
    for name, value in options.items():
        if value is not None and not present:
            raise MisuseError(
                f"--{name} goes with {owner} alone",
                unchanged="Nothing was done.",
                next_step=f"Add {owner}, or leave --{name} out.",
            )
