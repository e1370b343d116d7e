"""The store in SQLite: whole writes, in order, and a clear word when the file is damaged."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gossip.ports import Record, Store
from gossip.sqlite_store import SqliteStore, StoreDamagedError

ROWS = [Record("card", b"b", b"2"), Record("card", b"a", b"1"), Record("own", b"last", b"\0")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gossip.db"


def test_what_was_written_is_there_when_it_is_opened_again(path: Path) -> None:
    store: Store = SqliteStore(path)
    assert store.load() == []
    store.write(ROWS, [], durable=True)
    store.write([Record("card", b"a", b"3")], [("card", b"b"), ("card", b"none")], durable=False)
    store.close()  # type: ignore[attr-defined]
    again = SqliteStore(path)
    assert again.load() == [Record("card", b"a", b"3"), Record("own", b"last", b"\0")]
    again.close()


def test_the_file_is_the_owners_alone(path: Path) -> None:
    SqliteStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_nothing_behind(path: Path) -> None:
    store = SqliteStore(path)
    bad = Record("card", b"z", None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.write([*ROWS, bad], [], durable=True)
    assert store.load() == []
    store.write(ROWS, [], durable=True)
    assert len(store.load()) == 3
    store.close()


@pytest.mark.parametrize("damage", ["noise", "torn page", "other schema"])
def test_a_damaged_file_is_named_and_not_used(path: Path, damage: str) -> None:
    store = SqliteStore(path)
    store.write([Record("card", bytes([n]), os.urandom(4000)) for n in range(50)], [], durable=True)
    store.close()
    if damage == "noise":
        path.write_bytes(b"not a database at all" * 100)
    elif damage == "torn page":
        data = bytearray(path.read_bytes())
        data[4096:20480] = b"\xff" * 16384
        path.write_bytes(bytes(data))
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
    with pytest.raises(StoreDamagedError, match=str(path)):
        SqliteStore(path)


def test_a_file_that_is_locked_is_not_called_damaged(path: Path) -> None:
    SqliteStore(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    code = "import sys, sqlite3\nfrom pathlib import Path\n" + (
        "import gossip.sqlite_store as s\nreal = sqlite3.connect\n"
        "sqlite3.connect = lambda *a, **k: real(*a, **k | {'timeout': 0.01})\n"
        "try: s.SqliteStore(Path(sys.argv[1]))\n"
        "except sqlite3.OperationalError: print('locked')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "locked"
    other.close()


def test_many_threads_may_write(path: Path) -> None:
    store = SqliteStore(path)

    def write(n: int) -> None:
        for i in range(20):
            store.write([Record("card", bytes([n, i]), b"x")], [], durable=False)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.load()) == 80
    store.close()


def test_a_durable_write_survives_the_process_being_killed(path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from gossip.ports import Record\nfrom gossip.sqlite_store import SqliteStore\n"
        "store = SqliteStore(Path(sys.argv[1]))\n"
        "for n in range(50): store.write([Record('own', bytes([n]), b'x')], [], durable=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert run.returncode == -9
    store = SqliteStore(path)
    assert len(store.load()) == 50
    store.close()
