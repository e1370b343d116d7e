"""What a button starts that takes minutes: a command of ours in a child, one of a kind at a time.

The thread of the pages goes on meanwhile. A child outlives neither harm nor help: each of these
commands may be ended at any point and be run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from node.errors import OwnerError

OUTPUT_BYTES_MAX = 1 << 18
TOLD_BYTES = 2_000  # of what a command said, its end
NICE = 10


class ErrandRunningError(OwnerError):
    """It was started already."""


@dataclass(slots=True)
class Errand:
    """One started command. code: its exit code, None while it runs."""

    name: str
    what: str  # in words, as one would say "… is running"
    process: subprocess.Popen[bytes]
    said: IO[bytes] = field(repr=False)
    about: object = None  # what it was started for
    code: int | None = None
    last: str = ""
    output: bytes = b""

    @property
    def failed(self) -> bool:
        return bool(self.code)

    @property
    def told(self) -> str:
        if self.code is None:
            return f"{self.what} is running."
        if self.code:
            return f"{self.what} failed: {self.last or f'exit code {self.code}'}"
        return f"{self.what} is done. {self.last}"

    def look(self) -> None:
        """See whether it has ended, and what it said."""
        if self.code is not None or (code := self.process.poll()) is None:
            return
        self.code = code
        size = self.said.seek(0, os.SEEK_END)
        self.said.seek(max(0, size - OUTPUT_BYTES_MAX))
        self.output = self.said.read()
        lines = self.output[-TOLD_BYTES:].decode("utf-8", "replace").strip().splitlines()
        self.last = lines[-1] if lines and not code else " ".join(lines[-3:])
        self.said.close()


class Errands:
    """Those of one home, by name."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._errands: dict[str, Errand] = {}

    def start(self, name: str, what: str, arguments: Sequence[str], about: object = None) -> None:
        """Run `python -m …`. Raises ErrandRunningError while one of this name runs."""
        before = self._errands.get(name)
        if before is not None:
            before.look()
            if before.code is None:
                raise ErrandRunningError(
                    f"{what} is running already", unchanged="Nothing was started."
                )
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child has ended
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GROOVE_HOME": str(self._home), "NO_COLOR": "1"},
        )
        with suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        self._errands[name] = Errand(name, what, process, said, about)

    def get(self, name: str) -> Errand | None:
        """The one that was started last under this name, as it is now."""
        errand = self._errands.get(name)
        if errand is not None:
            errand.look()
        return errand

    def running(self, name: str) -> bool:
        errand = self.get(name)
        return errand is not None and errand.code is None

    def all(self) -> list[Errand]:
        for errand in self._errands.values():
            errand.look()
        return list(self._errands.values())

    def stamp(self) -> tuple[tuple[str, int, int | None], ...]:
        """Changes with each start and end."""
        return tuple((x.name, x.process.pid, x.code) for x in self.all())
