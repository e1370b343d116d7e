"""The disks under simulated replicas, and how much of them a loss of power leaves.

Three of them: one that does what SQLite promises, for most runs; one that keeps nothing, for large
meshes; and one whose sectors are lost and torn beneath a log that has to keep that promise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Protocol

from gossip.ports import Record

from .files import DiskFaults as DiskFaults
from .files import SimFiles
from .log_store import LogDamagedError as LogDamagedError
from .log_store import LogStore

CHECKPOINT_BYTES = 1 << 14  # small, so that a run crashes in the midst of one now and then
Row = tuple[str, bytes]
Write = tuple[tuple[Record, ...], tuple[Row, ...]]


class Disk(Protocol):
    """A `gossip.ports.Store` that loses power. `write` and `load` raise OSError if it fails."""

    keeps: bool  # False if nothing written is ever given back

    def load(self) -> Sequence[Record]: ...

    def write(self, puts: Sequence[Record], deletes: Sequence[Row], *, durable: bool) -> None: ...

    def crash(self, rng: Random) -> int:
        """Lose power; return how much was lost, in writes or sectors."""
        ...

    def snapshot(self) -> Disk:
        """A backup of what is on it now."""
        ...


class SimDisk:
    """Behaves as SQLite with a write-ahead log does.

    Each write is there whole or not at all. A crash loses a suffix of the writes since the last
    durable one: never one from the middle, and never a durable one or what came before it.
    """

    keeps = True

    def __init__(self) -> None:
        self._synced: dict[Row, bytes] = {}
        self._unsynced: list[Write] = []

    def load(self) -> Sequence[Record]:
        """All records, ordered by (table, key)."""
        rows = dict(self._synced)
        for write in self._unsynced:
            _apply(rows, write)
        return [Record(*row, rows[row]) for row in sorted(rows)]

    def write(self, puts: Sequence[Record], deletes: Sequence[Row], *, durable: bool) -> None:
        self._unsynced.append((tuple(puts), tuple(deletes)))
        if durable:
            self._sync(len(self._unsynced))

    def crash(self, rng: Random) -> int:
        kept = rng.randint(0, len(self._unsynced))
        lost = len(self._unsynced) - kept
        self._sync(kept)
        return lost

    def snapshot(self) -> SimDisk:
        copy = SimDisk()
        copy.write(self.load(), (), durable=True)
        return copy

    def _sync(self, writes: int) -> None:
        for write in self._unsynced[:writes]:
            _apply(self._synced, write)
        self._unsynced.clear()


class NoDisk:
    """Keeps nothing: for meshes so large that only what is in memory matters."""

    keeps = False

    def load(self) -> Sequence[Record]:
        return []

    def write(self, puts: Sequence[Record], deletes: Sequence[Row], *, durable: bool) -> None:
        pass

    def crash(self, rng: Random) -> int:
        return 0

    def snapshot(self) -> NoDisk:
        return self


class FaultyDisk:
    """A log store over files that a crash tears, and that fail as the faults say."""

    keeps = True

    def __init__(
        self,
        faults: DiskFaults,
        rng: Random,
        count: Counter[str],
        records: Sequence[Record] = (),
    ) -> None:
        """Begin with some records, durably: nothing fails before."""
        self._rng, self._count = rng, count
        self._files = SimFiles(DiskFaults(), rng, count)
        self._store: LogStore | None = self._open()
        self._store.write(records, (), durable=True)
        self._files.faults = faults

    @property
    def faults(self) -> DiskFaults:
        return self._files.faults

    @faults.setter
    def faults(self, faults: DiskFaults) -> None:
        self._files.faults = faults

    def load(self) -> Sequence[Record]:
        """Open what is there and read it. Raises OSError, LogDamagedError."""
        if self._store is None:
            self._store = self._open()
        return self._store.load()

    def wipe(self) -> None:
        """Put aside what is there, and begin anew."""
        self._files = SimFiles(self.faults, self._rng, self._count)
        self._store = None

    def _open(self) -> LogStore:
        return LogStore(self._files, checkpoint_bytes=CHECKPOINT_BYTES)

    def write(self, puts: Sequence[Record], deletes: Sequence[Row], *, durable: bool) -> None:
        assert self._store is not None, "a store that failed is opened anew, never used again"
        try:
            self._store.write(puts, deletes, durable=durable)
        except OSError:
            self._store = None
            raise

    def crash(self, rng: Random) -> int:
        self._store = None
        lost = self._files.crash()
        if self._rng.random() < self.faults.rot:
            self._files.rot("base")
        return lost

    def snapshot(self) -> FaultyDisk:
        assert self._store is not None
        return FaultyDisk(self.faults, self._rng, self._count, self._store.load())


def _apply(rows: dict[Row, bytes], write: Write) -> None:
    puts, deletes = write
    for row in deletes:
        rows.pop(row, None)
    rows.update({(put.table, put.key): put.value for put in puts})
