"""What holds for every parser: no content hurts it, it is fast, and it feeds the preview."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_steps import steps
from support_transcripts import (
    FOLDER,
    ClaudeChat,
    LlmLog,
    Rollout,
    bare_rollout,
    claude_path,
    lines_of,
    rollout_path,
    written,
)

from node.capture.record import ContentType
from node.capture.sources.claude_code import ClaudeCode
from node.capture.sources.codex import Codex
from node.capture.sources.formats import formats
from node.capture.sources.latest import latest_asks
from node.capture.sources.llm_logs import LlmLogs
from node.capture.sources.source import Reading, SourceError, TranscriptFormat

LINES = 100_000


def rows_of_all() -> list[dict[str, Any]]:
    """Lines of both tools and all eras, to be damaged."""
    chat = ClaudeChat()
    chat.ask([{"type": "text", "text": "Make the kettle whistle."}])
    chat.call("Bash", command="ls")
    chat.result("a.py", is_error=True)
    chat.text("It whistles.")
    chat.line("attachment", attachment={"type": "queued_command", "prompt": "And the lid."})
    chat.line("system", subtype="turn_duration")
    rollout = Rollout()
    rollout.meta()
    rollout.ask("Make the kettle whistle.")
    rollout.call("Exit code: 1")
    rollout.text("It whistles.")
    item = {"type": "UserMessage", "content": [{"type": "text", "text": "And the lid."}]}
    rollout.event("item_completed", item=item)
    rollout.end("It whistles.")
    return [*chat.rows, *rollout.rows, *bare_rollout()]


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "message", "text", "tool_result", "\ud800", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    rows: list[Any] = rows_of_all()
    for _ in range(draw(st.integers(1, 4))):
        number = draw(st.integers(0, len(rows) - 1))
        path = draw(st.sampled_from(list(places(rows[number]))))
        rows[number] = changed(rows[number], path, draw(ANY))
    raw = bytearray(b"\n".join(json.dumps(row).encode() for row in rows) + b"\n")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(raw)


def check(reading: Reading, size: int) -> None:
    """What every reading promises."""
    assert 0 <= reading.position <= size
    assert len(reading.counts.unknown) <= 65
    assert all(name.isprintable() and len(name) <= 64 for name in reading.counts.unknown)
    for session in reading.sessions:
        assert session.key
        assert session.turns
        assert session.folder is None or session.folder.startswith("/")
        assert len({turn.key for turn in session.turns}) == len(session.turns)
        for turn in session.turns:
            assert turn.text.strip()
            assert turn.text.encode()
            assert turn.kind in ContentType
            assert turn.timestamp is None or 0 < turn.timestamp < 2**32
        json.dumps([dict(turn.metadata) for turn in session.turns], allow_nan=False)


@pytest.mark.parametrize(
    "source", [*formats(), ClaudeCode(tool_output=True), Codex(tool_output=True)]
)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=damaged() | st.binary(max_size=200), start=st.integers(-5, 3000), growing=st.booleans())
def test_no_content_hurts_a_parser(
    tmp_path: Path, source: TranscriptFormat, raw: bytes, start: int, growing: bool
) -> None:
    path = tmp_path / "any"
    path.write_bytes(raw)
    try:
        check(source.read(path, start, growing=growing), len(raw))
    except SourceError:
        assert isinstance(source, LlmLogs)


def long_claude(lines: int) -> Iterator[bytes]:
    """A session of the usual mix: two thirds of the characters are output of tools."""
    chat = ClaudeChat()
    number = 0
    while number < lines:
        chat.rows.clear()
        chat.prefix = f"u{number}"
        chat.ask(f"<system-reminder>remember</system-reminder>Make part {number} of the kettle.")
        chat.say({"type": "thinking", "thinking": "hm " * 50, "signature": "s" * 100})
        for step in range(4):
            chat.call("Bash", command=f"make part-{number} step-{step}")
            chat.result("an output line of ordinary length\n" * 30)
        chat.text(f"Part {number} is made. " * 8)
        number += len(chat.rows)
        yield lines_of(chat.rows)


def long_codex(lines: int) -> Iterator[bytes]:
    rollout = Rollout()
    rollout.meta()
    number = 0
    while number < lines:
        rollout.ask(f"Make part {number} of the kettle.")
        for _ in range(4):
            rollout.item("reasoning", summary=[], encrypted_content="x" * 300)
            rollout.call("Exit code: 0\n" + "an output line of ordinary length\n" * 30)
        rollout.text(f"Part {number} is made. " * 8)
        rollout.end(f"Part {number} is made. " * 8)
        number += len(rollout.rows)
        yield lines_of(rollout.rows)
        rollout.rows.clear()


BOTH = pytest.mark.parametrize(
    ("source", "lines"), [(ClaudeCode(), long_claude), (Codex(), long_codex)], ids=lambda it: ""
)


@BOTH
def test_a_hundred_thousand_lines_are_read_whole(
    tmp_path: Path, source: TranscriptFormat, lines: Any
) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.writelines(lines(LINES))
    reading = source.read(path)
    assert reading.counts.lines >= LINES
    assert reading.counts.malformed == 0
    [session] = reading.sessions
    assert len(session.turns) >= 10_000


@BOTH
def test_four_times_the_lines_cost_about_four_times_as_much(
    tmp_path: Path, source: TranscriptFormat, lines: Any
) -> None:
    def cost(number: int) -> int:
        path = tmp_path / f"{number}.jsonl"
        with path.open("wb") as file:
            file.writelines(lines(number))
        return steps(partial(source.read, path))

    small, large = cost(2_000), cost(8_000)
    assert large < 6 * small, f"{small} steps, then {large}"
    assert large < 200 * 8_000


def test_memory_is_bound_by_what_is_kept_and_not_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.writelines(long_claude(20_000))
    tracemalloc.start()
    ClaudeCode().read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def home_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "LLM_USER_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def test_the_newest_asks_of_all_tools_come_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(tmp_path, monkeypatch)
    chat, rollout = ClaudeChat(), Rollout()
    chat.ask("First of Claude Code")
    chat.text("Yes.")
    rollout.meta()
    rollout.exchange("First of Codex", "Yes.")
    written(claude_path(home), chat.rows)
    written(rollout_path(home), rollout.rows)
    LlmLog(home / "logs.db").response("r1", "First of llm", "Yes.")
    samples = latest_asks(formats(), 10)
    assert [(sample.source, sample.folder, sample.text) for sample in samples] == [
        ("codex", FOLDER, "First of Codex"),
        ("llm", None, "First of llm"),
        ("claude-code", FOLDER, "First of Claude Code"),
    ]
    assert latest_asks(formats(), 2) == samples[:2]
    assert latest_asks(formats(), 0) == []
    assert {sample.answer for sample in samples} == {"Yes."}
    assert latest_asks(formats(), 1, lambda source, folders: source == "llm") == samples[1:2]
    assert "Codex" not in repr(samples[0])


def test_the_preview_reads_the_end_of_a_huge_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(tmp_path, monkeypatch)
    path = claude_path(home)
    path.parent.mkdir(parents=True)

    def cost(lines: int) -> int:
        with path.open("wb") as file:
            file.writelines(long_claude(lines))
            chat = ClaudeChat(prefix="last")
            chat.ask("The very last ask")
            file.write(lines_of(chat.rows))
            file.write(b'{"type":"assistant","message":"' + b"x" * 2**21 + b'"}\n')
        return steps(lambda: latest_asks(formats(), 1))

    huge, larger = cost(5_000), cost(20_000)
    assert larger < 1.2 * huge, f"{huge} steps, then {larger} for a file four times as long"
    [sample] = latest_asks(formats(), 1)
    assert sample.text.startswith("Make part")  # the youngest by its time
    texts = {sample.text for sample in latest_asks(formats(), 1_000)}
    assert "The very last ask" in texts


def test_a_preview_of_what_cannot_be_read_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(tmp_path, monkeypatch)
    assert latest_asks(formats(), 5) == []
    (home / "logs.db").write_bytes(b"no database" * 1000)
    written(claude_path(home), []).write_bytes(os.urandom(4096))
    written(rollout_path(home), [{"type": "session_meta", "payload": 3}])
    assert latest_asks(formats(), 5) == []
