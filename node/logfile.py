"""Where a running node logs: to GROOVE_HOME/node.log, and to the terminal what someone must act on.

What the owner should know while looking is told as events (`node.told`); the log is for the next
morning and for reports of faults. No text of a prompt is in it, as in any log of the node.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE = "node.log"
SIZE_BYTES_MAX = 4 << 20  # then the file becomes node.log.1, and the one before that goes


class _Private(RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")


def log_to(home: Path, *, verbose: bool) -> None:
    """Log from now on; verbose: all of it to stderr instead. Raises OSError."""
    logging.raiseExceptions = False  # a log on a full disk is no reason to fill the terminal
    shown = logging.StreamHandler()
    handlers: list[logging.Handler] = [shown]
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    shown.setFormatter(form)
    if not verbose:
        shown.setLevel(logging.ERROR)
        shown.setFormatter(logging.Formatter("error: %(message)s"))
        kept = _Private(home / FILE, maxBytes=SIZE_BYTES_MAX, backupCount=1)
        kept.setFormatter(form)
        handlers.append(kept)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for name in ("httpx", "httpcore"):  # they log each URL, and its query is a client's text
        logging.getLogger(name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was logged; of several lines if it has a traceback."""

    at: str  # local time, as it stands in the file
    level: str
    logger: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.at} {self.level} {self.logger} {self.text}\n"

    def is_as_grave_as(self, level: str) -> bool:
        known = logging.getLevelNamesMapping()
        return known.get(self.level, logging.INFO) >= known[level.upper()]


_ENTRY = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+) ([A-Z]+) (\S+) (.*)", re.DOTALL)


def entries(lines: Iterable[str]) -> Iterator[Entry]:
    """What was logged in these lines. Lines before the first whole entry are of one cut off."""
    held: list[str] = []
    for line in lines:
        if _ENTRY.match(line) and held:
            yield from _entry(held)
            held = []
        if held or _ENTRY.match(line):
            held.append(line)
    yield from _entry(held)


def _entry(lines: list[str]) -> Iterator[Entry]:
    if found := _ENTRY.match("".join(lines).rstrip("\n")):
        yield Entry(*found.groups())
