"""The embedding store: one fp32 vector per session, on this machine only.

Rows lie in one flat file that is memory-mapped for reading; which row is whose stands in SQLite
beside it. A row counts only once its record is committed, and is on disk before that: a torn
write leaves bytes behind the last row, which the next append overwrites.

Rows are dense: n sessions lie in rows 0 to n - 1, in the order of their arrival. So the number of
sessions is one look at the end of the index, and a million of them open as fast as ten.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .model import Matrix, Vector
from .ports import Progress, Report, silent

INDEX_FILE = "index.sqlite"
LOCK_TIMEOUT_S = 30.0
UNIT_TOLERANCE = 1e-3
BLOCK_BYTES = 4 << 20  # copied at once; a delete needs no more memory, whatever the file holds
DELETE_CACHE_KIB = 128 << 10  # of the index, whose pages all change when rows are renumbered
ASKED_AT_ONCE = 500  # ids in one statement; SQLite's own limit was 999 for long
VERSION = 2  # of the schema; 1, without the index by day, left it at 0
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (enc8 BLOB NOT NULL, dimensions INT NOT NULL, file INT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (row INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, day INT);
CREATE INDEX IF NOT EXISTS rows_day ON rows (day);
"""


class EmbeddingStoreError(RuntimeError):
    """The store cannot be used as it is; the message says why."""


class OtherEncoderError(EmbeddingStoreError):
    """The store holds the vectors of another encoder than the one that is asked for."""


Refusal = Callable[[EmbeddingStoreError], Exception]  # what is raised in place of the store's own


def _as_it_is(problem: EmbeddingStoreError) -> Exception:
    return problem


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
    Damage may come to light in any call, which then raises what `refusal` makes of it.
    """

    def __init__(self, folder: Path, enc8: bytes, dimensions: int, refusal: Refusal) -> None:
        """Use `open`, which checks what is on disk first."""
        self._folder = folder
        self._enc8 = enc8
        self._dimensions = dimensions
        self._refusal = refusal

    @classmethod
    def open(
        cls, folder: Path, enc8: bytes, dimensions: int, refusal: Refusal = _as_it_is
    ) -> EmbeddingStore:
        """Open the store in `folder`, making it if it is not there (folder 0700, files 0600).

        Raises OtherEncoderError if it holds another encoder's vectors, EmbeddingStoreError if it
        has lost rows or its index is damaged; or what `refusal` makes of those.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(folder / INDEX_FILE, os.O_CREAT | os.O_RDWR, 0o600))
        store = cls(folder, enc8, dimensions, refusal)
        with store._reading() as index:  # takes no lock from a writer if all is as it should be
            if _version(index) == VERSION:
                store._check(index)
                if not store._strays(index):
                    return store
        with store._writing() as index:
            store._upgrade(index)
            store._check(index)
            store._sweep(index)
        return store

    def __len__(self) -> int:
        with self._reading() as index:
            return _count(index)

    def snapshot(self) -> Snapshot:
        """Return ids, days and vectors as of one moment, in the order of their arrival."""
        with self._reading() as index:  # held while mapping, so that no delete comes between
            ids: list[str] = []
            days: list[int] = []
            for row, id_, day in index.execute("SELECT row, id, day FROM rows ORDER BY row"):
                _expect(row, len(ids))
                ids.append(id_)
                days.append(day)
            matrix = self._map(self._file(index), len(ids))
        return Snapshot(ids, days, matrix)

    def sound(self, report: Report = silent) -> Snapshot:
        """As `snapshot`, with every vector looked at: damaged bytes are refused. 2 µs a row."""
        snapshot = self.snapshot()
        wrong = 0
        for start in range(0, len(snapshot.ids), _rows_per_block(self._dimensions)):
            block = snapshot.matrix[start : start + _rows_per_block(self._dimensions)]
            wrong += len(_not_unit(np.linalg.norm(block, axis=1)))
            report(Progress("check vectors", start + len(block), len(snapshot.ids)))
        if wrong:
            with self._reading() as index:
                file = self._file(index).name
                raise EmbeddingStoreError(
                    f"{wrong:,} of {len(snapshot.ids):,} vectors in {file} are not of length 1"
                )
        return snapshot

    def ids(self) -> list[str]:
        """Session ids in the order of their rows."""
        with self._reading() as index:
            ids: list[str] = []
            for row, id_ in index.execute("SELECT row, id FROM rows ORDER BY row"):
                _expect(row, len(ids))
                ids.append(id_)
            return ids

    def days(self) -> dict[str, int]:
        """Session id -> days since 1970-01-01."""
        with self._reading() as index:
            return dict(index.execute("SELECT id, day FROM rows ORDER BY row"))

    def since(self, day: int) -> list[str]:
        """Ids of the sessions closed on that day or later, by day, then as they arrived."""
        with self._reading() as index:
            found = index.execute("SELECT id FROM rows WHERE day >= ? ORDER BY day, row", (day,))
            return [id_ for (id_,) in found]

    def rows_of(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The row of each of these sessions, in their order; -1 for one that is not here.

        Costs 2 µs an id, however many sessions there are. Rows hold until the next `delete`.
        """
        with self._reading() as index:
            return _rows_of(index, ids)

    def matrix(self) -> Matrix:
        """All vectors, memory-mapped. With `ids` from another call, use `snapshot` instead."""
        with self._reading() as index:
            return self._map(self._file(index), _count(index))

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
            known = _rows_of(index, ids)
            fresh: dict[str, int] = {}
            for at in np.flatnonzero(known < 0).tolist():
                fresh.setdefault(ids[at], at)
            if not fresh:
                return 0
            self._write(self._file(index), first, vectors[list(fresh.values())])
            records = [(first + n, id_, int(days[at])) for n, (id_, at) in enumerate(fresh.items())]
            index.executemany("INSERT INTO rows VALUES (?, ?, ?)", records)
        return len(fresh)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove sessions for good and return how many were here.

        The rows that stay are written to a new file and the old one is unlinked, so nothing of a
        deleted vector is left in the store. Costs one copy of the file in blocks, whatever is
        deleted; killed at any moment, the store is as before or as after.
        """
        with self._writing() as index:
            index.execute(f"PRAGMA cache_size = -{DELETE_CACHE_KIB}")
            count = _count(index)
            found = _rows_of(index, list(dict.fromkeys(ids)))
            gone: list[int] = np.sort(found[found >= 0]).tolist()
            if not gone:
                return 0
            kept = _runs(gone, count)
            source = self._file(index)
            index.execute("UPDATE meta SET file = file + 1")
            self._copy(source, self._file(index), kept)
            index.executemany("DELETE FROM rows WHERE row = ?", ((row,) for row in gone))
            to = 0
            for first, end in kept:  # a run only moves down, to where nothing is any more
                if to != first:
                    index.execute(
                        "UPDATE rows SET row = row - ? WHERE row >= ? AND row < ?",
                        (first - to, first, end),
                    )
                to += end - first
        with self._writing() as index:
            self._sweep(index)
        return len(gone)

    def _upgrade(self, index: sqlite3.Connection) -> None:
        for statement in SCHEMA.strip().splitlines():
            index.execute(statement)
        if index.execute("SELECT count(*) FROM meta").fetchone()[0] == 0:
            index.execute("INSERT INTO meta VALUES (?, ?, 1)", (self._enc8, self._dimensions))
        if _version(index) != VERSION:
            index.execute(f"PRAGMA user_version = {VERSION}")

    def _check(self, index: sqlite3.Connection) -> None:
        enc8, dimensions, _ = _meta(index)
        if (enc8, dimensions) != (self._enc8, self._dimensions):
            raise OtherEncoderError(
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
        wrong = _not_unit(lengths)
        if len(wrong):
            raise ValueError(f"vector of {ids[wrong[0]]!r} has length {lengths[wrong[0]]}, not 1")

    def _file(self, index: sqlite3.Connection) -> Path:
        return self._folder / f"vectors-{_meta(index)[2]}.f32"

    def _map(self, path: Path, rows: int) -> Matrix:
        if rows == 0:
            return np.empty((0, self._dimensions), np.float32)
        need = rows * self._dimensions * 4
        have = path.stat().st_size if path.exists() else 0
        if have < need:
            raise EmbeddingStoreError(f"{path} has {have} bytes, its index speaks of {need}")
        shape = (rows, self._dimensions)
        mapped: Matrix = np.memmap(path, np.dtype("<f4"), mode="r", shape=shape).view(np.ndarray)
        return mapped

    def _write(self, path: Path, first: int, vectors: Matrix) -> None:
        new = not path.exists()
        with _opened(path) as handle:
            os.lseek(handle, first * self._dimensions * 4, os.SEEK_SET)
            for start in range(0, len(vectors), _rows_per_block(self._dimensions)):
                block = vectors[start : start + _rows_per_block(self._dimensions)]
                _write_all(handle, np.ascontiguousarray(block, np.dtype("<f4")).tobytes())
            os.ftruncate(handle, (first + len(vectors)) * self._dimensions * 4)
            os.fsync(handle)
        if new:
            _sync_folder(self._folder)

    def _copy(self, source: Path, target: Path, runs: Sequence[tuple[int, int]]) -> None:
        """Write these runs of rows to a new file, and have it on disk."""
        row_bytes = self._dimensions * 4
        target.unlink(missing_ok=True)
        with source.open("rb", buffering=0) as old, _opened(target) as handle:
            block = bytearray()
            for first, end in runs:
                at, left = first * row_bytes, (end - first) * row_bytes
                while left:
                    piece = os.pread(old.fileno(), min(left, BLOCK_BYTES - len(block)), at)
                    if not piece:
                        raise EmbeddingStoreError(f"{source} ended at byte {at}, unexpectedly")
                    block += piece
                    at, left = at + len(piece), left - len(piece)
                    if len(block) == BLOCK_BYTES:
                        _write_all(handle, block)
                        block.clear()
            _write_all(handle, block)
            os.fsync(handle)
        _sync_folder(self._folder)

    def _strays(self, index: sqlite3.Connection) -> list[Path]:
        """Vector files that no record speaks of: of a delete, finished or torn."""
        current = self._file(index)
        return [path for path in self._folder.glob("vectors-*.f32") if path != current]

    def _sweep(self, index: sqlite3.Connection) -> None:
        """Remove the strays; under the write lock, for a delete that goes on has one too."""
        strays = self._strays(index)
        for path in strays:
            path.unlink()
        if strays:
            _sync_folder(self._folder)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._refusing(), contextlib.closing(self._connect()) as index:
            index.execute("BEGIN")
            yield index

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction under the write lock: other writers wait, a failure changes nothing."""
        with self._refusing(), contextlib.closing(self._connect()) as index:
            index.execute("BEGIN IMMEDIATE")
            yield index
            index.execute("COMMIT")  # not reached on an error; closing then rolls back

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except EmbeddingStoreError as problem:
            raise self._refusal(problem) from None
        except sqlite3.OperationalError:
            raise  # a lock, a full disk: the store itself may be whole
        except sqlite3.DatabaseError as problem:
            damage = EmbeddingStoreError(f"{self._folder / INDEX_FILE} is damaged: {problem}")
            raise self._refusal(damage) from problem

    def _connect(self) -> sqlite3.Connection:
        index = sqlite3.connect(
            self._folder / INDEX_FILE, timeout=LOCK_TIMEOUT_S, isolation_level=None
        )
        index.execute("PRAGMA synchronous = FULL")
        index.execute("PRAGMA secure_delete = ON")  # a deleted session's id is overwritten
        return index


def _version(index: sqlite3.Connection) -> int:
    version: int = index.execute("PRAGMA user_version").fetchone()[0]
    return version


def _meta(index: sqlite3.Connection) -> tuple[bytes, int, int]:
    found: tuple[bytes, int, int] | None = index.execute(
        "SELECT enc8, dimensions, file FROM meta"
    ).fetchone()
    if found is None:
        raise EmbeddingStoreError("its index does not say whose vectors these are")
    return found


def _expect(row: int, place: int) -> None:
    """Refuse a gap: every session after it would be given the vector of another."""
    if row != place:
        raise EmbeddingStoreError(f"its index has lost the session of row {place}")


def _not_unit(lengths: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Where a length is not 1; NaN is not."""
    return np.flatnonzero(~(np.abs(lengths - 1.0) <= UNIT_TOLERANCE))


def _count(index: sqlite3.Connection) -> int:
    # Rows are dense, and the largest is found at once; count(*) reads the whole index.
    count: int = index.execute("SELECT coalesce(max(row) + 1, 0) FROM rows").fetchone()[0]
    return count


def _rows_of(index: sqlite3.Connection, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    row_of: dict[str, int] = {}
    for start in range(0, len(ids), ASKED_AT_ONCE):
        asked = ids[start : start + ASKED_AT_ONCE]
        marks = ",".join("?" * len(asked))
        row_of.update(index.execute(f"SELECT id, row FROM rows WHERE id IN ({marks})", asked))
    return np.fromiter((row_of.get(id_, -1) for id_ in ids), np.int64, len(ids))


def _runs(gone: Sequence[int], count: int) -> list[tuple[int, int]]:
    """The runs of rows, first and end, that stay of `count` when these, ascending, are gone."""
    edges = [-1, *gone, count]
    pairs = itertools.pairwise(edges)
    return [(before + 1, after) for before, after in pairs if after > before + 1]


def _rows_per_block(dimensions: int) -> int:
    return max(1, BLOCK_BYTES // (dimensions * 4))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes | bytearray) -> None:
    done = 0
    with memoryview(data) as view:  # released at once: a block with a view on it cannot be cleared
        while done < len(view):
            with view[done:] as rest:
                done += os.write(handle, rest)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
