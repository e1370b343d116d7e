"""`groove-node uninstall`: take everything of this node off this machine, and prove it."""

from __future__ import annotations

import sys
import time
from typing import Annotated

from cyclopts import Parameter

from node import overview, show, uninstalling
from node.app import App
from node.errors import MisuseError, OwnerError
from node.mailbox import Retract
from node.terminal import Terminal

from .base import AsJson, Yes, command

WORD = "uninstall"
RETRACT_S = 30.0  # for the running node to sign it; peers hear of it when they are reached


@command.command
def uninstall(
    *,
    keep_keys: Annotated[
        bool, Parameter(negative="", help="Leave the keys where they are.")
    ] = False,
    keep_cache: Annotated[
        bool, Parameter(negative="", help="Leave the converted models: other homes use them too.")
    ] = False,
    retract: Annotated[
        bool,
        Parameter(negative="", help="Have the running node retract all leaves; remove nothing."),
    ] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="Show it; remove nothing.")] = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Remove the service, the home with all data and keys, what is remembered of it, the cache.

    What is to go is shown first, and a word is asked for. A copy that peers hold of a published
    leaf cannot be taken back afterwards, for only your keys can: `--retract` asks them to drop it,
    while the node still runs. A removal that was interrupted is finished by running it again. What
    your tools keep themselves, copies of keys and exports elsewhere stay.

        groove-node uninstall --dry-run
    """
    out = Terminal(json)
    out.starts_anew("what was removed is gone")
    if retract:
        _retract(out)
        return
    planned = uninstalling.plan(keep_keys=keep_keys, keep_cache=keep_cache)
    found = planned.measured()
    shown = _published(planned)
    document = {
        "parts": [
            {"what": part.what, "path": str(part.path), "files": files, "bytes": size}
            for part, files, size in found
        ],
        "keys_exported": planned.exported,
        "published": shown,
        "stays": [str(path) for path in planned.strangers],
    }
    if not found:
        out.done({**document, "removed": []}, "Nothing of this node is here.")
        return
    rows = [(x.what, f"{files:,}", show.size(size), str(x.path)) for x, files, size in found]
    out.table(("WHAT", "FILES", "SIZE", "WHERE"), rows)
    for line in _warnings(planned, shown):
        out.note(line)
    if dry_run:
        out.done({**document, "removed": []}, "Nothing was removed.")
        return
    if not yes and not _meant(out):
        out.done({**document, "removed": []}, "Nothing was removed.")
        return
    removed = uninstalling.carry_out(planned)
    total = sum(size for _, _, size in found)
    files = sum(count for _, count, _ in found)
    out.done(
        {**document, "removed": removed},
        f"removed: {show.counted(files, 'file')}, {show.size(total)}; looked again: nothing of "
        f"it is left{' but the keys' if keep_keys else ''}. The program itself: "
        "`pip uninstall groove-node`",
    )


def _warnings(planned: uninstalling.Plan, published: list[str] | None) -> list[str]:
    lines = []
    if planned.loses_keys and not planned.exported:
        lines.append(
            "warning: no copy of the keys was ever made. Without them this origin cannot be "
            "retracted, healed or used again: `groove-node keys export FILE`, or --keep-keys"
        )
    if published:
        names = ", ".join(published[:5]) + (", …" if published[5:] else "")
        lines.append(
            f"warning: published: {names} ({len(published):,}): what peers hold of that stays "
            "with them. Only the running node can ask them to drop it: "
            "`groove-node uninstall --retract`"
        )
    if published is None:
        lines.append("whether leaves were published cannot be read from this home")
    if planned.strangers:
        lines.append(f"not the node's, and stays: {', '.join(map(str, planned.strangers[:5]))}")
    return lines


def _published(planned: uninstalling.Plan) -> list[str] | None:
    """Leaves that peers hold; None if the home cannot be read for it."""
    if not (planned.home / uninstalling.KEYS).is_dir():
        return []
    try:
        return uninstalling.published(App.open())
    except OwnerError:
        return None


def _meant(out: Terminal) -> bool:
    """True if the word was typed. Raises MisuseError if nobody is there to type it."""
    if not sys.stdin.isatty():
        raise MisuseError(
            "nobody is at a terminal to confirm it",
            unchanged="Nothing was removed.",
            next_step="The same command with --yes removes it without asking.",
        )
    out.note(f"This cannot be undone. Type {WORD} to go on:")
    return sys.stdin.readline().strip() == WORD


def _retract(out: Terminal) -> None:
    """Leave the order to retract everything, and wait until the running node has signed it."""
    app = App.open()
    names = uninstalling.published(app)
    if not names:
        out.done({"retracted": []}, "No leaf of this node is published.")
        return
    node = overview.running(app)
    if node is None:
        raise OwnerError(
            "no node runs here, so nobody can tell peers",
            unchanged="Nothing was retracted or removed.",
            next_step="`groove-node run` (or `up`), then `groove-node uninstall --retract`.",
        )
    letter = app.mailbox.post(Retract(None), app.clock.now_s())
    deadline = time.monotonic() + RETRACT_S
    while app.mailbox.answer_to(letter) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    signed = app.mailbox.answer_to(letter) is not None
    heard = f"{show.counted(len(node['peers']), 'connected peer')} hear of it now"
    text = (
        f"retracted: {', '.join(names)}; {heard}, others when they are met by who knows it. Let "
        "the node run a while, then end it and run `groove-node uninstall`."
        if signed
        else "The order stands and is carried out by the running node; nothing was removed."
    )
    out.done({"retracted": names, "signed": signed, "peers": len(node["peers"])}, text)
