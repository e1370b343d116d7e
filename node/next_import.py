"""Which import would bring the next leaf nearer: what lies on this machine and was not taken in.

Only names, sizes and dates of files are known of it, so nothing is promised: how many sessions are
in it, and of which domain, is told by the import.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .history import History

FEW = 200  # sessions of a first leaf, at least
SHOWN_MAX = 3


def suggestions(
    histories: Iterable[History], embedded: int, captures: bool
) -> list[dict[str, Any]]:
    """What could be brought in, what most of it is in first.

    captures: whether the owner allows capture at all. embedded: sessions that are here already.
    """
    found: list[dict[str, Any]] = []
    for each in histories:
        if each.allowed and each.unread:
            command = f"groove-node import {each.source}"
        elif not each.allowed and each.transcripts:
            folder = " --folder DIR" if each.folders is not None else ""
            command = f"groove-node consent grant capture --source {each.source}{folder}"
        else:
            continue
        found.append(
            {
                "source": each.source,
                "transcripts": each.unread if each.allowed else each.transcripts,
                "allowed": each.allowed,
                "command": command,
            }
        )
    found.sort(key=lambda x: (-x["transcripts"], x["source"]))
    if not found and embedded < FEW:
        command = (
            "groove-node import pydoc PACKAGE" if captures else "groove-node consent grant capture"
        )
        found.append({"source": "pydoc", "transcripts": 0, "allowed": captures, "command": command})
    return found[:SHOWN_MAX]


def facts(found: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """The same, to read."""
    return [("would help" if not n else "", _line(each)) for n, each in enumerate(found)]


def _line(each: dict[str, Any]) -> str:
    count = each["transcripts"]
    if not count:
        what = "what installed packages document about themselves"
    else:
        some = f"{count:,} transcript{'s' * (count != 1)} of {each['source']}"
        what = f"{some} {'not read yet' if each['allowed'] else 'here, not allowed'}"
    return f"{what}: `{each['command']}`"
