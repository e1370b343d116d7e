"""Consent: off by default, per scope, per version of the terms, and safe against a crash."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support_capture import NOON, USER, HandClock

from node.capture import ConsentManager, Scope
from node.consent import ConsentUnreadableError
from node.home import WideOpenError

ROOT = Path(__file__).parent.parent
CRASH = 9

# Ends the process at the k-th thing it does to the home: a crash before that step.
CRASHING = """
import os, sys
from pathlib import Path
from node.consent import ConsentManager
home, user, action, k = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
manager = ConsentManager(Path(home) / "consent.db")
steps = 0
def hook(event, args):
    global steps
    if event in ("open", "os.rename", "os.remove", "os.chmod") and home in str(args[:2]):
        steps += 1
        if steps == k:
            os._exit(9)
sys.addaudithook(hook)
if action == "grant":
    manager.record_consent(user, True, "1.0")
else:
    manager.revoke_consent(user)
"""


@pytest.fixture
def manager(tmp_path: Path) -> ConsentManager:
    return ConsentManager(tmp_path / "consent.db", clock=HandClock())


def flag(manager_home: Path) -> bool:
    return (manager_home / "consent.flag").exists()


def test_nobody_has_consented_by_default(manager: ConsentManager, tmp_path: Path) -> None:
    assert not manager.is_opted_in(USER)
    assert manager.scopes(USER) == frozenset()
    assert not any(manager.allows(USER, scope) for scope in Scope)
    assert manager.revoke_consent(USER) is False
    assert manager.get_opted_in_count() == 0
    assert not flag(tmp_path)


def test_opting_in_grants_capture_and_nothing_else(manager: ConsentManager, tmp_path: Path) -> None:
    manager.record_consent(USER, opted_in=True, consent_version="1.0", metadata={"ui": "cli"})
    assert manager.is_opted_in(USER)
    assert manager.scopes(USER) == {Scope.CAPTURE}
    assert flag(tmp_path)
    (entry,) = manager.get_consent_history(USER)
    assert (entry.user_id, entry.opted_in, entry.consent_version) == (USER, True, "1.0")
    assert (entry.timestamp, entry.metadata, entry.scopes) == (NOON, {"ui": "cli"}, {"capture"})


def test_one_scope_can_be_revoked_and_the_others_stay(
    manager: ConsentManager, tmp_path: Path
) -> None:
    manager.record_consent(USER, True, "1.0", scopes=set(Scope))
    assert manager.revoke_scope(USER, Scope.PUBLISH)
    assert manager.scopes(USER) == {Scope.CAPTURE, Scope.TRAIN, Scope.FETCH}
    assert flag(tmp_path)
    assert manager.revoke_scope(USER, Scope.CAPTURE)
    assert manager.scopes(USER) == {Scope.TRAIN, Scope.FETCH}
    assert not flag(tmp_path)
    assert manager.revoke_scope(USER, Scope.CAPTURE) is False
    manager.grant_scope(USER, Scope.CAPTURE)
    assert manager.scopes(USER) == {Scope.CAPTURE, Scope.TRAIN, Scope.FETCH}


def test_revoking_ends_every_scope_and_keeps_the_history(
    manager: ConsentManager, tmp_path: Path
) -> None:
    manager.record_consent(USER, True, "1.0", scopes=set(Scope))
    assert manager.revoke_consent(USER)
    assert manager.scopes(USER) == frozenset()
    assert not flag(tmp_path)
    assert [entry.opted_in for entry in manager.get_consent_history(USER)] == [True, False]


def test_consent_to_other_terms_is_no_consent(manager: ConsentManager, tmp_path: Path) -> None:
    manager.record_consent(USER, True, "0.9")
    assert not manager.is_opted_in(USER)
    assert manager.get_opted_in_count() == 0
    assert not flag(tmp_path)


def test_another_users_revocation_leaves_the_flag(manager: ConsentManager, tmp_path: Path) -> None:
    manager.record_consent(USER, True, "1.0")
    manager.record_consent("other", True, "1.0")
    assert manager.get_opted_in_count() == 2
    manager.revoke_consent("other")
    assert flag(tmp_path)
    assert manager.is_opted_in(USER)


def test_consent_survives_reopening_and_other_processes_see_it_at_once(tmp_path: Path) -> None:
    first, second = (ConsentManager(tmp_path / "consent.db") for _ in range(2))
    first.record_consent(USER, True, "1.0")
    assert second.is_opted_in(USER)
    second.revoke_consent(USER)
    assert not first.is_opted_in(USER)
    first.close()
    with ConsentManager(tmp_path / "consent.db") as third:
        assert [entry.opted_in for entry in third.get_consent_history(USER)] == [True, False]


def test_the_database_is_the_owners_alone(manager: ConsentManager, tmp_path: Path) -> None:
    manager.record_consent(USER, True, "1.0")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o600}
    manager.close()
    (tmp_path / "consent.db").chmod(0o640)
    with pytest.raises(WideOpenError, match="0640"):
        ConsentManager(tmp_path / "consent.db")


def test_a_damaged_database_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "consent.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 20)
    path.chmod(0o600)
    before = path.read_bytes()
    with pytest.raises(ConsentUnreadableError) as caught:
        ConsentManager(path)
    assert str(path) in caught.value.what
    assert path.read_bytes() == before


@pytest.mark.parametrize("action", ["grant", "revoke"])
def test_a_crash_at_any_step_never_leaves_the_flag_on_with_consent_off(
    tmp_path: Path, action: str
) -> None:
    crashes = 0
    for step in range(1, 30):
        home = tmp_path / f"{action}-{step}"
        home.mkdir()
        with ConsentManager(home / "consent.db") as manager:
            if action == "revoke":
                manager.record_consent(USER, True, "1.0")
        command = [sys.executable, "-c", CRASHING, str(home), USER, action, str(step)]
        ended = subprocess.run(command, cwd=ROOT, check=False).returncode
        assert not flag(home) or committed(home), f"crash before step {step}"
        with ConsentManager(home / "consent.db") as mended:
            assert flag(home) == mended.is_opted_in(USER), f"crash before step {step}"
        if ended != CRASH:
            assert ended == 0
            break
        crashes += 1
    assert crashes >= 2


def committed(home: Path) -> bool:
    """What the database says, without the mending of an opening."""
    db = sqlite3.connect(home / "consent.db")
    try:
        row = db.execute("SELECT opted_in FROM consent ORDER BY id DESC LIMIT 1").fetchone()
    finally:
        db.close()
    return bool(row and row[0])


def test_the_default_database_is_under_groove_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_HOME", os.fspath(tmp_path / "elsewhere"))
    ConsentManager().close()
    assert (tmp_path / "elsewhere" / "consent.db").exists()
