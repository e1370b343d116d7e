"""`groove-node import` and what `status` and `doctor` tell of sources, over a real home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support_transcripts import FOLDER, ClaudeChat, lines_of

from node import doctor, history, overview, show
from node.app import App
from node.errors import MisuseError
from node.imported import Imported
from node.importing import SourceRefusedError, Wanted, import_sessions, parse_since
from node.tally import NAMES_MAX, SourceCounts, Tally
from node.told import Told
from node.watching import Watcher

DAY_S = 86_400.0


@pytest.fixture
def projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The transcripts of Claude Code; no other tool has any."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user" / ".config"))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "codex"))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    folder = tmp_path / "claude" / "projects"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def app(tmp_path: Path, projects: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    return App.open(create=True)


def allow(app: App, *, folder: str = FOLDER) -> None:
    from node.consent import Scope

    app.consent.grant_scope(app.user_id, Scope.CAPTURE)
    app.consent.allow(app.user_id, sources=["claude-code"], folders=[Path(folder)])


def transcript(
    projects: Path, name: str, app: App, *, age_days: float = 1.0, cwd: str = FOLDER
) -> Path:
    """A session of one ask and one answer, last changed so long ago."""
    chat = ClaudeChat(session_id=name, cwd=cwd, prefix=name)
    chat.ask(f"ask of {name}, from ann@example.com")
    chat.text(f"answer to {name}")
    changed = app.clock.now_s() - age_days * DAY_S
    for row in chat.rows:
        row["timestamp"] = datetime.fromtimestamp(changed, UTC).isoformat()
    path = projects / "-somewhere" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lines_of(chat.rows))
    os.utime(path, (changed, changed))
    return path


def bring(app: App, **wanted: object) -> Imported:
    return import_sessions(app, Wanted("claude-code", **wanted))  # type: ignore[arg-type]


def test_a_source_that_is_not_allowed_is_refused_with_the_command_that_allows_it(app: App) -> None:
    from node.consent import Scope

    command = "groove-node consent grant capture --source claude-code --folder DIR"
    with pytest.raises(SourceRefusedError, match="scope 'capture'") as caught:
        bring(app)
    assert caught.value.next_step == command
    app.consent.grant_scope(app.user_id, Scope.CAPTURE)
    with pytest.raises(SourceRefusedError, match="claude-code is not allowed") as caught:
        bring(app)
    assert caught.value.next_step == command


def test_the_history_of_an_allowed_folder_comes_in_once_and_scrubbed(
    app: App, projects: Path
) -> None:
    allow(app)
    for name in ("one", "two"):
        transcript(projects, name, app)
    first, second = bring(app), bring(app)
    assert (first.added, first.records, first.scrubbed) == (2, 4, 2)
    assert (second.added, second.records, second.known) == (0, 0, 2)
    assert {session.closed for session in app.corpus.sessions()} == {True}
    assert b"ann@example.com" not in b"".join(
        path.read_bytes() for path in app.home.rglob("*") if path.is_file()
    )


def test_a_session_that_was_just_written_to_is_not_closed_and_its_last_answer_waits(
    app: App, projects: Path
) -> None:
    allow(app)
    transcript(projects, "one", app, age_days=0.0)
    done = bring(app)
    assert (done.records, done.open_answers) == (1, 1)
    assert ("last answers still open", "1") in done.facts()
    assert "1 answer still open" in done.notes(restricted_outputs=False)[0]
    facts = show.status_facts(overview.status(app))
    assert any("1 transcript still being written" in text for _, text in facts)
    assert not any(record.closes for record in app.corpus.records())


def test_folders_that_are_not_allowed_are_listed_on_the_terminal_and_written_nowhere(
    app: App, projects: Path
) -> None:
    allow(app)
    for number in range(3):
        transcript(projects, f"s{number}", app, cwd="/home/ada/other" if number else FOLDER)
    done = bring(app)
    assert (done.added, done.not_allowed) == (1, 2)
    assert done.folder_rows() == [("/home/ada/other", "2")]
    assert "--folder /home/ada/other" in done.notes(restricted_outputs=True)[0]
    assert "other" not in str(done.as_json())
    kept = b"".join(path.read_bytes() for path in app.home.rglob("*") if path.is_file())
    assert b"/home/ada/other" not in kept


def test_a_dry_run_counts_and_writes_nothing(app: App, projects: Path) -> None:
    allow(app)
    transcript(projects, "one", app)
    assert bring(app, dry_run=True).records == 2
    assert list(app.corpus.records()) == []
    assert Tally(app.home).read().sources == {}


def test_a_file_that_cannot_be_read_is_counted_and_the_others_come_in(
    app: App, projects: Path
) -> None:
    allow(app)
    transcript(projects, "one", app)
    (projects / "-somewhere" / "two.jsonl").write_bytes(b"\0\xff not json\n")
    done = bring(app)
    assert (done.added, done.malformed) == (1, 1)


def test_a_named_file_or_folder_is_imported_alone(app: App, projects: Path) -> None:
    allow(app)
    one, _ = (transcript(projects, name, app) for name in ("one", "two"))
    assert bring(app, what=[str(one)]).added == 1
    assert bring(app, what=[str(projects)]).added == 1


@pytest.mark.parametrize("text", ["soon", "30", "d", "2026-13-01", "-3d"])
def test_a_time_that_is_none_is_refused_with_an_example(app: App, text: str) -> None:
    with pytest.raises(MisuseError, match="30d, 12h, 2w or 2026-11-01"):
        parse_since(text, app.clock)


def test_a_day_that_is_yet_to_come_is_refused(app: App) -> None:
    with pytest.raises(MisuseError, match="2970-01-01 is in the future"):
        parse_since("2970-01-01", app.clock)


def test_a_time_is_a_duration_back_or_a_day_in_utc(app: App) -> None:
    assert parse_since("", app.clock) is None
    assert parse_since("2026-04-26", app.clock) == 1_777_161_600
    assert parse_since("2w", app.clock) == pytest.approx(app.clock.now_s() - 14 * DAY_S, abs=5)


def test_status_and_doctor_warn_of_history_that_will_be_deleted_until_it_is_imported(
    app: App, projects: Path
) -> None:
    allow(app)
    transcript(projects, "old", app, age_days=26)
    transcript(projects, "new", app)
    (known,) = history.histories(app, Tally(app.home).read())
    assert (known.transcripts, known.expiring, known.unsaved) == (2, 1, True)
    assert any(
        finding.check == "claude-code" and finding.advice == "groove-node import claude-code"
        for finding in doctor.examine()
    )
    facts = show.status_facts(overview.status(app))
    assert any("deletes 1 transcript within 7 days" in text for _, text in facts)
    assert bring(app).expiring == 1
    (known,) = history.histories(app, Tally(app.home).read())
    assert not known.unsaved
    facts = dict(show.status_facts(overview.status(app)))
    assert "2 sessions, 4 records taken in" in facts["claude-code"]


def test_the_owner_is_told_which_sessions_may_not_be_trained_on_and_by_whose_terms(
    app: App, projects: Path
) -> None:
    allow(app)
    for name in ("one", "two"):
        transcript(projects, name, app)
    told = (
        "2 sessions: 2 are for routing and discovery only: the terms of anthropic forbid training "
        "on its answers; `groove-node data --stats` has the whole account"
    )
    first = bring(app)
    assert told in first.notes(restricted_outputs=False)
    assert told not in first.notes(restricted_outputs=True)
    assert first.as_json()["untrainable"] == {"anthropic": 2}
    assert not bring(app).untrainable
    assert ("", told) in show.status_facts(overview.status(app))


def test_what_an_import_of_everything_does_not_know_replaces_what_was_not_known_before(
    app: App, projects: Path
) -> None:
    allow(app)
    transcript(projects, "one", app)
    Tally(app.home).add_source("claude-code", SourceCounts(unknown={"of-an-older-parser": 3}))
    bring(app)
    assert Tally(app.home).read().sources["claude-code"].unknown == {}


def test_what_expires_first_is_imported_first(app: App, projects: Path) -> None:
    allow(app)
    for name, age_days in (("b", 1), ("a", 25), ("c", 12)):
        transcript(projects, name, app, age_days=age_days)
    bring(app)
    asks = [r.content for r in app.corpus.records() if r.content_type == "prompt"]
    assert [ask.split(",")[0] for ask in asks] == ["ask of a", "ask of c", "ask of b"]


def test_unknown_kinds_of_lines_show_in_status_and_cannot_flood_it(
    app: App, projects: Path
) -> None:
    allow(app)
    path = transcript(projects, "one", app)
    changed = path.stat().st_mtime
    with path.open("ab") as file:
        file.write(b'{"type": "brand-new-kind", "uuid": "u", "sessionId": "one"}\n')
    os.utime(path, (changed, changed))
    assert bring(app).unknown
    facts = show.status_facts(overview.status(app))
    assert any("brand-new-kind" in text for _, text in facts)
    many = SourceCounts(unknown={f"kind {n}": 1 for n in range(1_000)})
    Tally(app.home).add_source("claude-code", many)
    assert len(Tally(app.home).read().sources["claude-code"].unknown) == NAMES_MAX


def test_a_session_of_a_folder_that_is_not_allowed_leaves_no_name_of_an_unknown_kind(
    app: App, projects: Path
) -> None:
    allow(app)
    path = transcript(projects, "one", app, cwd="/home/ada/secret")
    with path.open("ab") as file:
        file.write(b'{"type": "kettle-takeover-by-acme", "sessionId": "one"}\n')
    done = bring(app)
    assert (done.not_allowed, done.unknown.total()) == (1, 0)
    assert "takeover" not in (app.home / "capture_counts.json").read_text()


def test_a_file_that_breaks_the_parser_is_counted_as_unreadable_and_the_others_come_in(
    app: App, projects: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from node.capture.sources.claude_code import ClaudeCode

    allow(app)
    poison = transcript(projects, "poison", app, age_days=9)
    transcript(projects, "good", app)
    read = ClaudeCode.read

    def breaks(self: ClaudeCode, path: Path, *where: int, **how: bool) -> object:
        if path == poison:
            raise OverflowError("a text of the owner")
        return read(self, path, *where, **how)

    monkeypatch.setattr(ClaudeCode, "read", breaks)
    done = bring(app)
    assert (done.added, done.unreadable) == (1, 1)
    assert "OverflowError" in caplog.text
    assert "owner" not in caplog.text and "poison" not in caplog.text


def test_counts_that_are_damaged_begin_anew(app: App) -> None:
    tally = Tally(app.home)
    tally.add_queue({"captured": 2})
    (app.home / "capture_counts.json").write_bytes(b"{")
    assert tally.read().queue == {}
    tally.add_queue({"captured": 3})
    assert tally.read().queue == {"captured": 3}


class Heard:
    """Collects what the watcher tells, and wakes who waits for it."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._more = threading.Condition()

    def __call__(self, told: Told) -> None:
        with self._more:
            self.told.append(told)
            self._more.notify_all()

    def wait(self, wanted: Callable[[Told], bool]) -> bool:
        with self._more:
            return self._more.wait_for(lambda: any(map(wanted, self.told)), 60)


def test_a_running_watcher_takes_in_what_is_written_and_stops_when_told(
    app: App, projects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.watching.ASK_S", 0.2)
    heard = Heard()
    watcher = Watcher(app, heard)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        allow(app)  # while it runs
        assert heard.wait(lambda told: told.event == "watching")
        said = transcript(projects, "one", app, age_days=0.0)
        shutil.copy(said, projects / "-somewhere" / "two.jsonl")
        assert heard.wait(lambda told: told.event == "captured")
        app.consent.revoke_consent(app.user_id)
        assert heard.wait(lambda told: told.text == "watching no source")
    finally:
        watcher.stop()
        thread.join(60)
    assert not thread.is_alive()
    assert [r.content for r in app.corpus.records()] == ["ask of one, from [EMAIL]"]


def watched_until(app: App, heard: Heard, done: Callable[[Told], bool]) -> None:
    """Run a watcher until it tells what is waited for."""
    watcher = Watcher(app, heard)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        assert heard.wait(done)
    finally:
        watcher.stop()
        thread.join(60)


def test_what_was_said_while_a_source_was_not_allowed_is_not_taken_in_by_a_later_consent(
    app: App, projects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.watching.ASK_S", 0.1)
    allow(app)
    watched_until(app, Heard(), lambda told: told.event == "watching")
    app.consent.revoke_consent(app.user_id)
    transcript(projects, "between", app, age_days=0.0)
    allow(app)  # and no node has run meanwhile
    transcript(projects, "later", app, age_days=-0.001)
    watched_until(app, Heard(), lambda told: told.event == "captured")
    assert [r.content for r in app.corpus.records()] == ["ask of later, from [EMAIL]"]


def test_without_watches_of_the_file_system_the_files_are_looked_at(
    app: App, projects: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def used_up(*paths: object, **how: object) -> object:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr("watchfiles.watch", used_up)
    monkeypatch.setattr("node.watching.ASK_S", 0.1)
    monkeypatch.setattr("node.watching.POLL_S", 0.1)
    allow(app)
    heard = Heard()
    watcher = Watcher(app, heard)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        assert heard.wait(lambda told: told.event == "watching")
        transcript(projects, "one", app, age_days=-0.0)
        assert heard.wait(lambda told: told.event == "captured")
    finally:
        watcher.stop()
        thread.join(60)
    said = [each for each in caplog.records if "no more watches" in each.getMessage()]
    assert len(said) == 1


def test_a_node_that_may_capture_nothing_loads_nothing_of_capture(
    tmp_path: Path, projects: Path
) -> None:
    program = (
        "import sys, threading, node.daemon; from node.app import App; "
        "from node.watching import Watcher; watcher = Watcher(App.open(create=True), print); "
        "threading.Timer(0.3, watcher.stop).start(); watcher.run(); "
        "print([m for m in sys.modules if m.startswith(('node.capture', 'watchfiles'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "GROOVE_HOME": str(tmp_path / "home")},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
