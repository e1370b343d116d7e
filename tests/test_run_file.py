"""What commands believe of a running node: its lock first, then its run file, whatever is in it."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node import cli, doctor, overview, show
from node.app import App, BusyError
from node.home import HomeError
from node.overview import RUN_FILE
from node.reach import findings

Said = Callable[..., str]
SOUND: dict[str, Any] = {"pid": os.getpid(), "addresses": [], "peers": []}
DAMAGED = {
    "a list": b"[1]",
    "a process that is a word": json.dumps(SOUND | {"pid": "x"}).encode(),
    "a huge process": json.dumps(SOUND | {"pid": 1 << 40}).encode(),
    "a larger process": json.dumps(SOUND | {"pid": 1 << 80}).encode(),
    "no process": json.dumps(SOUND | {"pid": 0}).encode(),
    "all processes": json.dumps(SOUND | {"pid": -1}).encode(),
    "no peers": b'{"pid": 1, "addresses": []}',
    "an address that is a number": json.dumps(SOUND | {"addresses": [5]}).encode(),
    "a peer without traffic": json.dumps(SOUND | {"peers": [{"peer": "x"}]}).encode(),
    "no UTF-8": b"\xff\xfe",
    "no UTF-8 within": b'{"pid":1,"addresses":["\xff"],"peers":[]}',
    "deep": b"[" * 200_000,
    "deep within": b'{"links":' + b'{"a":' * 200_000,
    "empty": b"",
}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    for name in ("GROOVE_HOME", "GROOVE_STATE", "GROOVE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    opened = App.open(create=True)
    assert opened.origin and opened.user_id
    return opened


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command that ends well prints."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("blob", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_file_is_no_node_or_one_of_which_nothing_more_is_known(
    app: App, blob: bytes, said: Said
) -> None:
    (app.home / RUN_FILE).write_bytes(blob)
    assert overview.running(app) is None
    with app.lock("run"):
        node = overview.running(app)
        assert node is not None and node["pid"] is None and node["damaged"]
        assert "cannot be read" in said("status")
        said("peers", "list")
        [row] = [each for each in doctor.examine() if each.check == "node"]
        assert row.verdict == "bad"


def test_a_process_that_got_the_number_of_a_dead_node_is_no_node(app: App) -> None:
    (app.home / RUN_FILE).write_text(json.dumps(SOUND | {"pid": os.getppid()}))
    assert overview.running(app) is None


def test_a_node_that_listens_nowhere_for_a_moment_is_shown(app: App, said: Said) -> None:
    (app.home / RUN_FILE).write_text(json.dumps(SOUND))
    with app.lock("run"):
        assert "not listening now" in said("status")
        [row] = [each for each in doctor.examine() if each.check == "node"]
        assert row.verdict == "note" and "not listening" in row.text
    assert findings(SOUND, "/ip4/127.0.0.1/tcp/0", [])[0][1] == "note"


def test_whoever_looks_at_a_lock_does_not_take_it_from_a_node_that_starts(app: App) -> None:
    ended = threading.Event()

    def looks() -> None:
        while not ended.is_set():
            assert not app.is_locked("other")
            app.is_locked("run")

    lookers = [threading.Thread(target=looks) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with app.lock("run", "taken", patience_s=30.0), pytest.raises(BusyError):
                app.lock("run", "taken").__enter__()
    finally:
        ended.set()
        for looker in lookers:
            looker.join()


@pytest.mark.parametrize("pid", [None, 12])
def test_a_process_is_named_if_it_is_known(pid: int | None) -> None:
    assert ("12" in show.process({"pid": pid})) == (pid == 12)


# ---- what to do about a store --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_FULL, "Make room"),
        (sqlite3.SQLITE_IOERR_WRITE, "Make room"),
        (sqlite3.SQLITE_CANTOPEN, "Make room"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "Make room"),
        (sqlite3.SQLITE_BUSY, "Another program"),
        (sqlite3.SQLITE_CORRUPT, "Move it aside"),
        (sqlite3.SQLITE_NOTADB, "Move it aside"),
    ],
)
def test_a_store_is_to_be_moved_aside_only_if_the_file_itself_is_damaged(
    app: App, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    problem = sqlite3.OperationalError("it fails")
    problem.sqlite_errorcode = code

    def fails(home: Path) -> None:
        raise problem

    monkeypatch.setattr("node.app.Mailbox", fails)
    with pytest.raises(HomeError) as caught:
        assert app.mailbox
    assert caught.value.next_step.startswith(advice)


def test_a_store_that_cannot_be_made_for_want_of_room_is_left_in_its_place(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(home: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("node.app.Mailbox", fails)
    with pytest.raises(HomeError) as caught:
        assert app.mailbox
    assert caught.value.next_step.startswith("Make room")
