"""The replica's records in one SQLite file: what was written durably survives any crash.

A write-ahead log, so that a write which is not durable costs no fsync and one which is costs one;
either way all of it is there after a crash, or nothing, and never a later one without an earlier.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from .ports import Record

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID
"""


class StoreDamagedError(Exception):
    """The file is not a whole database. It can be put aside: peers hold what is needed."""


class SqliteStore:
    """A `ports.Store`. One writer at a time; any thread may call."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, with mode 0600. Raises StoreDamagedError, OSError."""
        self._path = path
        self._lock = threading.Lock()
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._open()
        except sqlite3.OperationalError:  # locked, read-only, no space: the file may be sound
            self._db.close()
            raise
        except (sqlite3.DatabaseError, StoreDamagedError) as error:
            self._db.close()
            raise StoreDamagedError(f"{path}: {error}") from error

    def _open(self) -> None:
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StoreDamagedError(found)
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise StoreDamagedError(f"schema {version}, expected {SCHEMA_VERSION}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA secure_delete = ON")  # a dropped card is gone from the file, too
        self._db.execute(_SCHEMA)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def load(self) -> Sequence[Record]:
        """All records, ordered by (table, key)."""
        with self._lock:
            rows = self._db.execute("SELECT kind, key, value FROM record ORDER BY kind, key")
            return [Record(*row) for row in rows]

    def of(self, name: bytes) -> Sequence[Record]:
        """The records whose keys begin with `name`, in the order of `load`: of one origin alone."""
        query = "SELECT * FROM record WHERE substr(key, 1, ?) = ? ORDER BY kind, key"
        with self._lock:
            return [Record(*row) for row in self._db.execute(query, (len(name), name))]

    def write(
        self, puts: Sequence[Record], deletes: Sequence[tuple[str, bytes]], *, durable: bool
    ) -> None:
        """Apply all of it or nothing.

        An I/O error is raised and must not be answered by trying again: after a failed fsync the
        system may have dropped the pages and call them clean.
        """
        with self._lock:
            # FULL syncs the log at each commit; NORMAL only when it is folded into the file.
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("DELETE FROM record WHERE kind = ? AND key = ?", deletes)
                self._db.executemany(
                    "INSERT OR REPLACE INTO record VALUES (?, ?, ?)",
                    [(record.table, record.key, record.value) for record in puts],
                )

    def close(self) -> None:
        with self._lock:
            self._db.close()
