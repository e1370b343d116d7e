"""A disk that keeps what was synced and may lose the rest: the store under simulated replicas."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gossip.ports import Record

Write = tuple[tuple[Record, ...], tuple[tuple[str, bytes], ...]]


class SimDisk:
    """A `gossip.ports.Store` that behaves as SQLite with a write-ahead log does.

    Each write is there whole or not at all. A crash loses a suffix of the writes since the last
    durable one: never one from the middle, and never a durable one or what came before it.
    """

    def __init__(self) -> None:
        self._synced: dict[tuple[str, bytes], bytes] = {}
        self._unsynced: list[Write] = []

    def load(self) -> Sequence[Record]:
        """All records, ordered by (table, key)."""
        rows = dict(self._synced)
        for write in self._unsynced:
            _apply(rows, write)
        return [Record(*row, rows[row]) for row in sorted(rows)]

    def write(
        self, puts: Sequence[Record], deletes: Sequence[tuple[str, bytes]], *, durable: bool
    ) -> None:
        self._unsynced.append((tuple(puts), tuple(deletes)))
        if durable:
            self._sync(len(self._unsynced))

    def crash(self, rng: Random) -> int:
        """Lose power; return how many writes were lost."""
        kept = rng.randint(0, len(self._unsynced))
        lost = len(self._unsynced) - kept
        self._sync(kept)
        return lost

    def snapshot(self) -> SimDisk:
        """A backup of what is on it now."""
        copy = SimDisk()
        copy.write(self.load(), (), durable=True)
        return copy

    def _sync(self, writes: int) -> None:
        for write in self._unsynced[:writes]:
            _apply(self._synced, write)
        self._unsynced.clear()


def _apply(rows: dict[tuple[str, bytes], bytes], write: Write) -> None:
    puts, deletes = write
    for row in deletes:
        rows.pop(row, None)
    rows.update({(put.table, put.key): put.value for put in puts})
