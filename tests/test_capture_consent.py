"""Consent: off by default, per scope, per version of the terms, and safe against a crash."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import timeit
from pathlib import Path

import pytest
from support_capture import NOON, USER, HandClock, capture

from node.capture import ConsentManager, Scope
from node.capture.intake import Draft
from node.consent import FREE_SOURCES, ConsentUnreadableError, NotGrantedError, Standing
from node.consent.folders import FolderError
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


@pytest.fixture
def listed(manager: ConsentManager, tmp_path: Path) -> ConsentManager:
    """Capture with Claude Code in one project, and `llm`."""
    (tmp_path / "work" / "app").mkdir(parents=True)
    manager.record_consent(
        USER, True, "1.0", sources=["claude-code", "llm"], folders=[tmp_path / "work" / "app"]
    )
    return manager


def test_what_the_owners_programs_hand_over_needs_no_list(manager: ConsentManager) -> None:
    assert not any(manager.may_capture(USER, source) for source in FREE_SOURCES)
    manager.record_consent(USER, True, "1.0")
    assert all(manager.may_capture(USER, source) for source in FREE_SOURCES)
    assert manager.may_capture(USER)
    assert not manager.may_capture("other")


def test_a_source_that_is_not_listed_is_not_captured(listed: ConsentManager) -> None:
    assert listed.may_capture(USER, "llm")
    assert listed.allowed_sources(USER) == {"claude-code", "llm"}
    assert not listed.may_capture(USER, "codex")
    assert not listed.may_capture(USER, "something else")


def test_an_unmarked_folder_is_not_captured(listed: ConsentManager, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for inside in (work / "app", work / "app" / "src", work / "app" / "." / "src" / ".." / "x"):
        assert listed.may_capture(USER, "claude-code", str(inside)), inside
    for outside in (work, work / "app2", work / "app" / ".." / "other", tmp_path, Path("/")):
        assert not listed.may_capture(USER, "claude-code", str(outside)), outside
    assert not listed.may_capture(USER, "codex", str(work / "app")), "the source is not listed"
    assert listed.allowed_folders(USER) == (work / "app",)


@pytest.mark.parametrize(
    "folder",
    [None, "", "app", "./app", "~nobody-here/app", "a\0b", "\ud800", "C:\\work\\app", "/" * 9],
)
def test_a_folder_that_names_no_place_lies_nowhere(
    listed: ConsentManager, tmp_path: Path, folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "work")  # what a transcript calls `app` is not the `app` here
    assert not listed.may_capture(USER, "claude-code", folder)


def test_a_link_leads_where_it_leads(listed: ConsentManager, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "secret").mkdir()
    (work / "app" / "out").symlink_to(work / "secret")
    (work / "in").symlink_to(work / "app")
    assert not listed.may_capture(USER, "claude-code", str(work / "app" / "out"))
    assert not listed.may_capture(USER, "claude-code", str(work / "app" / "out" / "deep"))
    assert listed.may_capture(USER, "claude-code", str(work / "in" / "src"))
    listed.allow(USER, folders=[work / "in"])
    assert listed.allowed_folders(USER) == (work / "app",), "the folder that the link leads to"


def test_the_tilde_is_the_users_home(
    manager: ConsentManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    manager.record_consent(USER, True, "1.0", sources=["codex"], folders=["~/code/app"])
    assert manager.allowed_folders(USER) == (tmp_path / "code" / "app",)
    assert manager.may_capture(USER, "codex", "~/code/app/x")
    assert manager.may_capture(USER, "codex", str(tmp_path / "code" / "app"))


@pytest.mark.parametrize("folder", ["/", "~", "~/..", "~/.groove", "", "~/link-to-home"])
def test_a_folder_that_holds_every_project_is_refused(
    manager: ConsentManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    monkeypatch.delenv("GROOVE_HOME", raising=False)
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "link-to-home").symlink_to(tmp_path / "ann")
    manager.record_consent(USER, True, "1.0")
    with pytest.raises(FolderError) as caught:
        manager.allow(USER, folders=[folder])
    assert caught.value.unchanged and caught.value.next_step
    assert manager.allowed_folders(USER) == ()


def test_a_source_and_a_folder_are_taken_off_the_list(
    listed: ConsentManager, tmp_path: Path
) -> None:
    app = tmp_path / "work" / "app"
    assert listed.disallow(USER, sources=["codex"]) is False
    with pytest.raises(FolderError, match="lies inside"):
        listed.disallow(USER, folders=[app / "src"])
    assert listed.may_capture(USER, "claude-code", str(app / "src"))
    assert listed.disallow(USER, folders=[tmp_path / "work"]), "what lies inside goes too"
    assert not listed.may_capture(USER, "claude-code", str(app))
    assert listed.disallow(USER, sources=["llm"])
    assert not listed.may_capture(USER, "llm")
    assert listed.is_opted_in(USER), "capture itself goes on"


def test_the_lists_go_with_capture_and_are_asked_for_again(
    listed: ConsentManager, tmp_path: Path
) -> None:
    listed.grant_scope(USER, Scope.TRAIN)
    assert listed.may_capture(USER, "llm")
    listed.revoke_scope(USER, Scope.CAPTURE)
    with pytest.raises(NotGrantedError):
        listed.allow(USER, sources=["llm"])
    listed.grant_scope(USER, Scope.CAPTURE)
    assert listed.allowed_sources(USER) == frozenset()
    assert listed.allowed_folders(USER) == ()


def test_one_decision_is_one_row(manager: ConsentManager, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    manager.grant(USER, [Scope.CAPTURE, Scope.TRAIN], sources=["codex"], folders=[folder])
    (entry,) = manager.get_consent_history(USER)
    assert (entry.scopes, entry.sources) == ({Scope.CAPTURE, Scope.TRAIN}, {"codex"})
    assert entry.folders == {folder}
    assert manager.withdraw(USER, [Scope.TRAIN], sources=["codex"])
    assert len(manager.get_consent_history(USER)) == 2
    assert manager.withdraw(USER, [Scope.TRAIN]) is False
    assert len(manager.get_consent_history(USER)) == 2, "nothing changed, nothing recorded"


def test_standing_says_how_consent_stands(manager: ConsentManager) -> None:
    assert manager.standing(USER) is Standing.NEVER_ASKED
    manager.record_consent(USER, True, "1.0")
    assert manager.standing(USER) is Standing.IN_FORCE
    manager.revoke_consent(USER)
    assert manager.standing(USER) is Standing.REVOKED
    manager.record_consent(USER, True, "0.9")
    assert manager.standing(USER) is Standing.TERMS_CHANGED
    assert manager.scopes(USER) == frozenset()


@pytest.mark.parametrize("gone", ["source", "folder", "capture"])
def test_what_is_withdrawn_while_a_text_is_scrubbed_is_not_written(
    tmp_path: Path, gone: str
) -> None:
    """No buffered text is flushed: the last look at consent is when it is this writer's turn."""
    made = capture(tmp_path, granted=False)
    project = tmp_path / "work"
    made.consent.record_consent(USER, True, "1.0", sources=["codex"], folders=[project])
    draft = Draft(USER, "s", "a planted text", "prompt", source="codex", folder=str(project / "x"))
    assert made.intake.keep(draft) is not None
    before = made.on_disk().count(b"a planted text")
    clean = made.scrubber.scrub

    def slowly(text: str) -> str:
        match gone:
            case "source":
                made.consent.disallow(USER, sources=["codex"])
            case "folder":
                made.consent.disallow(USER, folders=[project])
            case _:
                made.consent.revoke_scope(USER, Scope.CAPTURE)
        return clean(text)

    made.scrubber.scrub = slowly  # type: ignore[method-assign]
    assert made.intake.keep(draft) is None
    assert made.intake.keep(draft) is None, "and the next call is refused at once"
    assert made.on_disk().count(b"a planted text") == before


def test_a_question_costs_some_ten_microseconds(listed: ConsentManager) -> None:
    """Against a bare query of the same file, so that a slow machine is no failure."""
    db = sqlite3.connect(listed._ledger.store._path)
    query = "SELECT hash FROM consent WHERE user_id = ? ORDER BY id DESC LIMIT 1"

    def bare() -> None:
        db.execute(query, (USER,)).fetchone()

    def asked() -> None:
        listed.allows(USER, Scope.CAPTURE)

    bare_s, asked_s = (min(timeit.repeat(each, number=500, repeat=7)) for each in (bare, asked))
    db.close()
    assert asked_s < 6 * bare_s


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
