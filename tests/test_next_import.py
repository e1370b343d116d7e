"""Which import would help: what lies here unread, and the command for it."""

from __future__ import annotations

from node.history import History
from node.next_import import FEW, facts, suggestions
from node.tally import SourceCounts


def history(source: str, *, allowed: bool, transcripts: int, unread: int, folders: bool) -> History:
    return History(
        source,
        allowed,
        transcripts,
        0,
        None,
        SourceCounts(),
        0,
        1 if folders else None,
        unread,
    )


CLAUDE = history("claude-code", allowed=True, transcripts=40, unread=12, folders=True)
CODEX = history("codex", allowed=False, transcripts=30, unread=30, folders=True)
LLM = history("llm", allowed=False, transcripts=1, unread=1, folders=False)
READ = history("claude-code", allowed=True, transcripts=40, unread=0, folders=True)


def test_what_has_most_unread_comes_first_with_the_command_that_brings_it_in() -> None:
    told = [(x["source"], x["command"]) for x in suggestions([CLAUDE, LLM, CODEX], 500, True)]
    assert told == [
        ("codex", "groove-node consent grant capture --source codex --folder DIR"),
        ("claude-code", "groove-node import claude-code"),
        ("llm", "groove-node consent grant capture --source llm"),
    ]


def test_what_was_read_is_not_asked_for_again() -> None:
    assert suggestions([READ], 500, True) == []


def test_a_node_with_few_sessions_and_no_history_is_told_what_every_machine_has() -> None:
    (only,) = suggestions([READ], FEW - 1, True)
    assert only["command"] == "groove-node import pydoc PACKAGE"
    (only,) = suggestions([], 0, False)
    assert only["command"] == "groove-node consent grant capture"
    assert suggestions([], FEW, True) == []


def test_each_is_a_line_of_status() -> None:
    lines = facts(suggestions([CLAUDE, LLM], 500, True))
    grant = "groove-node consent grant capture --source llm"
    assert lines == [
        (
            "would help",
            "12 transcripts of claude-code not read yet: `groove-node import claude-code`",
        ),
        ("", f"1 transcript of llm here, not allowed: `{grant}`"),
    ]
