"""A backup that brings deleted data back is noticed, and nothing is done with that data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support_consent import USER, Home
from support_rights import World, world

from node import rights
from node.app import App
from node.cli import main
from node.consent import ConsentManager, Standing, deleted, disclosure
from node.consent.deleted import UndoneDeletionError
from node.rights import Selection

Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world(tmp_path, monkeypatch)


@pytest.fixture
def typed(home: World, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        try:
            main(arguments)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    yield run


def closed(app: App) -> None:
    app.corpus.close()
    app.consent.close()
    app.forests.close()
    app.mailbox.close()


def delete(home: World, selection: Selection = rights.Selection()) -> None:  # noqa: B008 - frozen
    app = home.open()
    rights.delete(app, selection)
    closed(app)


def bring_back(home: World) -> None:
    """The home alone, as a backup does: what is remembered outside stays."""
    shutil.rmtree(home.home)
    shutil.copytree(home.folder / "saved" / "home", home.home)


def test_a_home_from_before_its_deletion_says_so_everywhere_and_grants_nothing(
    home: World, typed: Typed
) -> None:
    delete(home)
    assert deleted.undone(home.home) is None
    bring_back(home)
    assert home.found(), "the deleted texts are here again"
    for command in (("consent", "show"), ("status",), ("doctor",)):
        told = typed(*command)[1]
        assert "from before the deletion of everything" in told, command
        assert "groove-node data --delete" in told, command
    assert "240 records had been deleted" in typed("consent", "show")[1]
    for scopes in (("capture",), ("train",), ("fetch",)):
        code, told = typed("consent", "grant", *scopes, "--yes")
        assert code == 1 and "`groove-node data --delete` deletes it again" in told
    assert typed("round")[0] == 1
    shown = json.loads(typed("consent", "show", "--json")[1])
    assert (shown["scopes"], shown["again"]) == ([], "groove-node data --delete")


def test_deleting_again_ends_it_and_then_consent_can_be_given(home: World, typed: Typed) -> None:
    delete(home)
    bring_back(home)
    assert typed("data", "--delete", "--yes")[0] == 0
    assert home.found() == []
    assert "deletion of everything" not in typed("consent", "show")[1]
    assert typed("consent", "grant", "capture", "--yes")[0] == 0
    assert json.loads(typed("consent", "show", "--json")[1])["scopes"] == ["capture"]


def test_a_backup_in_which_nothing_was_granted_is_recognised_too(home: World) -> None:
    """Then the consent of before says nothing of the deletion."""
    app = home.open()
    app.consent.revoke_consent(app.user_id)
    closed(app)
    shutil.rmtree(home.folder / "saved")
    home.save()
    delete(home)
    bring_back(home)
    with ConsentManager(home.home / "consent.db") as manager:
        assert manager.standing(home.user) is Standing.REVOKED
        with pytest.raises(UndoneDeletionError):
            manager.record_consent(home.user, True, "1.0")
        assert manager.scopes(home.user) == frozenset()
        assert manager.revoke_consent(home.user), "a withdrawal always goes"


def test_consent_that_is_in_force_ends_when_the_home_is_from_before_a_deletion(
    home: World,
) -> None:
    """The store alone may be newer than the data that was put beside it."""
    delete(home)
    with ConsentManager(home.home / "consent.db") as manager:
        manager.record_consent(home.user, True, "1.0")
        assert manager.is_opted_in(home.user)
    (home.home / deleted.RECEIPTS).unlink()
    with ConsentManager(home.home / "consent.db") as manager:
        assert manager.standing(home.user) is Standing.RESTORED
        assert "before the last deletion" in manager.why_off(home.user)


def test_another_home_in_the_same_place_is_not_held_to_it(home: World, typed: Typed) -> None:
    delete(home)
    shutil.rmtree(home.home)
    app = home.open(create=True)
    assert app.origin and app.user_id != home.user
    assert deleted.undone(home.home) is None
    assert typed("consent", "grant", "capture", "--yes")[0] == 0


def test_a_deletion_that_is_under_way_is_not_undone(home: World) -> None:
    app = home.open()
    last = deleted.Deletion(at=7.0, user_id=home.user, records=3)
    deleted.remember(app.home, last)
    assert deleted.undone(app.home) == last
    (app.home / deleted.MARKER).write_bytes(b"{}")
    assert deleted.undone(app.home) is None


def test_a_deletion_by_a_filter_asks_for_nothing_after_a_restore(home: World) -> None:
    delete(home, Selection(domain="planning"))
    bring_back(home)
    assert deleted.undone(home.home) is None


def test_what_cannot_be_remembered_is_deleted_all_the_same(
    home: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home.folder / "a file").write_bytes(b"")
    monkeypatch.setenv("GROOVE_STATE", str(home.folder / "a file"))
    delete(home)
    assert home.found() == []
    assert "deletion not noted" in caplog.text


def test_what_is_remembered_holds_no_text(home: World) -> None:
    delete(home)
    (file,) = (home.folder / "world" / "state").glob("deletion-*.json")
    said = json.loads(file.read_bytes())
    assert said.keys() == {"at", "user_id", "records"} and said["records"] == 240
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"damaged")
    assert deleted.undone(home.home) is None


def test_a_store_without_a_home_around_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    with Home(tmp_path / "home").open() as manager:
        manager.record_consent(USER, True, "1.0")
        assert manager.is_opted_in(USER)


def test_a_withdrawal_says_how_much_stays_and_what_removes_it(home: World, typed: Typed) -> None:
    assert "240 records stay; `groove-node data --delete` removes" in typed("consent", "revoke")[1]
    delete(home)
    assert "stay" not in typed("consent", "revoke")[1]
    assert disclosure.stays_line(1).startswith("1 record stays")
