"""Counts of what capture has done, kept in the home for `status`: figures and names, no text.

Several processes add to one file: the capture queue of an application, an import, the watcher of
the running node. Nothing depends on it, so a file that is damaged begins anew.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from .home import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "capture_counts.json"
NAMES_MAX = 50  # of unknown kinds, by source: a hostile transcript must not fill the file
NAME_CHARS_MAX = 60


class SourceCounts(Struct, frozen=True):
    """What came from one source, all imports and all watching together."""

    sessions: int = 0
    records: int = 0
    last: float = 0.0  # when something was last taken in, Unix seconds
    imported: float = 0.0  # when its whole history was last imported
    malformed: int = 0
    dropped: dict[str, int] = {}  # turns, by reason
    left_out: dict[str, int] = {}  # tool output, injected context, …
    unknown: dict[str, int] = {}  # kinds of record that the parser does not know, by name
    untrainable: dict[str, int] = {}  # sessions, by the provider whose terms forbid it, or ""


class Counts(Struct, frozen=True):
    """The whole file."""

    queue: dict[str, int] = {}
    sources: dict[str, SourceCounts] = {}


class Tally:
    """The counts of one home."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE

    def read(self) -> Counts:
        """The counts so far; none if there is no file that can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Counts)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return Counts()

    def add_queue(self, counts: Mapping[str, int]) -> None:
        """Add to what became of the items offered to queues. Raises OSError."""
        with self._turn():
            before = self.read()
            self._write(msgspec.structs.replace(before, queue=_sum(before.queue, counts)))

    def add_source(self, name: str, more: SourceCounts) -> None:
        """Add what came from a source; the later of the times stand. Raises OSError.

        An import of the whole history has met every line there is: what it does not know stands
        for all before it, of which a newer parser may know some.
        """
        with self._turn():
            before = self.read()
            was = before.sources.get(name, SourceCounts())
            now = SourceCounts(
                sessions=was.sessions + more.sessions,
                records=was.records + more.records,
                last=max(was.last, more.last),
                imported=max(was.imported, more.imported),
                malformed=was.malformed + more.malformed,
                dropped=_sum(was.dropped, more.dropped),
                left_out=_sum(was.left_out, more.left_out),
                unknown=_sum({} if more.imported else was.unknown, more.unknown),
                untrainable=_sum(was.untrainable, more.untrainable),
            )
            sources = {**before.sources, name: now}
            self._write(msgspec.structs.replace(before, sources=sources))

    def _write(self, counts: Counts) -> None:
        write_atomic(self._path, msgspec.json.encode(counts))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fd = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _sum(before: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Both together; of new names no more than there is room for, and none that is long."""
    total = dict(before)
    for name, count in more.items():
        short = name if len(name) <= NAME_CHARS_MAX and name.isprintable() else "(a long name)"
        if count and (short in total or len(total) < NAMES_MAX):
            total[short] = total.get(short, 0) + count
    return total
