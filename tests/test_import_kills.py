"""kill -9 at each write, fsync and rename: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from support_capture import NOON, USER, Capture, capture
from support_faults import fast_folder
from support_kills import killed_at
from test_capture_sources import one
from test_following import Tool, follower

from node.capture.sources import importing
from node.capture.sources.following import StateFile
from node.capture.sources.importing import import_sessions

SESSIONS = 4


def bring(home: Path) -> None:
    made = capture(home, granted=False)
    sessions = [one(number, at=NOON + number * 40_000) for number in range(SESSIONS)]
    import_sessions(sessions, made.intake, USER, "jsonl")


def test_an_import_killed_anywhere_is_made_whole_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importing, "CHUNK_SESSIONS", 2)
    died, number, kept = True, 0, 0
    while died:
        number += 1
        with fast_folder() as home:
            capture(home).consent.close()
            died = killed_at(number, partial(bring, home))
            kept += sum(1 for _ in capture(home, granted=False).corpus.records())
            bring(home)
            assert_whole(capture(home, granted=False))
    assert number > 10
    assert kept


def assert_whole(made: Capture) -> None:
    records = Counter(record.record_id for record in made.corpus.records())
    assert set(records.values()) == {1}
    sessions = list(made.corpus.sessions())
    assert len(sessions) == SESSIONS
    assert all(each.closed and each.prompt and each.completion for each in sessions)


def test_a_watching_node_killed_anywhere_loses_nothing_and_takes_nothing_twice() -> None:
    died, number = True, 0
    while died:
        number += 1
        with fast_folder() as folder:
            tool = Tool(folder)
            tool.capture().consent.close()
            died = killed_at(number, partial(follow, tool))
            tool.finish()
            restarted = tool.capture(again=True)
            watcher = follower(tool, restarted, StateFile(tool.home))
            for path in watcher.look():
                watcher.bring(path)
            records = list(restarted.corpus.records())
            assert len({record.record_id for record in records}) == len(records)
            asks = [record.content for record in records if record.content_type == "prompt"]
            assert sorted(asks) == [f"ask {number}" for number in range(4)]
    assert number > 8


def follow(tool: Tool) -> None:
    """What a node does: read on after each write, and save how far it came."""
    made = tool.capture(again=True)
    state = StateFile(tool.home)
    watcher = follower(tool, made, state)
    state.save()
    for turn in range(3):
        tool.say(turn)
        for path in watcher.look():
            watcher.bring(path)
        state.save()
