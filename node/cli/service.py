"""The node as a service of this machine: `service`, `up`, `down`, and its log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App as Command
from cyclopts import Parameter

from node import logfile, overview
from node.app import App
from node.errors import OwnerError
from node.show import process
from node.terminal import Terminal

from .base import AsJson, AsJsonLines, command

service = Command(
    name="service",
    help="""Have systemd or launchd run the node: from login on, with limits, and again if it fails.

Nothing is set up by itself. `service show` prints what `service install` would write.

Example: `groove-node service install --start`.
""",
)
command.command(service)

TAIL_BYTES = 256 << 10  # of a log, in which its last lines are looked for
LOOK_S = 0.5
ALL = 1 << 30  # lines: as many as the tail holds


@service.command
def show(*, json: AsJson = False) -> None:
    """Print the file that `install` would write, and where; write nothing."""
    out = Terminal(json)
    from node import service_manager

    planned = service_manager.of_this_machine().service
    out.line(planned.text.rstrip("\n"))
    out.note(f"this would be {planned.path}")
    out.done({"name": planned.name, "path": str(planned.path), "text": planned.text})


@service.command
def install(
    *,
    start: Annotated[
        bool, Parameter(negative="", help="Start it too, now and at each login.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Write the service file of this home, for this user. Writes no other's file over.

    The folders of this home and this Python are written into it: after moving either, install anew.
    """
    out = Terminal(json)
    from node import service, service_manager

    App.open()  # a service for a home that is none would fail each time
    place = service.Place.here()
    manager = service_manager.of_this_machine(place)
    service_manager.check_starts(place)
    fresh = service.install(manager.service)
    path = manager.service.path
    out.line(f"{'written' if fresh else 'unchanged'}: {path}")
    if start:
        service_manager.start(manager)
        out.line(f"started: {manager.service.name}")
    else:
        typed = " && ".join(" ".join(each) for each in manager.starts())
        out.line(f"Nothing was started. `groove-node up` starts it, as does: {typed}")
        if not manager.answers():
            out.note("its manager does not answer here; `groove-node run` runs the node by hand")
    out.done(
        {"name": manager.service.name, "path": str(path), "written": fresh, "started": start},
        manager.advice(),
    )


@service.command
def uninstall(*, json: AsJson = False) -> None:
    """Stop the service and remove all that `install` wrote; the home stays as it is."""
    out = Terminal(json)
    from node import service_manager

    manager = service_manager.of_this_machine()
    removed = service_manager.remove(manager)
    text = "\n".join(f"removed: {path}" for path in removed) or "there was nothing to remove"
    out.done({"name": manager.service.name, "removed": removed}, text)


@service.command
def status(*, json: AsJson = False) -> None:
    """Whether the service is installed, enabled and active, and whether a node runs here."""
    out = Terminal(json)
    from node import service, service_manager

    app = App.open()
    manager = service_manager.of_this_machine()
    state = service.state_of(manager.service.path)
    answers, node = manager.answers(), overview.running(app)
    told = manager.standing() if answers else {}
    facts = [("service", manager.service.name), ("file", f"{manager.service.path}, {state}")]
    facts += [(name, str(value)) for name, value in told.items()]
    if not answers:
        facts.append(("manager", "does not answer for this user"))
    facts.append(("node", f"running, {process(node)}" if node else "not running"))
    out.facts(facts)
    out.done(
        {
            "name": manager.service.name,
            "path": str(manager.service.path),
            "file": state,
            "manager_answers": answers,
            **told,
            "pid": node["pid"] if node else None,
        }
    )


@command.command
def up(*, json: AsJson = False) -> None:
    """Start the node as a service, now and at each login. `service install` comes first."""
    out = Terminal(json)
    from node import service, service_manager

    app = App.open()
    manager = service_manager.of_this_machine()
    if service.state_of(manager.service.path) is service.State.ABSENT:
        raise OwnerError(
            "there is no service for this home yet",
            unchanged="Nothing was started.",
            next_step="`groove-node service install` writes it; `groove-node run` needs none.",
        )
    node = overview.running(app)
    if node is not None and manager.answers() and manager.standing()["active"] == "inactive":
        raise OwnerError(
            f"a node runs here already, {process(node)}, and not by the service",
            unchanged="Nothing was started.",
            next_step="End it first: Ctrl-C where it runs" + _or_kill(node),
        )
    service_manager.start(manager)
    out.done({"name": manager.service.name, "started": True}, f"started: {manager.service.name}")


@command.command
def down(*, json: AsJson = False) -> None:
    """Stop the service until the next login, or `up`. A round goes on where it was, later."""
    out = Terminal(json)
    from node import service_manager

    manager = service_manager.of_this_machine()
    service_manager.stop(manager)
    node = overview.running(App.open())
    if node is not None:
        raise OwnerError(
            f"a node runs here still, {process(node)}, and not by the service",
            unchanged="The service is stopped.",
            next_step="End it: Ctrl-C where it runs" + _or_kill(node),
        )
    out.done({"name": manager.service.name, "stopped": True}, f"stopped: {manager.service.name}")


@command.command
def logs(
    *,
    follow: Annotated[
        bool, Parameter(alias="-f", negative="", help="Go on with what is written from now on.")
    ] = False,
    lines: Annotated[int, Parameter(alias="-n", help="So many of the last.")] = 50,
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Parameter(help="Only what is as grave as this."),
    ] = "debug",
    json: AsJsonLines = False,
) -> None:
    """The node's log: what it did and refused, and why. No text of a prompt is in it.

    Example: `groove-node logs -f --level warning`.
    """
    out = Terminal(json)
    out.starts_anew("the node goes on")
    path = App.open().home / logfile.FILE
    if not path.exists():
        if not follow:
            raise OwnerError(
                f"{path}: no node has logged here yet",
                next_step="`groove-node run` or `up` runs one; `run --verbose` logs to stderr.",
            )
        out.note(f"no node has logged here yet: waiting for {path}")
    plain = level == "debug" and not json
    count = lines if plain else ALL
    parts = _followed(path, count) if follow else iter([_last(path, count)[0]])
    shown = next(parts) if plain else _chosen(next(parts), level, json)[-max(lines, 1) :]
    while True:
        sys.stdout.write("".join(shown))
        sys.stdout.flush()
        more = next(parts, None)
        if more is None:
            return
        shown = more if plain else _chosen(more, level, json)


def _chosen(lines: list[str], level: str, as_json: bool) -> list[str]:
    grave = [each for each in logfile.entries(lines) if each.is_as_grave_as(level)]
    return [_as_json(each) if as_json else each.line for each in grave]


def _as_json(entry: logfile.Entry) -> str:
    return msgspec.json.encode(entry).decode() + "\n"


def _last(path: Path, count: int) -> tuple[list[str], int, int]:
    """The last lines of a log, whole; how far it was read, and of which file that was."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        blob = file.read(TAIL_BYTES)
        inode = os.fstat(file.fileno()).st_ino
    found = blob.decode("utf-8", "replace").splitlines(keepends=True)
    whole = found[1:] if start else found
    return whole[max(0, len(whole) - count) :], start + len(blob), inode


def _followed(path: Path, count: int) -> Iterator[list[str]]:
    """The last lines, then what comes; a log that begins anew is read from its beginning."""
    while not path.exists():
        time.sleep(LOOK_S)
    lines, place, inode = _last(path, count)
    yield lines
    while True:
        fresh = b""
        with suppress(FileNotFoundError), path.open("rb") as file:  # it is being put aside
            now = os.fstat(file.fileno())
            if now.st_ino != inode or now.st_size < place:
                place, inode = 0, now.st_ino
            file.seek(place)
            fresh = file.read()
            place += len(fresh)
        if fresh:
            yield fresh.decode("utf-8", "replace").splitlines(keepends=True)
        else:
            time.sleep(LOOK_S)


def _or_kill(node: dict[str, Any]) -> str:
    return f", or kill {node['pid']}" if node["pid"] else ""
