"""`pause` and `resume`: the owner's word on what a node does by itself."""

from __future__ import annotations

import re
from typing import Annotated

from cyclopts import Parameter

from node import night_book, overview
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal

from .base import AsJson, command

_UNITS_S = {"m": 60, "min": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(min|m|h|d)")
SPAN_S_MAX = 366 * 86_400


@command.command
def pause(
    *,
    for_: Annotated[
        str | None,
        Parameter(name="--for", help="Such as 30m, 2h or 1d; else until `resume`."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Have the node do nothing by itself for a while: no rounds, no fetching, no judging.

    What runs is stopped where it is within two seconds, and goes on later: nothing is lost. It
    stands across restarts. Retractions still go out and come in, and what you start by hand runs:
    `groove-node pause --for 2h`, then `groove-node resume` if you are done sooner.
    """
    out = Terminal(json)
    app = App.open()
    for_s = None if for_ is None else seconds(for_)
    paused = night_book.pause(app.home, app.now(), for_s)
    until = f"for {for_}" if for_ else "until `groove-node resume`"
    note = "" if overview.running(app) else "; no node runs here now"
    out.done({"paused": True, "until": paused.until}, f"paused {until}{note}")


@command.command
def resume(*, json: AsJson = False) -> None:
    """Take `pause` back: the node works by itself again when its night and the machine allow it."""
    out = Terminal(json)
    was = night_book.resume(App.open().home)
    text = "unattended work goes on when [night] allows it" if was else "it was not paused"
    out.done({"paused": False, "was_paused": was}, text)


def seconds(text: str) -> int:
    """The length of "30m", "2h" or "1d". Raises MisuseError."""
    span = _SPAN.fullmatch(text.strip().lower())
    found = round(float(span[1]) * _UNITS_S[span[2]]) if span else 0
    if not 0 < found <= SPAN_S_MAX:
        raise MisuseError(
            f"--for {text!r} is no length of time, expected one like 30m, 2h or 1d, "
            "a year at most; nothing was paused"
        )
    return found
