"""What the node may do: `groove-node consent …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from node import consenting
from node.app import App
from node.consent import FOLDER_SOURCES, disclosure
from node.errors import MisuseError
from node.show import counted
from node.terminal import Terminal

from .base import AsJson, Yes, consent

_WHOLE = "none is missing or altered"
ScopeName = Literal["capture", "train", "publish", "fetch"]
SourceName = Literal["claude-code", "codex", "llm", "endpoint", "otlp", "litellm"]

Sources = Annotated[
    tuple[SourceName, ...],
    Parameter(
        name="--source",
        negative="",
        help="History of another tool, or what reaches the endpoint; may be given again.",
    ),
]
Folders = Annotated[
    tuple[Path, ...],
    Parameter(name="--folder", negative="", help="Project folder; may be given again."),
]


@consent.command(name="show")
def consent_show(*, json: AsJson = False) -> None:
    """What is in force and since when: scopes, sources, project folders."""
    out = Terminal(json)
    stands = consenting.standing(App.open())
    since = stands["since"]
    if stands["undone"] or stands["standing"] not in ("in force", "never asked"):
        out.line(f"Allowed: {disclosure.standing_line(stands)}.")
    out.table(("SCOPE", "", "SINCE", "MEANING"), disclosure.scope_rows(stands["scopes"], since))
    if "capture" in stands["scopes"]:
        lists = [("source", name, since[name]) for name in stands["sources"]]
        lists += [("folder", name, since[name]) for name in stands["folders"]]
        out.line(" ")
        out.table(("CAPTURED FROM", "", "SINCE"), lists or [("no assistant's history", "", "")])
    out.done(stands)


@consent.command(name="grant")
def consent_grant(
    scopes: Sequence[ScopeName] = (),
    /,
    *,
    source: Sources = (),
    folder: Folders = (),
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Allow scopes; and for capture, histories of assistants (--source) in projects (--folder).

    Shows what is asked for before it asks, and of the latest asks that would be captured with it
    what would be kept. `claude-code` and `codex` are captured only in folders that you name.
    `endpoint` is what your programs ask of this node's endpoint; `otlp` and `litellm` are what they
    report to it of their exchanges with others:
    `groove-node consent grant capture --source endpoint`.
    """
    out = Terminal(json)
    app = App.open()
    consenting.check_grant(app, scopes, source, folder)
    told = out.note if json else out.line
    told(disclosure.text(scopes, source, folder))
    if not yes:
        if not sys.stdin.isatty():
            words = [
                *scopes,
                *(f"--source {x}" for x in source),
                *(f"--folder {x}" for x in folder),
            ]
            raise MisuseError(
                "nobody is at a terminal to answer, and consent is never assumed",
                unchanged="Nothing was changed.",
                next_step="Having read what it means, type "
                f"`groove-node consent grant {' '.join(words)} --yes`.",
            )
        _preview(out, app, scopes, source, folder)
        if not out.ask(f"Allow {', '.join([*scopes, *source, *map(str, folder)])}?"):
            out.done({"granted": False}, "Nothing was changed.")
            return
    allowed = consenting.grant(app, scopes, source, folder)
    out.done(allowed, f"allowed: {', '.join(word for words in allowed.values() for word in words)}")
    if FOLDER_SOURCES & {*allowed["sources"]} and not allowed["folders"]:
        out.note("no project folder is allowed yet: `groove-node consent grant --folder DIR`")


def _preview(
    out: Terminal, app: App, scopes: Sequence[str], source: Sequence[str], folder: Sequence[Path]
) -> None:
    """To a terminal alone: what is not scrubbed may not land in a file."""
    if not out.interactive:
        out.note("The preview of what would be captured is shown on a terminal only.")
        return
    preview = consenting.preview(app, scopes, source, folder)
    if preview is None:
        return
    why, shown = preview
    out.line(" ")
    if not why:
        out.line(
            "Your latest asks that this would capture, before and after scrubbing. Nothing of "
            "this is stored:"
        )
    else:
        out.line(why)
        if shown:
            out.line("What is captured is scrubbed like this example:")
    for line in disclosure.preview_lines(shown):
        out.line(line or " ")
    out.line(" ")


@consent.command(name="revoke")
def consent_revoke(
    scopes: Sequence[ScopeName] = (),
    /,
    *,
    source: Sources = (),
    folder: Folders = (),
    json: AsJson = False,
) -> None:
    """Withdraw what is named, or everything. Nothing is deleted: that is `data --delete`."""
    out = Terminal(json)
    app = App.open()
    idle = consenting.not_in_force(app, scopes, source, folder)
    left = consenting.revoke(app, scopes, source, folder)
    for each in idle:
        out.note(f"{each}: nothing of it was allowed")
    if folder_outside := app.consent.unnoted():
        out.note(
            "this withdrawal stands, but could not be noted outside the home: a backup that is put "
            f"back would not know of it. Make {folder_outside} writable, and revoke again"
        )
    still = ", ".join(word for words in left.values() for word in words)
    out.done(left, f"still allowed: {still or 'nothing'}")
    if idle and len(idle) == len([*scopes, *source, *folder]):
        sys.exit(1)
    if source or folder or "capture" not in left["scopes"]:
        out.line(disclosure.stays_line(consenting.stored(app)))


@consent.command(name="log")
def consent_log(*, json: AsJson = False) -> None:
    """Every decision, with its date and the version of the terms."""
    out = Terminal(json)
    records = consenting.consent_log(App.open())
    out.table(
        ("WHEN", "BY", "TERMS", "ALLOWED", "SOURCES", "FOLDERS"),
        [
            (r["at"], r["by"], r["version"], r["scopes"], r["sources"], r["folders"])
            for r in records
        ],
    )
    out.done({"records": records})


@consent.command(name="receipts")
def consent_receipts(
    *,
    verify: Annotated[
        bool,
        Parameter(
            negative="",
            help="Check signatures, that none is altered, and that each missing one is explained.",
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """The signed proof of each decision, kept on this machine."""
    out = Terminal(json)
    app = App.open()
    listed = consenting.receipts(app)
    out.table(
        ("NO", "WHEN", "ALLOWED", "SHOWN TEXT", "SIGNED", "RECEIPT"),
        [
            (
                str(each["number"] or "?"),
                each["at"],
                ", ".join([*each["scopes"], *each["sources"], *each["folders"]]) or "nothing",
                each["disclosure"][:12] or "-",
                _signed(each),
                each["hash"][:12],
            )
            for each in listed
        ],
    )
    data: dict[str, object] = {"receipts": listed}
    if not verify:
        out.done(data)
        return
    problems, lost = consenting.verify(app), consenting.lost(app)
    for each in lost:
        out.line(f"gone: {each}")
    for problem in problems:
        out.line(f"wrong: {problem}")
    told = "" if problems else _sound(listed, lost)
    out.done({**data, "problems": problems, "missing": lost}, told)
    if problems:
        sys.exit(1)


def _signed(receipt: dict[str, object]) -> str:
    if not receipt["signed"]:
        return "not yet"
    return "later" if receipt["signed_late"] else "at once"


def _sound(listed: Sequence[dict[str, object]], lost: Sequence[str]) -> str:
    late = sum(bool(each["signed_late"]) for each in listed)
    unsigned = sum(not each["signed"] for each in listed)
    whole = "none is altered, what is missing is named above" if lost else _WHOLE
    text = f"{counted(len(listed), 'receipt')}: {whole}, signatures are right"
    text += f"; {late} were recorded by a program without the key and signed later" if late else ""
    return text + (f"; {unsigned} not signed yet" if unsigned else "")
