"""What the corpus holds already, so that no record is ever taken in twice, whoever reads it.

An import and the watcher of a running node may meet the same session at the same moment. Each
writes only within its turn, a lock on the folder of the corpus, and reads first what the other has
added since. Memory is eight bytes an id: a million records are 8 MB.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.capture.corpus import TrainingCorpus
from node.capture.record import ContentType, decode_line, read_lines

ANSWERS = frozenset({ContentType.COMPLETION.value, ContentType.CONVERSATION.value})
RECENT_MAX = 50_000  # ids kept in a set, until they are sorted in with the others


@dataclass(frozen=True, slots=True)
class _Read:
    """How far one daily file was read, and which file that was."""

    device: int
    inode: int
    offset: int


class HeldRecords:
    """The ids of the records and sessions of a corpus.

    An id is known by 64 bits of its hash: among a million, one in 40 million is taken for another.
    """

    def __init__(self, corpus: TrainingCorpus) -> None:
        self._corpus = corpus
        self._sorted: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._recent: set[int] = set()
        self._read: dict[Path, _Read] = {}

    def __contains__(self, id_: str) -> bool:
        mark = _mark(id_)
        if mark in self._recent:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(mark)))
        return place < len(self._sorted) and int(self._sorted[place]) == mark

    def note(self, ids: Iterable[str]) -> None:
        """Hold ids for known that no file shows: those of a dry run."""
        self._recent.update(map(_mark, ids))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This process's turn to write: until it ends, what is known here is all there is."""
        fd = os.open(self._corpus.root / ".held.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self.catch_up()
            yield
        finally:
            os.close(fd)

    def catch_up(self) -> None:
        """Read what was added since; all anew if a deletion has replaced a file."""
        if not self._caught_up():
            self._forget()
            self._caught_up()

    def _caught_up(self) -> bool:
        """False if a file is another one than before: then ids may be known that are gone."""
        found = array.array("Q")
        files = self._corpus.files()
        if self._read.keys() - set(files):
            return False
        for path in files:
            try:
                now = path.stat()
            except FileNotFoundError:
                continue
            seen = self._read.get(path)
            if seen is not None and (
                (seen.device, seen.inode) != (now.st_dev, now.st_ino) or now.st_size < seen.offset
            ):
                return False
            offset = seen.offset if seen else 0
            if now.st_size > offset:
                self._read[path] = _Read(now.st_dev, now.st_ino, _ids(path, offset, found))
        self._take(found)
        return True

    def _take(self, found: array.array[int]) -> None:
        if len(found) + len(self._recent) <= RECENT_MAX:
            self._recent.update(found)
            return
        recent = np.fromiter(self._recent, np.uint64, len(self._recent))
        fresh = np.frombuffer(found, np.uint64) if found else np.empty(0, np.uint64)
        self._sorted = np.unique(np.concatenate((self._sorted, recent, fresh)))
        self._recent.clear()

    def _forget(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent.clear()
        self._read.clear()


def _ids(path: Path, offset: int, found: array.array[int]) -> int:
    """Add the ids of all whole records from an offset on, and return where to read on."""
    end, session = offset, ""
    for start, line in read_lines(path, offset):
        end = start + len(line)
        record = decode_line(line)
        if record is None:
            continue
        found.append(_mark(record.record_id))
        if record.session_id != session:  # the records of a session mostly stand together
            session = record.session_id
            found.append(_mark(session))
        if record.content_type in ANSWERS:
            found.append(_mark(answer_mark(session)))
    return end


def answer_mark(session_id: str) -> str:
    """What is held besides of a session that has an answer."""
    return f"{session_id}/answered"


def _mark(id_: str) -> int:
    digest = hashlib.blake2b(id_.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
