"""Following transcripts as they are written: each turn once, over restarts, cuts and kills."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support_capture import NOON, USER, Capture, capture
from support_transcripts import FOLDER, ClaudeChat, lines_of

from node.capture.intake import CONTENT_CHARS_MAX
from node.capture.sources.claude_code import ClaudeCode
from node.capture.sources.following import STATE_FILE, Follower, State, StateFile
from node.capture.sources.held import HeldRecords
from node.capture.sources.importing import import_sessions
from node.capture.sources.source import Reading

CLAUDE = "claude-code"
IDLE_S = 1_800.0


class Here(ClaudeCode):
    """Claude Code with its transcripts in a folder of the test's own."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def roots(self) -> list[Path]:
        return [self._root]


class Tool:
    """A coding tool at work: writes one session, a line at a time, and the clock goes on."""

    def __init__(self, folder: Path, name: str = "0f3c2a10") -> None:
        self.root, self.home = folder / "projects", folder / "home"
        self.path = self.root / "-home-ada-projects-kettle" / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True)
        self.chat = ClaudeChat()
        self.at = NOON + 1

    def capture(self, *, again: bool = False) -> Capture:
        """Capture in this home, with consent; `again`, as it was left."""
        made = capture(self.home, granted=not again)
        if not again:
            made.consent.allow(USER, sources=[CLAUDE], folders=[Path(FOLDER)])
        return made

    def say(self, number: int) -> None:
        """One ask and its answer."""
        start = len(self.chat.rows)
        self.chat.ask(f"ask {number}")
        self.chat.text(f"answer {number}")
        self.write(lines_of(self.chat.rows[start:]))

    def finish(self) -> None:
        """Say what a killed run left unsaid, and one thing more."""
        said = sum(b'"ask ' in line for line in self.text().splitlines())
        self.chat.rows = [json.loads(line) for line in self.text().splitlines()]
        for number in range(said, 4):
            self.say(number)

    def text(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        self.at += 1
        os.utime(self.path, (self.at, self.at))


def follower(tool: Tool, made: Capture, state: StateFile) -> Follower:
    return following(tool, made, state.sources.setdefault(CLAUDE, State(since=NOON)))


def following(
    tool: Tool,
    made: Capture,
    mine: State,
    since: Callable[[tuple[str, ...]], float] | None = None,
) -> Follower:
    held = HeldRecords(made.corpus)
    return Follower(Here(tool.root), made.intake, USER, held, mine, idle_s=IDLE_S, since=since)


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


@pytest.fixture
def made(tool: Tool) -> Capture:
    made = tool.capture()
    made.clock.time_s = NOON + 60
    return made


@pytest.fixture
def watcher(tool: Tool, made: Capture) -> Iterator[Follower]:
    yield follower(tool, made, StateFile(tool.home))


def take(watcher: Follower, changed: list[Path] | None = None) -> None:
    for path in watcher.look(changed):
        watcher.bring(path)


def said(made: Capture) -> list[str]:
    return [record.content for record in made.corpus.records() if not record.closes]


def test_what_is_written_is_taken_in_and_the_answer_that_may_go_on_waits(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.say(0)
    take(watcher)
    assert said(made) == ["ask 0"]
    tool.say(1)
    take(watcher, [tool.path])
    assert said(made) == ["ask 0", "answer 0", "ask 1"]
    take(watcher)
    assert len(said(made)) == 3


def test_the_answer_to_an_ask_that_an_earlier_reading_dropped_is_dropped_too(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.say(0)
    tool.chat.ask("x" * (CONTENT_CHARS_MAX + 1))
    tool.write(lines_of(tool.chat.rows[-1:]))
    take(watcher)
    tool.chat.text("an answer to nothing")
    tool.write(lines_of(tool.chat.rows[-1:]))
    start = len(tool.chat.rows)
    tool.chat.ask("ask 2")
    tool.chat.text("answer 2")
    tool.write(lines_of(tool.chat.rows[start:]))
    take(watcher)
    made.clock.time_s = tool.at + IDLE_S + 1
    take(watcher)
    assert said(made) == ["ask 0", "answer 0", "ask 2", "answer 2"]


def test_an_idle_session_gets_its_last_answer_and_a_closing_record_with_its_outcome(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.say(0)
    tool.say(1)
    take(watcher)
    made.clock.time_s = tool.at + IDLE_S + 1
    take(watcher)
    (session,) = made.corpus.sessions()
    assert (session.closed, session.source) == (True, CLAUDE)
    assert said(made) == ["ask 0", "answer 0", "ask 1", "answer 1"]
    assert watcher.look() == []


def test_a_closed_session_that_goes_on_is_closed_again(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    for number in range(2):
        tool.say(number)
        take(watcher)
        made.clock.time_s = tool.at + IDLE_S + 1
        take(watcher)
        tool.at = made.clock.time_s
    closings = [record for record in made.corpus.records() if record.closes]
    assert len({record.record_id for record in closings}) == len(closings) == 2
    assert len(list(made.corpus.sessions())) == 1


def test_a_line_that_is_not_finished_is_read_when_it_is(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.chat.ask("a long ask")
    line = lines_of(tool.chat.rows)
    tool.write(line[:40])
    take(watcher)
    assert said(made) == []
    tool.write(line[40:])
    take(watcher)
    assert said(made) == ["a long ask"]


def test_a_file_that_was_cut_or_replaced_is_read_anew_and_nothing_is_taken_twice(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.say(0)
    tool.say(1)
    take(watcher)
    whole = tool.path.read_bytes()
    tool.path.write_bytes(whole[: len(whole) // 2])
    tool.write(b"")
    take(watcher)
    tool.path.unlink()
    tool.write(whole)
    tool.say(2)
    take(watcher)
    assert said(made) == ["ask 0", "answer 0", "ask 1", "answer 1", "ask 2"]


def test_a_restart_goes_on_where_the_last_run_stopped(tool: Tool, made: Capture) -> None:
    state = StateFile(tool.home)
    take(first := follower(tool, made, state))
    tool.say(0)
    take(first)
    state.save()
    tool.say(1)
    take(follower(tool, tool.capture(), StateFile(tool.home)))
    assert said(made) == ["ask 0", "answer 0", "ask 1"]


def test_what_is_remembered_names_no_path_and_holds_no_text(tool: Tool, made: Capture) -> None:
    state = StateFile(tool.home)
    tool.say(0)
    take(follower(tool, made, state))
    state.save()
    kept = (tool.home / STATE_FILE).read_text()
    assert "kettle" not in kept and "ask" not in kept
    (tool.home / STATE_FILE).write_text("{damaged")
    assert StateFile(tool.home).sources == {}


def test_a_folder_that_is_not_allowed_is_taken_in_only_once_it_is(
    tool: Tool, made: Capture
) -> None:
    state = StateFile(tool.home)
    watcher = follower(tool, made, state)
    made.consent.disallow(USER, folders=[Path(FOLDER)])
    tool.say(0)
    take(watcher)
    assert watcher.look() == []
    assert said(made) == []
    made.consent.allow(USER, folders=[Path(FOLDER)])
    take(follower(tool, made, state))
    assert said(made) == ["ask 0"]


def test_withdrawn_consent_stops_it_at_once(tool: Tool, made: Capture, watcher: Follower) -> None:
    tool.say(0)
    paths = watcher.look()
    made.consent.revoke_consent(USER)
    for path in paths:
        watcher.bring(path)
    assert said(made) == []
    assert b"ask 0" not in made.on_disk()


def test_what_was_written_before_it_was_allowed_is_left_to_the_import(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.at = NOON - 100
    tool.say(0)
    take(watcher)
    assert said(made) == []
    sessions = Here(tool.root).read(tool.path).sessions
    assert import_sessions(sessions, made.intake, USER, CLAUDE).records == 2


def test_an_import_and_the_watcher_take_the_same_session_in_once(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.say(0)
    take(watcher)
    tool.say(1)
    sessions = Here(tool.root).read(tool.path).sessions
    result = import_sessions(sessions, made.intake, USER, CLAUDE)
    assert (result.added, result.grown, result.records) == (0, 1, 3)
    made.clock.time_s = tool.at + IDLE_S + 1
    take(watcher)
    assert said(made) == ["ask 0", "answer 0", "ask 1", "answer 1"]
    assert sum(record.closes for record in made.corpus.records()) == 1


def test_a_full_disk_leaves_the_position_where_it_was(
    tool: Tool, made: Capture, watcher: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node.capture.corpus import CorpusError

    def full(*args: object, **how: object) -> int:
        raise CorpusError("the disk is full")

    tool.say(0)
    with monkeypatch.context() as patch:
        patch.setattr(made.corpus, "add_records", full)
        with pytest.raises(CorpusError):
            take(watcher)
    take(watcher)
    assert said(made) == ["ask 0"]


def test_a_stop_in_the_middle_writes_nothing_of_the_piece_and_forgets_nothing(
    tool: Tool, made: Capture
) -> None:
    state = StateFile(tool.home)
    tool.say(0)
    tool.say(1)
    stopped = Follower(
        Here(tool.root),
        made.intake,
        USER,
        HeldRecords(made.corpus),
        state.sources.setdefault(CLAUDE, State(since=NOON)),
        idle_s=IDLE_S,
        stopping=lambda: True,
    )
    take(stopped)
    assert said(made) == []
    take(follower(tool, made, state))
    assert said(made) == ["ask 0", "answer 0", "ask 1"]


def test_files_that_the_tool_deletes_are_forgotten(tool: Tool, made: Capture) -> None:
    state = StateFile(tool.home)
    watcher = follower(tool, made, state)
    tool.say(0)
    take(watcher)
    assert len(state.sources[CLAUDE].files) == 1
    tool.path.unlink()
    watcher.look()
    assert state.sources[CLAUDE].files == {}


def test_of_a_session_that_began_before_only_what_was_said_since_is_taken_in(
    tool: Tool, made: Capture
) -> None:
    tool.say(0)
    tool.say(1)
    mine = State(since=NOON + 2)  # between the two
    take(following(tool, made, mine))
    assert said(made) == ["ask 1"]
    tool.say(2)
    take(following(tool, made, mine))
    assert said(made) == ["ask 1", "answer 1", "ask 2"]


def test_what_was_said_before_its_folder_was_allowed_is_left_to_the_import(
    tool: Tool, made: Capture
) -> None:
    tool.say(0)
    tool.say(1)
    tool.say(2)
    mine = State(since=NOON)
    take(following(tool, made, mine, since=lambda folders: NOON + 2 if folders else NOON))
    assert said(made) == ["ask 1", "answer 1", "ask 2"]


def test_an_answer_whose_ask_was_said_before_is_left_with_it(tool: Tool, made: Capture) -> None:
    tool.say(0)
    tool.say(1)
    mine = State(since=NOON + 1)  # between the ask and its answer
    take(following(tool, made, mine))
    assert said(made) == ["ask 1"]


def test_undated_turns_are_taken_in_only_of_a_file_that_was_read_since(
    tool: Tool, made: Capture
) -> None:
    def undated(number: int) -> None:
        start = len(tool.chat.rows)
        tool.chat.ask(f"ask {number}", timestamp=None)
        tool.write(lines_of(tool.chat.rows[start:]))

    mine = State(since=NOON)
    undated(0)
    take(following(tool, made, mine))
    undated(1)
    take(following(tool, made, mine))
    assert said(made) == ["ask 1"]
    mine.since = made.clock.time_s + 1  # withdrawn and allowed again
    undated(2)
    tool.at = mine.since
    tool.write(b"")
    take(following(tool, made, mine))
    assert said(made) == ["ask 1"]


def test_a_file_that_breaks_the_parser_is_put_aside_counted_and_stops_no_other(
    tool: Tool,
    made: Capture,
    watcher: Follower,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    poison = tool.path.with_name("0-poison.jsonl")
    poison.write_bytes(b"{}\n")
    os.utime(poison, (tool.at, tool.at))
    tool.say(0)
    read = watcher.format.read

    def breaks(path: Path, start: int = 0, *, growing: bool = False) -> Reading:
        if path == poison:
            raise OverflowError("a text of the owner")
        return read(path, start, growing=growing)

    monkeypatch.setattr(watcher.format, "read", breaks)
    take(watcher)
    assert said(made) == ["ask 0"]
    assert watcher.counts.left_out == {"unreadable files: OverflowError": 1}
    assert watcher.look() == []
    assert "owner" not in caplog.text and str(tool.root) not in caplog.text


def test_a_transcript_written_anew_in_its_place_is_read_from_its_beginning(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.say(0)
    take(watcher)
    tool.chat = ClaudeChat(session_id="another", prefix="another")
    for number in range(5):
        tool.chat.ask(f"new ask {number}")
    with tool.path.open("r+b") as file:
        file.truncate()
        file.write(lines_of(tool.chat.rows))
    tool.write(b"")
    take(watcher)
    assert said(made) == ["ask 0", *(f"new ask {number}" for number in range(5))]


def with_uuids(tool: Tool, pairs: int) -> list[bytes]:
    """The lines of a session as the tool writes them, with ids that nothing else has."""
    for number in range(pairs):
        tool.chat.ask(f"ask {number}", uuid=str(uuid.UUID(int=2 * number)))
        tool.chat.text(f"answer {number}", uuid=str(uuid.UUID(int=2 * number + 1)))
    return lines_of(tool.chat.rows).splitlines(keepends=True)


def test_a_transcript_whose_head_was_cut_off_is_taken_once_and_goes_on(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    lines = with_uuids(tool, 5)
    tool.write(b"".join(lines[:8]))
    take(watcher)
    tool.path.unlink()
    tool.write(b"".join(lines[4:8]))
    take(watcher)
    assert said(made) == [*(f"{who} {n}" for n in range(3) for who in ("ask", "answer")), "ask 3"]
    tool.write(b"".join(lines[8:]))
    take(watcher)
    assert said(made)[-2:] == ["answer 3", "ask 4"]
    assert len(said(made)) == 9


def test_a_deleted_session_does_not_come_back_when_its_head_is_cut_off(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    lines = with_uuids(tool, 5)
    tool.write(b"".join(lines[:8]))
    take(watcher)
    made.corpus.delete_sessions({record.session_id for record in made.corpus.records()})
    tool.path.unlink()
    tool.write(b"".join(lines[4:8]))
    take(watcher)
    tool.write(b"".join(lines[8:]))
    take(watcher)
    sessions = Here(tool.root).read(tool.path).sessions
    assert import_sessions(sessions, made.intake, USER, CLAUDE).records == 0
    assert said(made) == []


def test_a_growing_transcript_of_a_folder_that_is_not_allowed_is_read_once(
    tool: Tool, made: Capture, watcher: Follower
) -> None:
    tool.chat.cwd = "/home/ada/elsewhere"
    tool.say(0)
    take(watcher)
    tool.say(1)
    assert watcher.look() == []
    assert said(made) == []
    made.consent.allow(USER, folders=["/home/ada/elsewhere"])
    take(following(tool, made, State(since=NOON)))
    assert said(made) == ["ask 0", "answer 0", "ask 1"]


def test_what_links_lead_to_and_every_folder_of_a_session_must_be_allowed(
    tool: Tool, made: Capture, tmp_path: Path
) -> None:
    place = tmp_path.resolve()
    for name in ("a/b", "c", "secret/inner"):
        (place / name).mkdir(parents=True)
    (place / "a" / "link").symlink_to(place / "secret" / "inner")
    made.consent.allow(USER, folders=[place / "a", place / "c"])
    moves = {
        "inside": ("a/b", "a"),
        "siblings": ("a/b", "c"),
        "link": ("a/b", "a/link"),
        "back": ("a/link/../x",),
        "outside": ("a", "secret"),
    }
    for name, folders in moves.items():
        tool.chat = ClaudeChat(session_id=name, prefix=name)
        for folder in folders:
            tool.chat.ask(f"{name} in {folder}", cwd=f"{place}/{folder}")
        tool.path = tool.path.with_name(f"{name}.jsonl")
        tool.write(lines_of(tool.chat.rows))
    take(following(tool, made, State(since=NOON)))
    assert {text.split()[0] for text in said(made)} == {"inside", "siblings"}
