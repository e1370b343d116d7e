"""The owner's rights over what is stored: `groove-node data …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from node import rights, show
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, Yes, command

Form = Literal["jsonl", "parquet", "chat", "preference"]

Delete = Annotated[
    bool,
    Parameter(
        negative="",
        help="Delete everything, or the sessions that the filters leave, and retract or "
        "retrain what was trained on it.",
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
    export: Annotated[
        Path | None, Parameter(help="Write a copy to this file: .jsonl, or .parquet.")
    ] = None,
    delete: Delete = False,
    rescan: Annotated[
        bool, Parameter(negative="", help="Scrub what is stored by the rules of today.")
    ] = False,
    user: Annotated[str | None, Parameter(help="Only the records of this user.")] = None,
    domain: Annotated[str | None, Parameter(help="Only this domain, as --stats names it.")] = None,
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
    """Your data: what is there, a copy of it, its cleaning, or its deletion."""
    out = Terminal(json)
    app = App.open()
    if stats + (export is not None) + delete + rescan > 1:
        raise MisuseError(
            "one of --stats, --export, --delete and --rescan at a time; nothing was done"
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
    out.done(result, f"{show.counted(result['exported'], what)} in {path}")


def _delete(out: Terminal, app: App, chosen: rights.Selection, yes: bool) -> None:
    question = (
        "Delete all captured data, and retract every leaf made of it?"
        if chosen.everything
        else "Delete the sessions that these filters leave? Leaves made of them are retracted or "
        "trained again. "
        + ("This user's consent ends." if chosen.ends_consent else "Consent stays as it is.")
    )
    if not yes and not out.ask(question):
        out.done({"deleted": False}, "Nothing was deleted.")
        return
    result = rights.delete(app, chosen, out.progress)
    out.facts(show.deletion_facts(result))
    out.done({"deleted": True, **result})


def _check(owner: str, present: bool, **options: object) -> None:
    """Refuse options that would be ignored: a filter that is not heeded deletes too much."""
    for name, value in options.items():
        if value is not None and not present:
            raise MisuseError(f"--{name} goes with {owner} alone; nothing was done")
