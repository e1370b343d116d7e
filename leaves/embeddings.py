"""The embedding store: one fp32 vector per session, on this machine only.

Rows lie in one flat file that is memory-mapped for reading; which row is whose stands in SQLite
beside it. A row counts only once its record is committed, and is on disk before that: a torn
write leaves bytes behind the last row, which the next append overwrites.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .model import Matrix, Vector

INDEX_FILE = "index.sqlite"
LOCK_TIMEOUT_S = 30.0
UNIT_TOLERANCE = 1e-3
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (enc8 BLOB NOT NULL, dimensions INT NOT NULL, file INT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (row INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, day INT);
"""


class EmbeddingStoreError(RuntimeError):
    """The store cannot be used as it is; the message says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows at one moment: `matrix[i]` is the vector of session `ids[i]`, closed on `days[i]`.

    days: days since 1970-01-01. matrix: shape (n, d), a read-only memory-map.
    """

    ids: list[str]
    days: list[int]
    matrix: Matrix


class Rows(Mapping[str, Vector]):
    """A snapshot's vectors by session id, without copying them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._matrix = snapshot.matrix
        self._row = {id_: row for row, id_ in enumerate(snapshot.ids)}

    def __getitem__(self, id_: str) -> Vector:
        row: Vector = self._matrix[self._row[id_]]
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


class EmbeddingStore:
    """Vectors of one encoder, by session id. May be used by several threads and processes.

    Each call opens the index anew (0.2 ms), so there is nothing to close and nothing goes stale.
    """

    def __init__(self, folder: Path, enc8: bytes, dimensions: int) -> None:
        """Use `open`, which checks what is on disk first."""
        self._folder = folder
        self._enc8 = enc8
        self._dimensions = dimensions

    @classmethod
    def open(cls, folder: Path, enc8: bytes, dimensions: int) -> EmbeddingStore:
        """Open the store in `folder`, making it if it is not there (folder 0700, files 0600).

        Raises EmbeddingStoreError if it holds another encoder's vectors, or has lost rows.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(folder / INDEX_FILE, os.O_CREAT | os.O_RDWR, 0o600))
        store = cls(folder, enc8, dimensions)
        with store._writing() as index:
            for statement in SCHEMA.strip().splitlines():
                index.execute(statement)
            if index.execute("SELECT count(*) FROM meta").fetchone()[0] == 0:
                index.execute("INSERT INTO meta VALUES (?, ?, 1)", (enc8, dimensions))
            store._check(index)
            store._sweep(index)
        return store

    def __len__(self) -> int:
        with self._reading() as index:
            return _count(index)

    def snapshot(self) -> Snapshot:
        """Return ids, days and vectors as of one moment, in the order of their arrival."""
        with self._reading() as index:  # held while mapping, so that no delete comes between
            records = index.execute("SELECT id, day FROM rows ORDER BY row").fetchall()
            matrix = self._map(self._file(index), len(records))
        return Snapshot([r[0] for r in records], [r[1] for r in records], matrix)

    def ids(self) -> list[str]:
        """Session ids in the order of their rows."""
        return self.snapshot().ids

    def days(self) -> dict[str, int]:
        """Session id -> days since 1970-01-01."""
        snapshot = self.snapshot()
        return dict(zip(snapshot.ids, snapshot.days, strict=True))

    def matrix(self) -> Matrix:
        """All vectors, memory-mapped. With `ids` from another call, use `snapshot` instead."""
        return self.snapshot().matrix

    def vectors(self) -> Rows:
        """All vectors by session id, memory-mapped."""
        return Rows(self.snapshot())

    def vector(self, id_: str) -> Vector | None:
        """The vector of one session, if it is here."""
        with self._reading() as index:
            found = index.execute("SELECT row FROM rows WHERE id = ?", (id_,)).fetchone()
            if found is None:
                return None
            matrix = self._map(self._file(index), found[0] + 1)
            row: Vector = np.array(matrix[found[0]])
            return row

    def append(self, ids: Sequence[str], days: Sequence[int], vectors: Matrix) -> int:
        """Add vectors of new sessions and return how many were new; known ids keep their vector.

        vectors: shape (len(ids), d), float32, unit length. On return they survive any crash.
        """
        self._check_vectors(ids, days, vectors)
        with self._writing() as index:
            first = _count(index)
            fresh: dict[str, int] = {}
            for at, id_ in enumerate(ids):
                known = index.execute("SELECT 1 FROM rows WHERE id = ?", (id_,)).fetchone()
                if known is None and id_ not in fresh:
                    fresh[id_] = at
            if not fresh:
                return 0
            self._write(self._file(index), first, vectors[list(fresh.values())])
            records = [(first + n, id_, int(days[at])) for n, (id_, at) in enumerate(fresh.items())]
            index.executemany("INSERT INTO rows VALUES (?, ?, ?)", records)
        return len(fresh)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove sessions for good and return how many were here.

        The rows that stay are written to a new file and the old one is unlinked, so nothing of a
        deleted vector is left in the store. Costs one copy of the file, whatever is deleted.
        """
        gone = set(ids)
        with self._writing() as index:
            records = index.execute("SELECT row, id, day FROM rows ORDER BY row").fetchall()
            kept = [record for record in records if record[1] not in gone]
            if len(kept) == len(records):
                return 0
            matrix = self._map(self._file(index), len(records))
            index.execute("UPDATE meta SET file = file + 1")
            target = self._file(index)
            target.unlink(missing_ok=True)
            self._write(target, 0, matrix[[record[0] for record in kept]])
            index.execute("DELETE FROM rows")
            renumbered = [(row, id_, day) for row, (_, id_, day) in enumerate(kept)]
            index.executemany("INSERT INTO rows VALUES (?, ?, ?)", renumbered)
        with self._writing() as index:
            self._sweep(index)
        return len(records) - len(kept)

    def _check(self, index: sqlite3.Connection) -> None:
        enc8, dimensions = index.execute("SELECT enc8, dimensions FROM meta").fetchone()
        if (enc8, dimensions) != (self._enc8, self._dimensions):
            raise EmbeddingStoreError(
                f"{self._folder} holds {dimensions}-d vectors of encoder {enc8.hex()}, not "
                f"{self._dimensions}-d ones of {self._enc8.hex()}. Vectors of two encoders cannot "
                "be compared: move the folder away, and the next round embeds all sessions anew."
            )
        self._map(self._file(index), _count(index))

    def _check_vectors(self, ids: Sequence[str], days: Sequence[int], vectors: Matrix) -> None:
        if vectors.shape != (len(ids), self._dimensions) or len(days) != len(ids):
            raise ValueError(
                f"{len(ids)} ids and {len(days)} days do not fit vectors of shape {vectors.shape}, "
                f"expected ({len(ids)}, {self._dimensions})"
            )
        lengths = np.linalg.norm(vectors, axis=1) if len(ids) else np.ones(0)
        wrong = np.flatnonzero(~(np.abs(lengths - 1.0) <= UNIT_TOLERANCE))
        if len(wrong):
            raise ValueError(f"vector of {ids[wrong[0]]!r} has length {lengths[wrong[0]]}, not 1")

    def _file(self, index: sqlite3.Connection) -> Path:
        number = index.execute("SELECT file FROM meta").fetchone()[0]
        return self._folder / f"vectors-{number}.f32"

    def _map(self, path: Path, rows: int) -> Matrix:
        if rows == 0:
            return np.empty((0, self._dimensions), np.float32)
        need = rows * self._dimensions * 4
        have = path.stat().st_size if path.exists() else 0
        if have < need:
            raise EmbeddingStoreError(
                f"{path} has {have} bytes, its index speaks of {need}. Move {self._folder} away, "
                "and the next round embeds all sessions anew."
            )
        shape = (rows, self._dimensions)
        mapped: Matrix = np.memmap(path, np.dtype("<f4"), mode="r", shape=shape).view(np.ndarray)
        return mapped

    def _write(self, path: Path, first: int, vectors: Matrix) -> None:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "r+b") as file:
            file.seek(first * self._dimensions * 4)
            file.write(np.ascontiguousarray(vectors, np.dtype("<f4")).tobytes())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._folder)

    def _sweep(self, index: sqlite3.Connection) -> None:
        """Remove vector files that no record speaks of: of a delete, finished or torn."""
        current = self._file(index)
        for path in self._folder.glob("vectors-*.f32"):
            if path != current:
                path.unlink()
        _sync_folder(self._folder)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(self._connect()) as index:
            index.execute("BEGIN")
            yield index

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction under the write lock: other writers wait, a failure changes nothing."""
        with contextlib.closing(self._connect()) as index:
            index.execute("BEGIN IMMEDIATE")
            yield index
            index.execute("COMMIT")  # not reached on an error; closing then rolls back

    def _connect(self) -> sqlite3.Connection:
        index = sqlite3.connect(
            self._folder / INDEX_FILE, timeout=LOCK_TIMEOUT_S, isolation_level=None
        )
        index.execute("PRAGMA synchronous = FULL")
        index.execute("PRAGMA secure_delete = ON")  # a deleted session's id is overwritten
        return index


def _count(index: sqlite3.Connection) -> int:
    count: int = index.execute("SELECT count(*) FROM rows").fetchone()[0]
    return count


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
