"""What happened, told once: to the terminal, to `--json`, and to the event file of the home.

GROOVE_HOME/events.jsonl is what the owner reads in the morning and what programs follow. No
event carries the text of a prompt.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from .clock import Clock

log = logging.getLogger(__name__)

FILE = "events.jsonl"
SIZE_BYTES_MAX = 4 << 20  # then the file becomes events.jsonl.1, and the one before that goes


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that happened: a fixed word, a line to read, and its figures for a program."""

    event: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)


Tell = Callable[[Told], None]


class Say(Protocol):
    """Tells by the parts of a `Told`."""

    def __call__(self, event: str, text: str, **data: Any) -> None: ...


def saying(tell: Tell) -> Say:
    """The same, for whoever tells much."""

    def say(event: str, text: str, **data: Any) -> None:
        tell(Told(event, text, data))

    return say


class EventFile:
    """Appends events to a home; one write each, so lines of several processes do not mix.

    What happened has happened: an event that cannot be written is logged, and nothing else stops.
    """

    def __init__(self, home: Path, clock: Clock) -> None:
        self._path = home / FILE
        self._clock = clock

    def tell(self, told: Told) -> None:
        line = {"at": round(self._clock.now_s(), 3), **msgspec.to_builtins(told)}
        try:
            self._append(msgspec.json.encode(line) + b"\n")
        except OSError as problem:
            log.error("event not written event=%s problem=%s", told.event, problem)

    def _append(self, line: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size > SIZE_BYTES_MAX:
            self._path.replace(self._path.with_suffix(".jsonl.1"))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
