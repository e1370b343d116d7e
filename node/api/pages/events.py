"""The last things that happened, from the end of the event file: it is read back, never whole."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from node import told
from node.morning import Line

TAIL_BYTES = 64 << 10


def last_events(home: Path, count: int) -> list[Line]:
    """The newest first; lines that cannot be read are left out."""
    try:
        with (home / told.FILE).open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            raw = file.read(TAIL_BYTES).splitlines()[1 if start else 0 :]
    except OSError:
        return []
    found: list[Line] = []
    for line in reversed(raw):
        if len(found) == count:
            break
        try:
            found.append(msgspec.json.decode(line, type=Line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return found
