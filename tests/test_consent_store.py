"""A consent store that is removed, replaced or edited under a running process turns nothing on."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support_consent import USER, Home, read_only_state

from node.consent import ConsentManager, ConsentUnreadableError, Scope, Standing
from node.consent.witness import Step

ALL = set(Scope)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir(mode=0o700)
    return Home(tmp_path / "home")


def remove(home: Home) -> None:
    for path in home.folder.glob("consent.db*"):
        path.unlink()


def edit(home: Home, *statements: str) -> None:
    with closing(sqlite3.connect(home.db)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


# ---- removed or replaced -------------------------------------------------------------------------


def test_a_process_whose_store_was_removed_allows_nothing_and_makes_none(home: Home) -> None:
    with home.open() as running:
        running.record_consent(USER, True, "1.0", scopes=ALL)
        assert running.may_capture(USER)
        remove(home)
        assert not running.may_capture(USER)
        assert running.scopes(USER) == frozenset()
        assert running.get_opted_in_count() == 0
        with pytest.raises(ConsentUnreadableError, match="removed"):
            running.receipts()
        assert not home.db.exists(), "a copy may be about to be put there"


def test_a_withdrawal_where_the_store_was_removed_is_recorded_and_ends_what_runs(
    home: Home,
) -> None:
    with home.open() as running:
        running.record_consent(USER, True, "1.0", scopes=ALL)
        old = home.back_up()
        remove(home)
        with home.open() as command:
            assert command.revoke_consent(USER)
            assert command.standing(USER) is Standing.REVOKED
        assert not running.may_capture(USER)
        assert running.standing(USER) is Standing.REVOKED
    home.restore(old)
    with home.open() as manager:
        assert manager.scopes(USER) == frozenset(), "it is not lost when the old store comes back"


def test_a_partial_withdrawal_where_the_store_was_removed_is_not_lost_either(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0", scopes=ALL)
    old = home.back_up()
    remove(home)
    with home.open() as manager:
        assert not manager.revoke_scope(USER, Scope.TRAIN), "nothing of it was in force"
        assert manager.standing(USER) is Standing.REVOKED
    home.restore(old)
    with home.open() as manager:
        assert manager.scopes(USER) == frozenset()


def test_a_running_process_decides_in_the_store_that_is_there_now(home: Home) -> None:
    with home.open() as running:
        running.record_consent(USER, True, "1.0")
        remove(home)
        running.record_consent(USER, True, "1.0", scopes={Scope.FETCH})
        assert running.scopes(USER) == {Scope.FETCH}
    with home.open() as manager:
        assert manager.scopes(USER) == {Scope.FETCH}
        (receipt,) = manager.get_consent_history(USER)
        assert (receipt.number, bool(receipt.broken)) == (2, True), "what was lost is told"


def test_a_home_that_is_moved_away_is_off_and_a_copy_of_it_is_judged_anew(home: Home) -> None:
    away = home.folder.with_name("away")
    with home.open() as running:
        running.record_consent(USER, True, "1.0")
        home.folder.rename(away)
        assert not running.may_capture(USER)
        assert not home.folder.exists()
        shutil.copytree(away, home.folder)
        assert running.may_capture(USER), "as for any process that opens it now"
        with home.open() as command:
            command.revoke_consent(USER)
        assert not running.may_capture(USER)


def test_a_store_in_its_place_that_others_can_read_is_not_used(home: Home) -> None:
    with home.open() as running:
        running.record_consent(USER, True, "1.0")
        copy = home.db.with_name("copy")
        copy.write_bytes(home.db.read_bytes())
        copy.chmod(0o644)
        copy.replace(home.db)
        assert not running.may_capture(USER)


def test_what_was_written_into_a_store_that_is_removed_meanwhile_is_not_called_recorded(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        store = manager._ledger.store
        append = store.append

        def removing(*values: object) -> None:
            append(*values)  # type: ignore[arg-type]
            remove(home)

        monkeypatch.setattr(store, "append", removing)
        with pytest.raises(ConsentUnreadableError):
            manager.revoke_consent(USER)
        monkeypatch.undo()
        assert manager.revoke_consent(USER)
        assert manager.standing(USER) is Standing.REVOKED


# ---- edited --------------------------------------------------------------------------------------


def granted_then(manager: ConsentManager) -> None:
    manager.record_consent(USER, True, "1.0", scopes=ALL)
    manager.grant(USER, [Scope.CAPTURE])


LAST = "WHERE id = (SELECT MAX(id) FROM consent)"
EDITS = {
    "another user": f"UPDATE consent SET user_id = 'x' {LAST}",
    "the columns": f"UPDATE consent SET opted_in = 0 {LAST}",
    "an older row": "UPDATE consent SET user_id = 'x' WHERE id = 1",
    "an older receipt": "UPDATE consent SET receipt = replace(receipt, 'train', 'fetch') "
    "WHERE id = 1",
    "no receipt": "UPDATE consent SET receipt = x'00' WHERE id = 1",
    "no hash": "UPDATE consent SET hash = '' WHERE id = 1",
    "no row": "DELETE FROM consent WHERE id = 1",
    "the order": "UPDATE consent SET id = 9 WHERE id = 1",
    "no metadata": "UPDATE consent SET receipt = '', metadata = '{' WHERE id = 1",
}


@pytest.mark.parametrize("statement", EDITS.values(), ids=EDITS)
def test_an_edited_store_is_off_with_a_reason_until_the_owner_is_asked_again(
    home: Home, statement: str
) -> None:
    with home.open() as running:
        granted_then(running)
        assert running.may_capture(USER)
        edit(home, statement)
        assert not running.may_capture(USER), "noticed by whoever has it open"
        assert running.get_opted_in_count() == 0
    with home.open() as manager:
        assert manager.scopes(USER) == frozenset()
        assert manager.standing(USER) is Standing.RESTORED
        if statement != EDITS["the order"]:
            assert manager.why_off(USER) == Step.EDITED.value
            assert "--verify" in manager.why_off(USER)
        assert manager.problems()
        assert not home.flag
        manager.grant_scope(USER, Scope.FETCH)
        assert manager.scopes(USER) == {Scope.FETCH}
    with home.open() as manager:
        assert manager.scopes(USER) == {Scope.FETCH}


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE consent SET user_id = 'x' {LAST}",
        f"UPDATE consent SET receipt = replace(receipt, 'false', 'true') {LAST}",
        f"UPDATE consent SET receipt = x'00', user_id = 'x' {LAST}",
        f"UPDATE consent SET hash = '' {LAST}",
        f"DELETE FROM consent {LAST}",
    ],
)
def test_a_withdrawal_that_is_edited_away_stays_one(home: Home, statement: str) -> None:
    with home.open() as running:
        running.record_consent(USER, True, "1.0", scopes=ALL)
        running.revoke_consent(USER)
        edit(home, statement)
        assert running.scopes(USER) == frozenset()
    with home.open() as manager:
        assert manager.scopes(USER) == frozenset()
        assert not home.flag
        manager.grant_scope(USER, Scope.FETCH)
        assert manager.scopes(USER) == {Scope.FETCH}


def test_nothing_of_an_edited_store_comes_into_force_with_anothers_new_grant(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent("other", True, "1.0")
        manager.revoke_consent("other")
        manager.record_consent(USER, True, "1.0")
        edit(home, "UPDATE consent SET receipt = '', user_id = 'x' WHERE id = 2")
        assert not manager.is_opted_in("other")
        manager.grant_scope(USER, Scope.CAPTURE)
        assert manager.is_opted_in(USER)
        assert not manager.is_opted_in("other")
        edit(home, "DELETE FROM consent WHERE id = 2")
        assert not manager.is_opted_in("other")


def test_what_was_edited_is_still_in_the_history_of_whom_it_was_about(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        manager.revoke_consent(USER)
        edit(home, EDITS["another user"])
        assert [each.opted_in for each in manager.get_consent_history(USER)] == [True, False]
        assert manager.get_consent_history("x") == []


def test_two_managers_see_each_others_decisions_and_their_own(home: Home) -> None:
    """What is kept of the chain is never older than what was written last, by whom ever."""
    with home.open() as one, home.open() as two:
        for scope in Scope:
            for writer, reader in ((one, two), (two, one)):
                writer.grant_scope(USER, scope)
                assert writer.allows(USER, scope) and reader.allows(USER, scope)
                reader.revoke_scope(USER, scope)
                assert not writer.allows(USER, scope) and not reader.allows(USER, scope)


def test_the_chain_is_read_again_only_after_somebody_wrote(home: Home) -> None:
    with home.open() as one, home.open() as two:
        one.record_consent(USER, True, "1.0")
        store = two._ledger.store
        before = store.chain()
        assert store.chain() is before
        one.grant_scope(USER, Scope.TRAIN)
        assert store.chain() is not before


# ---- what cannot be noted outside ----------------------------------------------------------------


def test_a_withdrawal_that_cannot_be_noted_outside_says_so(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_STATE", str(tmp_path / "state"))
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0", scopes=ALL)
        assert manager.unnoted() == ""
        with read_only_state():
            assert manager.revoke_consent(USER)
            assert manager.standing(USER) is Standing.REVOKED
            assert manager.unnoted() == str(tmp_path / "state")
        manager.revoke_consent(USER)
        assert manager.unnoted() == ""
