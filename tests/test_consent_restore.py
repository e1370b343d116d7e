"""A store that is not the one written last allows nothing, and a crash turns nothing on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support_consent import USER, Home

from node import gate
from node.consent import (
    NOTHING,
    ConsentLockedError,
    ConsentManager,
    ConsentUnreadableError,
    Scope,
    Standing,
    store,
    witness,
)
from node.consent.witness import Witness, WitnessBusyError, WitnessError
from node.home import get_or_create_user_id

ROOT = Path(__file__).parent.parent
CRASH = 9

# For k = 1, 2, … in a fresh folder: ends a child at the k-th thing that it does to the home or to
# what is remembered outside, until one comes to its end. Prints how each ended.
CRASHING = """
import os, sys
from pathlib import Path
from node.consent import ConsentManager, Scope
root, user, action = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
ACTIONS = {
    "grant": lambda manager: manager.record_consent(user, True, "1.0"),
    "widen": lambda manager: manager.grant_scope(user, Scope.TRAIN),
    "narrow": lambda manager: manager.revoke_scope(user, Scope.TRAIN),
    "disallow": lambda manager: manager.disallow(user, sources=["codex"]),
    "revoke": lambda manager: manager.revoke_consent(user),
}

def prepare(db):
    if action != "grant":
        scopes = set(Scope) - ({Scope.TRAIN} if action == "widen" else set())
        with ConsentManager(db) as manager:
            manager.record_consent(user, True, "1.0", scopes=scopes, sources=["codex"])

def act(db, folder, crash_at):
    steps = 0
    def hook(event, args):
        nonlocal steps
        if event in ("open", "os.rename", "os.remove", "os.chmod") and folder in str(args[:2]):
            steps += 1
            if steps == crash_at:
                os._exit(9)
    with ConsentManager(db) as manager:
        sys.addaudithook(hook)
        ACTIONS[action](manager)
    os._exit(0)

for step in range(1, 60):
    folder = root / str(step)
    os.environ["GROOVE_STATE"] = str(folder / "state")
    (folder / "home").mkdir(mode=0o700, parents=True)
    db = folder / "home" / "consent.db"
    prepare(db)
    child = os.fork()
    if child == 0:
        act(db, str(folder), step)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code)
    if code != 9:
        break
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir(mode=0o700)
    return Home(tmp_path / "home")


def test_an_older_store_is_off_until_the_owner_is_asked_again(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0", scopes=set(Scope), sources=["llm"])
    old = home.back_up()
    with home.open() as manager:
        manager.revoke_consent(USER)
    home.restore(old)
    assert home.flag, "the backup brings its flag along"
    with home.open() as manager:
        assert manager.scopes(USER) == frozenset()
        assert not any(manager.allows(USER, scope) for scope in Scope)
        assert not manager.may_capture(USER)
        assert manager.standing(USER) is Standing.RESTORED
        assert "written last" in manager.why_off(USER)
        assert manager.get_opted_in_count() == 0
        assert not home.flag
        manager.grant_scope(USER, Scope.CAPTURE)
        assert manager.scopes(USER) == {Scope.CAPTURE}, "what the backup allowed stays off"
        assert manager.allowed_sources(USER) == frozenset()
        assert manager.standing(USER) is Standing.IN_FORCE
    with home.open() as manager:
        assert manager.scopes(USER) == {Scope.CAPTURE}
        assert home.flag


def test_a_backup_that_is_one_grant_old_is_off_too(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
    old = home.back_up()
    with home.open() as manager:
        manager.grant_scope(USER, Scope.TRAIN)
    new = home.back_up("new")
    home.restore(old)
    with home.open() as manager:
        assert manager.standing(USER) is Standing.RESTORED
    home.restore(new)
    with home.open() as manager:
        assert manager.scopes(USER) == {Scope.CAPTURE, Scope.TRAIN}, "the mistake was undone"


def test_a_home_that_was_moved_asks_again(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
    moved = Home(home.folder.with_name("elsewhere"))
    shutil.copytree(home.folder, moved.folder)
    with moved.open() as manager:
        assert manager.standing(USER) is Standing.RESTORED
        assert "remembered" in manager.why_off(USER)
        assert not moved.flag
    with home.open() as manager:
        assert manager.is_opted_in(USER)


def test_without_what_is_remembered_outside_a_store_is_off(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_STATE", str(tmp_path / "state"))
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        assert manager.is_opted_in(USER)
        for file in (tmp_path / "state").glob("*.json"):
            file.write_bytes(b"{damaged")
        assert not manager.is_opted_in(USER), "noticed at the next call"
        for file in (tmp_path / "state").glob("*.json"):
            file.unlink()
        assert manager.standing(USER) is Standing.RESTORED
        manager.record_consent(USER, True, "1.0")
        assert manager.is_opted_in(USER)


def test_a_new_home_in_an_old_ones_place_starts_anew(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
    shutil.rmtree(home.folder)
    with home.open() as manager:
        assert manager.standing(USER) is Standing.NEVER_ASKED
        manager.record_consent(USER, True, "1.0")
        assert manager.is_opted_in(USER)


def test_what_a_backup_allowed_another_user_does_not_come_back_with_a_new_grant(
    home: Home,
) -> None:
    with home.open() as manager:
        manager.record_consent("other", True, "1.0")
        manager.record_consent(USER, True, "1.0")
    old = home.back_up()
    with home.open() as manager:
        manager.revoke_consent("other")
    home.restore(old)
    with home.open() as manager:
        manager.grant_scope(USER, Scope.CAPTURE)
        assert manager.is_opted_in(USER)
        assert not manager.is_opted_in("other")
        assert manager.standing("other") is Standing.RESTORED


def test_a_row_that_was_edited_turns_nothing_on(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0", scopes={Scope.FETCH})
        manager.revoke_consent(USER)
    db = sqlite3.connect(home.db)
    db.execute("UPDATE consent SET opted_in = 1, scopes = 'capture train'")
    db.execute("UPDATE consent SET receipt = replace(receipt, 'fetch', 'capture') WHERE id = 1")
    db.execute("DELETE FROM consent WHERE id = 2")
    db.commit()
    db.close()
    with home.open() as manager:
        assert manager.scopes(USER) == frozenset()
        assert manager.standing(USER) is Standing.RESTORED


def test_a_database_of_the_earlier_form_keeps_its_history_and_asks_again(home: Home) -> None:
    db = sqlite3.connect(home.db)
    db.execute(
        "CREATE TABLE consent (id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, "
        "opted_in INTEGER NOT NULL, consent_version TEXT NOT NULL, scopes TEXT NOT NULL, "
        "metadata TEXT NOT NULL, at REAL NOT NULL)"
    )
    db.execute(
        "INSERT INTO consent (user_id, opted_in, consent_version, scopes, metadata, at) "
        "VALUES (?, 1, '1.0', 'capture train', '{}', 7.0)",
        (USER,),
    )
    db.commit()
    db.close()
    home.db.chmod(0o600)
    with home.open() as manager:
        (entry,) = manager.get_consent_history(USER)
        assert (entry.opted_in, entry.timestamp) == (True, 7.0)
        assert entry.scopes == {Scope.CAPTURE, Scope.TRAIN}
        assert manager.standing(USER) is Standing.RESTORED
        manager.grant_scope(USER, Scope.FETCH)
    with home.open() as manager:
        assert manager.scopes(USER) == {Scope.FETCH}
        assert manager.problems() == []


def test_the_mesh_can_turn_everything_off(home: Home) -> None:
    with home.open() as manager:
        assert manager.suspend("nothing to suspend") is False
        manager.record_consent(USER, True, "1.0", scopes=set(Scope), sources=["llm"])
        manager.record_consent("other", True, "1.0")
        assert manager.suspend("peers know better")
        assert manager.scopes(USER) == manager.scopes("other") == frozenset()
        assert manager.standing(USER) is Standing.RESTORED
        assert manager.why_off(USER) == "peers know better"
        assert not home.flag
        assert manager.suspend("again") is False
    with home.open() as manager:
        assert manager.standing(USER) is Standing.RESTORED
        manager.grant_scope(USER, Scope.FETCH)
        assert manager.scopes(USER) == {Scope.FETCH}


@pytest.mark.parametrize("action", ["grant", "widen", "narrow", "disallow", "revoke"])
def test_a_crash_at_any_step_leaves_the_old_word_the_new_one_or_off(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path), USER, action],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    codes = [int(code) for code in done.stdout.split()]
    assert codes == [CRASH] * (len(codes) - 1) + [0] and len(codes) > 8
    outcomes = []
    for step in range(1, len(codes) + 1):
        monkeypatch.setenv("GROOVE_STATE", str(tmp_path / str(step) / "state"))
        home = Home(tmp_path / str(step) / "home")
        flag_left = home.flag
        with home.open() as mended:
            found, standing = mended.allowed(USER), mended.standing(USER)
            history = mended.get_consent_history(USER)
            assert not flag_left or Scope.CAPTURE in found.scopes, f"step {step}: flag, and off"
            assert home.flag == (Scope.CAPTURE in found.scopes), f"step {step}"
            if standing is Standing.RESTORED:
                assert "interrupted" in mended.why_off(USER), f"step {step}"
                assert found == NOTHING
                outcomes.append("off")
            else:
                assert found == (history[-1].allowed if history else NOTHING), f"step {step}"
                outcomes.append("new" if len(history) > (action != "grant") else "old")
            mended.grant_scope(USER, Scope.FETCH)  # a word is enough to go on
            assert mended.allows(USER, Scope.FETCH)
    order = ["old", "new"] if action in ("grant", "widen") else ["old", "off", "new"]
    assert list(dict.fromkeys(outcomes)) == order, "never back"


def test_an_opening_after_a_crash_settles_what_is_certain(home: Home) -> None:
    """So that a backup of the time before is recognised from then on."""
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        first = manager.receipts()[0].hash
    old = home.back_up()
    with home.open() as manager:
        manager.grant_scope(USER, Scope.TRAIN)
        second = manager.receipts()[1].hash
    Witness(home.db).note(2, first, second, stands=True, grants=True)  # as if killed before step 3
    home.open().close()
    home.restore(old)
    with home.open() as manager:
        assert manager.standing(USER) is Standing.RESTORED


def test_a_grant_needs_the_place_outside_and_a_withdrawal_does_not(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0", scopes=set(Scope))
        before = tmp_path / "state-is-a-file"
        before.write_bytes(b"")
    monkeypatch.setenv("GROOVE_STATE", str(before))
    other = Home(tmp_path / "other")
    with other.open() as manager:
        with pytest.raises(WitnessError) as caught:
            manager.record_consent(USER, True, "1.0")
        assert "GROOVE_STATE" in caught.value.next_step
        assert manager.standing(USER) is Standing.NEVER_ASKED
        manager.record_consent(USER, False, "1.0")
        assert manager.standing(USER) is Standing.REVOKED
    with home.open() as manager:
        assert manager.revoke_consent(USER)
        assert manager.standing(USER) is Standing.REVOKED


def test_a_locked_database_is_told_and_changes_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAIT_S", 0.05)
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        holder = sqlite3.connect(home.db, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(ConsentLockedError) as caught:
                manager.grant_scope(USER, Scope.TRAIN)
            assert caught.value.unchanged and caught.value.next_step
            assert manager.scopes(USER) == {Scope.CAPTURE}, (
                "reading goes on, and the old word stands"
            )
            with pytest.raises(ConsentLockedError) as caught:
                manager.revoke_consent(USER)
            assert "nothing at all is allowed" in caught.value.unchanged
            assert manager.scopes(USER) == frozenset(), (
                "a withdrawal that failed is off all the same"
            )
            assert not home.flag
        finally:
            holder.close()
        assert manager.standing(USER) is Standing.RESTORED
        assert "interrupted" in manager.why_off(USER)
        assert manager.revoke_consent(USER)
        assert manager.standing(USER) is Standing.REVOKED


def test_a_decision_that_hangs_elsewhere_is_told_and_means_off_here(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "WAIT_S", 0.05)
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        with Witness(home.db).turn():
            assert manager.is_opted_in(USER), "nothing is out of step yet"
            with pytest.raises(WitnessBusyError) as caught:
                manager.grant_scope(USER, Scope.TRAIN)
            assert caught.value.next_step
            Witness(home.db).note(
                2, manager.receipts()[0].hash, "f" * 64, stands=False, grants=False
            )
            assert not manager.is_opted_in(USER), "a withdrawal that has begun"
        assert manager.standing(USER) is Standing.RESTORED


READ_ONLY = """
import os, sys
from node.consent import ConsentManager
from node.errors import OwnerError
if os.geteuid() == 0:
    os.setegid(65534)  # root may write everywhere
    os.seteuid(65534)
try:
    ConsentManager(sys.argv[1])
except OwnerError as problem:
    print(type(problem).__name__, "|", problem.what, "|", problem.next_step)
"""


def test_a_read_only_home_is_told_with_advice(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"groove-read-only-{os.getpid()}"  # others may look into it
    folder.mkdir(mode=0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder / "home" / "consent.db")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        told = done.stdout
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder / "consent.db")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        folder.rmdir()
    assert "HomeError" in told and "GROOVE_HOME" in told
    assert "ConsentUnreadableError" in done.stdout and "permissions" in done.stdout


def test_a_store_that_is_damaged_while_capture_runs_is_counted_and_silent(home: Home) -> None:
    from support_capture import capture

    from node.capture import CaptureItem, CaptureQueue

    made = capture(home.folder)
    queue = CaptureQueue(made.session)
    queue.start()
    assert queue.offer(CaptureItem("s", "before", "prompt"))
    pause = threading.Event()
    for _ in range(3_000):
        if queue.counters.captured:
            break
        pause.wait(0.02)
    made.consent.close()  # every later question raises, as with a file that went bad
    assert queue.offer(CaptureItem("s", "after", "prompt"))
    assert queue.close(60)
    assert queue.counters.captured == 1
    assert queue.counters.dropped_error >= 1
    assert b"after" not in made.on_disk()


@pytest.fixture
def owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "owned"))
    (tmp_path / "owned").mkdir(mode=0o700)
    yield Home(tmp_path / "owned")
    gate.close_gate(5.0)


def test_the_gate_stays_shut_on_a_restored_home_and_takes_the_flag_away(owned: Home) -> None:
    user = get_or_create_user_id(owned.folder)
    with ConsentManager(owned.db) as manager:
        manager.record_consent(user, True, "1.0")
    old = owned.back_up()
    with ConsentManager(owned.db) as manager:
        manager.revoke_consent(user)
    owned.restore(old)
    assert owned.flag
    assert gate.capture_gate() is None
    assert not owned.flag


def test_a_newer_form_is_left_to_the_program_that_wrote_it(home: Home) -> None:
    home.open().close()
    db = sqlite3.connect(home.db)
    db.execute("PRAGMA user_version = 7")
    db.commit()
    db.close()
    with pytest.raises(ConsentUnreadableError, match="form 7"):
        home.open()


def test_a_reader_never_sees_a_decision_that_widens_as_off(home: Home) -> None:
    """While another manager adds and takes away folders, capture by the API goes on."""
    stop = threading.Event()
    seen: list[bool] = []
    with home.open() as writer, home.open() as reader:
        writer.record_consent(USER, True, "1.0", sources=["codex"])

        def watch() -> None:
            while not stop.is_set():
                seen.append(reader.may_capture(USER))

        thread = threading.Thread(target=watch)
        thread.start()
        for number in range(15):
            writer.allow(USER, folders=[home.folder / str(number)])
            writer.disallow(USER, folders=[home.folder / str(number)])
        stop.set()
        thread.join()
    assert len(seen) > 15 and all(seen)
