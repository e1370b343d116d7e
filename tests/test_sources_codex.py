"""Codex's transcripts, from bare lines to paginated files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support_transcripts import (
    BEGIN,
    FOLDER,
    GPT,
    Rollout,
    Row,
    bare_rollout,
    lines_of,
    rollout_path,
    written,
)

from node.capture.record import ContentType
from node.capture.sources.codex import PARSER, Codex
from node.capture.sources.source import Reading, SourceError, SourceSession, Turn


def read(tmp_path: Path, rows: list[Row], **more: object) -> Reading:
    return Codex().read(written(rollout_path(tmp_path), rows), **more)  # type: ignore[arg-type]


def only(reading: Reading) -> SourceSession:
    [session] = reading.sessions
    return session


def said(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    return [(turn.kind.value, turn.text) for turn in turns]


CONTEXT = f"<environment_context>\n  <cwd>{FOLDER}</cwd>\n</environment_context>"
WANTED = [
    ("prompt", "Make the kettle whistle."),
    ("completion", "I will look.\n\nIt whistles now."),
    ("prompt", "Now the lid."),
    ("completion", "The lid, too."),
]


def rollout(**more: bool) -> Rollout:
    """A session of the era of envelopes: two exchanges, a tool, injected context, reasoning."""
    chat = Rollout(**more)
    chat.meta()
    chat.message("developer", "<permissions instructions>none</permissions instructions>")
    chat.message("user", "# AGENTS.md instructions for /x\n\n<INSTRUCTIONS>a</INSTRUCTIONS>")
    chat.message("user", CONTEXT)
    chat.ask("Make the kettle whistle.")
    chat.item("reasoning", summary=[], encrypted_content="xx")
    chat.text("I will look.")
    chat.call("Exit code: 0\nWall time: 0.1 seconds\nOutput:\na.py secret")
    chat.text("It whistles now.")
    chat.end("It whistles now.")
    chat.exchange("Now the lid.", "The lid, too.")
    return chat


def paginated() -> list[Row]:
    """A session of mid-2026: the words stand in completed items of turns."""
    chat = Rollout(events=False)
    chat.meta(history_mode="paginated", base_instructions={"text": "You are …"}, instructions=None)
    chat.line("world_state", {"full": True, "state": {}})
    for (_, ask), (_, answer) in (WANTED[0:2], WANTED[2:4]):
        chat.begin()
        chat.message("user", CONTEXT)
        for kind, text in (("UserMessage", ask), ("AgentMessage", answer)):
            content = [{"type": "text", "text": text}]
            chat.event("item_completed", item={"type": kind, "id": "i", "content": content})
        chat.end()
    return chat.rows


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(rollout().rows, id="items and events"),
        pytest.param(rollout(turn_ids=False).rows, id="turns without ids"),
        pytest.param(rollout(turn_ids=False, tasks=False).rows, id="no tasks"),
        pytest.param(rollout(events=False).rows, id="items alone"),
        pytest.param(paginated(), id="paginated"),
    ],
)
def test_every_era_gives_the_asks_and_the_answers_once(tmp_path: Path, rows: list[Row]) -> None:
    reading = read(tmp_path, rows)
    session = only(reading)
    assert said(session.turns) == WANTED
    assert session.folder == FOLDER
    assert session.key == Rollout().session_id
    assert session.outcome == ""
    assert session.metadata == {"tool_version": "0.144.3", "parser": PARSER}
    answer = session.turns[1]
    assert (answer.source_provider, answer.source_model) == ("openai", GPT)
    assert answer.metadata["usage"]["output_tokens"] == 7
    assert answer.timestamp is not None
    assert answer.timestamp > BEGIN.timestamp()
    assert not reading.counts.unknown
    assert not reading.counts.malformed


def test_bare_files_tell_folder_and_time_elsewhere(tmp_path: Path) -> None:
    reading = read(tmp_path, bare_rollout())
    session = only(reading)
    assert [turn.text for turn in session.turns] == [
        "Which port does the kettle use?",
        "It uses port 8080.",
        "yes",
        "Good.",
        "yes",
        "Still good.",
    ]
    assert len({turn.key for turn in session.turns}) == 6
    assert session.folder == FOLDER
    assert session.key == "c3c4b301"
    assert session.turns[0].timestamp == BEGIN.timestamp()
    assert not reading.counts.unknown
    again = only(read(tmp_path, bare_rollout(), start=reading.position))
    assert again == session


def test_an_item_in_the_users_place_without_an_event_was_injected(tmp_path: Path) -> None:
    chat = rollout()
    chat.begin()
    chat.message("user", "<hologram_v9>a kind of context that nobody knows yet</hologram_v9>")
    chat.ask("And the spout?", begin=False)
    chat.end()
    turns = only(read(tmp_path, chat.rows)).turns
    assert [turn.text for turn in turns][4:] == ["And the spout?"]


def test_the_same_words_twice_are_two_asks(tmp_path: Path) -> None:
    for events in (True, False):
        chat = Rollout(events=events)
        chat.meta()
        chat.ask("continue")
        chat.text("One.")
        chat.ask("continue", begin=False)
        chat.text("Two.")
        chat.end()
        chat.exchange("continue", "Two.")
        turns = only(read(tmp_path, chat.rows)).turns
        texts = ["continue", "One.", "continue", "Two.", "continue", "Two."]
        assert [turn.text for turn in turns] == texts
        assert len({turn.key for turn in turns}) == 6


def test_a_fork_tells_what_it_copied_under_the_same_keys(tmp_path: Path) -> None:
    first = rollout()
    fork = Rollout(session_id="fork")
    fork.meta(forked_from_id=first.session_id)
    fork.rows += [{**row, "timestamp": "2026-05-01T00:00:00.000Z"} for row in first.rows]
    fork.turn = 7
    fork.exchange("And in red?", "In red.")
    one, two = only(read(tmp_path, first.rows)), only(read(tmp_path, fork.rows))
    assert two.key == one.key
    assert [turn.key for turn in two.turns[:4]] == [turn.key for turn in one.turns]
    assert said(two.turns[4:]) == [("prompt", "And in red?"), ("completion", "In red.")]


@pytest.mark.parametrize(
    "about",
    [
        {"source": {"subagent": {"thread_spawn": {"parent_thread_id": "x", "depth": 1}}}},
        {"source": {"subagent": "review"}},
        {"thread_source": "subagent"},
    ],
)
def test_files_of_sub_agents_are_left_out(tmp_path: Path, about: Row) -> None:
    chat = Rollout()
    chat.meta(**about)
    chat.exchange("Search.", "Found.")
    reading = read(tmp_path, chat.rows)
    assert reading.sessions == ()
    assert reading.counts.left_out["sub-runs"] == len(chat.rows)
    assert reading.position == len(lines_of(chat.rows))


def test_tool_output_is_kept_only_if_it_is_wanted(tmp_path: Path) -> None:
    path = written(rollout_path(tmp_path), rollout().rows)
    turns = only(Codex(tool_output=True).read(path)).turns
    tools = [turn for turn in turns if turn.kind is ContentType.WORKFLOW]
    assert [(turn.metadata["event"], "secret" in turn.text) for turn in tools] == [
        ("TOOL_CALL", False),
        ("TOOL_OUTPUT", True),
    ]
    assert "secret" not in str(said(only(Codex().read(path)).turns))


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("Exit code: 2\nOutput:\nno", 1),
        ("Chunk ID: 1\nProcess exited with code 1\nOutput:\nno", 1),
        ('{"output":"no","metadata":{"exit_code":1,"duration_seconds":0.1}}', 1),
        ({"content": "no", "success": False}, 1),
        ([{"type": "input_text", "text": "Exit code: 0"}], 0),
        ("nothing known", 0),
        ({"content": "yes", "success": True}, 0),
    ],
)
def test_failed_calls_are_counted_by_what_the_output_tells(
    tmp_path: Path, output: object, errors: int
) -> None:
    chat = Rollout()
    chat.meta()
    chat.ask("Build.")
    chat.call(output)
    chat.text("So it went.")
    chat.end()
    assert only(read(tmp_path, chat.rows)).errors == errors


def test_a_call_that_failed_and_then_works_accepts(tmp_path: Path) -> None:
    chat = Rollout()
    chat.meta()
    chat.ask("Build.")
    chat.call("Exit code: 1\nno such file")
    chat.call("Exit code: 0\nbuilt")
    chat.text("It builds.")
    chat.end()
    session = only(read(tmp_path, chat.rows))
    assert (session.outcome, session.errors) == ("accepted", 1)


def test_interruptions_and_errors_are_told(tmp_path: Path) -> None:
    chat = rollout()
    chat.ask("Stop me.")
    chat.event("turn_aborted", turn_id="turn-3", reason="interrupted")
    assert only(read(tmp_path, chat.rows)).outcome == "rejected"
    chat.ask("Once more.")
    chat.event("error", message="stream disconnected")
    session = only(read(tmp_path, chat.rows))
    assert (session.outcome, session.errors, session.corrections) == ("error", 1, 1)


def test_the_owners_words_in_the_editor_follow_the_marker(tmp_path: Path) -> None:
    chat = Rollout()
    chat.meta()
    chat.ask(
        "# Context from my IDE setup:\n\n## Open tabs:\n- a.py\n\n## My request for Codex:\nGo."
    )
    chat.end()
    assert only(read(tmp_path, chat.rows)).turns[0].text == "Go."


def test_pictures_are_counted_and_dropped(tmp_path: Path) -> None:
    chat = Rollout(events=False)
    chat.meta()
    chat.begin()
    content = [
        {"type": "input_text", "text": "<image name=[Image #1]>"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_text", "text": "</image>"},
        {"type": "input_text", "text": "What is this?"},
    ]
    chat.item("message", role="user", content=content)
    reading = read(tmp_path, chat.rows)
    assert said(only(reading).turns) == [("prompt", "What is this?")]
    assert reading.counts.left_out["images"] == 1


@pytest.mark.parametrize(
    "more", [{}, {"turn_ids": False, "tasks": False}, {"events": False}], ids=str
)
def test_reading_piece_by_piece_gives_what_one_reading_gives(
    tmp_path: Path, more: dict[str, bool]
) -> None:
    whole = lines_of(rollout(**more).rows)
    path = rollout_path(tmp_path)
    path.parent.mkdir(parents=True)
    source, position = Codex(tool_output=True), 0
    pieces: dict[str, tuple[str, str]] = {}
    for end in [*range(0, len(whole), 83), len(whole)]:
        path.write_bytes(whole[:end])
        reading = source.read(path, position, growing=True)
        position = reading.position
        for session in reading.sessions:
            for turn in session.turns:
                told = (turn.text, turn.source_model)
                assert pieces.setdefault(turn.key, told) == told
    for turn in source.read(path, position).sessions[0].turns if position < len(whole) else ():
        pieces.setdefault(turn.key, (turn.text, turn.source_model))
    once = only(source.read(path)).turns
    assert pieces == {turn.key: (turn.text, turn.source_model) for turn in once}


def test_an_unfinished_exchange_is_held_back_from_its_beginning(tmp_path: Path) -> None:
    chat = rollout()
    finished = len(lines_of(chat.rows))
    chat.ask("And the spout?")
    chat.text("Looking.")
    held = read(tmp_path, chat.rows, growing=True)
    assert said(only(held).turns) == WANTED
    assert held.position == finished
    chat.text("Done.")
    chat.end("Done.")
    rest = read(tmp_path, chat.rows, start=finished, growing=True)
    assert said(only(rest).turns) == [
        ("prompt", "And the spout?"),
        ("completion", "Looking.\n\nDone."),
    ]
    assert only(rest).turns[1].source_model == GPT
    assert rest.position == len(lines_of(chat.rows))


def test_what_is_unknown_is_counted_by_name(tmp_path: Path) -> None:
    chat = rollout()
    chat.line("hologram", {})
    chat.event("hologram")
    chat.item("hologram")
    chat.rows += [{"timestamp": stamp, "payload": {}} for stamp in (None, 3)]
    counts = read(tmp_path, chat.rows).counts
    assert counts.unknown == {
        "hologram": 1,
        "event_msg/hologram": 1,
        "item/hologram": 1,
        "(NoneType)": 2,
    }


def test_roots_are_sessions_and_archive_of_the_configured_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path))
    assert Codex().roots() == []
    live = written(rollout_path(tmp_path), [])
    old = written(tmp_path / "archived_sessions" / "rollout-x.jsonl", [])
    written(tmp_path / "sessions" / "notes.jsonl", [])
    assert Codex().roots() == [tmp_path / "sessions", tmp_path / "archived_sessions"]
    assert [path for root in Codex().roots() for path in Codex().files(root)] == [live, old]
    assert Codex().expiry_days() is None


def test_a_file_that_cannot_be_read_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        Codex().read(tmp_path / "gone.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError):
        Codex().read(tmp_path / "pipe")
