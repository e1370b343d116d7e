"""The database of `llm`, with both generations of its tables."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support_transcripts import NEW_LLM, OLD_LLM, LlmLog

from node.capture.sources.llm_logs import LlmLogs
from node.capture.sources.source import SourceError, SourceSession


def texts(session: SourceSession) -> list[tuple[str, str]]:
    return [(turn.key, turn.text) for turn in session.turns]


def test_both_generations_are_read_and_what_stands_in_both_counts_once(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    log.response("r1", "Why is tea hot?", "The kettle.")
    log.response("r2", "And coffee?", "The same.", conversation="t1")
    log.turn("r2", "And coffee?", "The same.")
    log.turn("r3", "And soup?", "A pot.")
    reading = LlmLogs().read(log.path)
    tea, rest = reading.sessions
    assert (tea.key, rest.key) == ("c1", "t1")
    assert texts(tea) == [("r1/ask", "Why is tea hot?"), ("r1/answer", "The kettle.")]
    assert [turn.text for turn in rest.turns] == ["And coffee?", "The same.", "And soup?", "A pot."]
    assert rest.outcome == ""
    assert tea.folder is None
    answers = (tea.turns[1], rest.turns[3])
    assert [(turn.source_provider, turn.source_model) for turn in answers] == [
        ("openai", "gpt-4o-mini"),
        ("anthropic", "claude-3.5-haiku"),
    ]
    assert answers[0].metadata["usage"] == {"input_tokens": 9, "output_tokens": 4}
    assert [int(turn.timestamp or 0) for turn in answers] == [1_777_204_800, 1_777_204_801]
    assert reading.counts.left_out["thinking"] == 1
    assert reading.counts.lines == 4
    assert not reading.counts.unknown


@pytest.mark.parametrize("schema", [OLD_LLM, NEW_LLM, "CREATE TABLE schemas (id TEXT);", ""])
def test_a_missing_table_is_no_error(tmp_path: Path, schema: str) -> None:
    log = LlmLog(tmp_path / "logs.db", schema)
    if schema == OLD_LLM:
        log.response("r1", "Why?", "So.")
    if schema == NEW_LLM:
        log.turn("r1", "Why?", "So.")
    reading = LlmLogs().read(log.path)
    assert [texts(session) for session in reading.sessions] == [
        [("r1/ask", "Why?"), ("r1/answer", "So.")] for _ in range(schema in (OLD_LLM, NEW_LLM))
    ]


def test_a_later_reading_gives_only_later_rows(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    log.response("r1", "Why?", "So.")
    log.turn("r2", "Why, then?", "So, too.")
    first = LlmLogs().read(log.path)
    assert LlmLogs().read(log.path, first.position).sessions == ()
    log.turn("r3", "No, that's wrong.", "Right.")
    [session] = LlmLogs().read(log.path, first.position).sessions
    assert texts(session) == [("r3/ask", "No, that's wrong."), ("r3/answer", "Right.")]
    assert session.corrections == 1


def test_after_the_tables_were_rebuilt_all_is_read(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    for number in range(3):
        log.response(f"r{number}", "Why?", "So.")
    position = LlmLogs().read(log.path).position
    log.database.execute("DELETE FROM responses")
    log.response("r9", "Why now?", "So.")  # the first row again
    [session] = LlmLogs().read(log.path, position).sessions
    assert len(session.turns) == 2


def test_borrowed_texts_reasoning_and_tools_are_left_out(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    parent = log.message("m1", None, "system", ("text", "Be brief."))
    parent = log.message("m2", parent, "user")
    pieces = '{"text_ref":[{"fragment":1},{"literal":"What does this file do?"}]}'
    log.insert("parts", message_hash="m2", position=0, type="text", payload=pieces)
    log.insert("parts", message_hash="m2", position=1, type="attachment", payload='{"id":"a"}')
    log.insert("parts", message_hash="m2", position=2, type="hologram", payload="[")
    tip = log.message("m3", parent, "assistant", ("tool_call", ""), ("text", "Nothing."))
    log.insert(
        "turns", id="r1", thread_id="t", model="llama3.2", parent_message_hash=parent,
        tip_message_hash=tip,
    )  # fmt: skip
    reading = LlmLogs().read(log.path)
    [session] = reading.sessions
    assert texts(session) == [("r1/ask", "What does this file do?"), ("r1/answer", "Nothing.")]
    assert session.turns[1].source_provider == ""
    assert reading.counts.left_out == {"injected context": 1, "attachments": 1, "tool calls": 1}
    assert reading.counts.unknown == {"part/hologram": 1}


def test_a_ring_of_messages_ends(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    log.message("m1", "m2", "user", ("text", "a"))
    log.message("m2", "m1", "user", ("text", "b"))
    log.insert("turns", id="r1", thread_id="t", parent_message_hash="m1", tip_message_hash="m2")
    assert LlmLogs().read(log.path).sessions


def test_failed_tools_are_errors(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    log.response("r1", "Build.", "")
    log.insert("tool_results", response_id="r2", name="make", output="", exception="OSError")
    log.response("r2", "", "It failed.")
    reading = LlmLogs().read(log.path)
    [session] = reading.sessions
    assert session.errors == 1
    assert reading.counts.left_out["tool output"] == 1


def test_it_is_read_while_it_is_written_and_not_changed(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    log.response("r1", "Why?", "So.")
    log.database.execute("BEGIN IMMEDIATE")
    log.response("r2", "Why, then?", "So, too.")
    [session] = LlmLogs().read(log.path).sessions
    assert [turn.key for turn in session.turns] == ["r1/ask", "r1/answer"]
    log.database.execute("COMMIT")
    before = log.path.read_bytes()
    assert len(LlmLogs().read(log.path).sessions[0].turns) == 4
    assert log.path.read_bytes() == before


def test_a_database_held_by_its_writer_is_a_source_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.capture.sources.llm_logs.WAIT_S", 0.05)
    log = LlmLog(tmp_path / "logs.db")
    log.database.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SourceError):
        LlmLogs().read(log.path)


def test_a_file_in_wal_mode_is_read(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    log.database.execute("PRAGMA journal_mode=WAL")
    log.response("r1", "Why?", "So.")
    assert len(LlmLogs().read(log.path).sessions) == 1


def test_what_is_no_database_is_a_source_error(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with pytest.raises(SourceError):
        LlmLogs().read(path)
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    with pytest.raises(SourceError):
        LlmLogs().read(path)


def test_columns_of_any_type_are_survived(tmp_path: Path) -> None:
    log = LlmLog(tmp_path / "logs.db")
    log.insert("responses", id=b"\xff", prompt=7, response=b"x", model=None, datetime_utc=1e300)
    log.database.execute("INSERT INTO responses (prompt) VALUES (CAST(x'ff41' AS TEXT))")
    log.insert("turns", id="t", parent_message_hash=b"\0", tip_message_hash=3.5, input_tokens="x")
    turns = [turn for session in LlmLogs().read(log.path).sessions for turn in session.turns]
    assert [turn.text for turn in turns] == ["7", "\ufffdA"]
    assert turns[0].timestamp is None


def test_the_root_is_the_configured_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    assert LlmLogs().roots() == []
    sqlite3.connect(tmp_path / "logs.db").execute("CREATE TABLE a (b)").connection.close()
    [root] = LlmLogs().roots()
    assert list(LlmLogs().files(root)) == [root] == [tmp_path / "logs.db"]
    assert LlmLogs().expiry_days() is None


def made(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)
    return path


@pytest.mark.parametrize("value", ["9e999", "'x'", "-5"])
def test_a_column_that_takes_the_name_of_the_row_number_hurts_nothing(
    tmp_path: Path, value: str
) -> None:
    path = made(
        tmp_path / "logs.db",
        "CREATE TABLE responses (rowid, id, prompt, response)",
        f"INSERT INTO responses VALUES ({value}, 'a', 'ask', 'answer')",
    )
    reading = LlmLogs().read(path)
    assert [turn.text for turn in reading.sessions[0].turns] == ["ask", "answer"]
    assert reading.position == 1


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE responses (id TEXT PRIMARY KEY, prompt) WITHOUT ROWID",
        "CREATE TABLE responses (id, prompt GENERATED ALWAYS AS (hex(zeroblob(90000000))))",
    ],
)
def test_tables_that_no_tool_would_make_are_a_source_error(tmp_path: Path, table: str) -> None:
    path = made(tmp_path / "logs.db", table, "INSERT INTO responses (id) VALUES ('a')")
    with pytest.raises(SourceError) as refused:
        LlmLogs().read(path)
    assert str(tmp_path) not in refused.value.reason


def without_index(path: Path, turns: int) -> Path:
    made(
        path,
        "CREATE TABLE responses (id)",
        "CREATE TABLE turns (id, thread_id, parent_message_hash, tip_message_hash)",
        "CREATE TABLE messages (hash, parent_hash, role)",
        "CREATE TABLE parts (message_hash, type, text, payload, position)",
    )
    with closing(sqlite3.connect(path)) as database, database:
        for n in range(turns):
            database.execute(
                "INSERT INTO turns VALUES (?, 'thread', ?, ?)", (f"t{n}", f"q{n}", f"a{n}")
            )
            database.execute("INSERT INTO messages VALUES (?, NULL, 'user')", (f"q{n}",))
            database.execute("INSERT INTO messages VALUES (?, ?, 'model')", (f"a{n}", f"q{n}"))
            for who in "qa":
                database.execute(
                    "INSERT INTO parts VALUES (?, 'text', ?, NULL, 0)", (f"{who}{n}", f"{who} {n}")
                )
    return path


def test_turns_without_any_index_are_read_without_a_scan_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, worked = sqlite3.connect, [0]

    def counted(*arguments: Any, **more: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*arguments, **more)

        def count() -> int:
            worked[-1] += 1  # hundred instructions of SQLite's machine
            return 0

        database.set_progress_handler(count, 100)
        return database

    paths = [without_index(tmp_path / f"{n}.db", n) for n in (500, 2_000)]
    monkeypatch.setattr(sqlite3, "connect", counted)
    [small] = LlmLogs().read(paths[0]).sessions
    worked.append(0)
    [large] = LlmLogs().read(paths[1]).sessions
    assert [turn.text for turn in large.turns[-2:]] == ["q 1999", "a 1999"]
    assert (len(small.turns), len(large.turns)) == (1_000, 4_000)
    assert 0 < worked[1] < 6 * worked[0], f"{worked} hundred instructions"


def test_a_pipe_in_the_place_of_the_database_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "logs.db")
    with pytest.raises(SourceError):
        LlmLogs().read(tmp_path / "logs.db")
