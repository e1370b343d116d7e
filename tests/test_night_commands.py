"""`pause`, `resume`, and what `status` says of unattended work: the owner's side of nights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support_routing import Routed, routed

from leaves.model import Instant, Stage
from node import deploying, heard, morning, night_book, overview, set_aside, show_night
from node.cli.night import seconds
from node.consent import Scope
from node.errors import MisuseError
from node.foreign import State
from node.mesh import ForeignLeaf
from node.night_book import Book, Phase
from node.told import EventFile, Told

ROOT = Path(__file__).parent.parent
NOW = Instant(1_795_386_600)
ORIGIN = "02" * 32
DAY = 86_400


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    return routed(tmp_path, monkeypatch)


@pytest.fixture
def groove(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    environment = {**os.environ, "GROOVE_HOME": str(folder), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "node.cli", *arguments, "--json"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    run("init")
    return run


def test_a_pause_is_shown_by_status_until_it_is_taken_back(
    groove: Callable[..., dict[str, Any]],
) -> None:
    assert groove("pause", "--for", "2h")["until"] > 0
    paused = groove("status")["night"]
    assert (paused["state"], paused["why"]) == ("paused", "by you")
    told = {each["check"]: each["text"] for each in groove("doctor")["findings"]}
    assert told["night"] == "unattended work is paused"
    assert groove("resume") == {"paused": False, "was_paused": True}
    assert groove("status")["night"]["state"] != "paused"


def test_status_says_what_ends_a_pause_and_when_the_next_night_is(home: Routed) -> None:
    night_book.pause(home.app.home, home.app.now(), None)
    assert "groove-node resume" in overview.status(home.app)["night"]["until"]
    assert night_book.resume(home.app.home) and not night_book.resume(home.app.home)
    Book(home.app.home, home.app.now()).begin("a date", home.app.now())
    Book(home.app.home, home.app.now()).finish(Phase.REPORT)
    assert overview.status(home.app)["night"]["until"].startswith("next night")


@pytest.mark.parametrize(
    ("text", "expected"), [("30m", 1800), ("2h", 7200), ("1.5h", 5400), ("1d", DAY), ("5 min", 300)]
)
def test_a_length_of_time_is_read(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0h", "2 weeks", "99999d", "1e9h", "nan h"])
def test_a_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MisuseError):
        seconds(text)


# ---- the morning report --------------------------------------------------------------------------


def told(home: Routed, *events: Told) -> None:
    for each in events:
        home.app.events.tell(each)


def test_a_report_holds_what_happened_in_the_night_and_nothing_else(home: Routed) -> None:
    told(home, Told("stage", "before the night"))
    began = Instant(home.app.now() + 1)
    later = EventFile(home.app.home, _At(began + 5))
    for each in (
        Told("embedded", "7 sessions embedded", {"sessions": 7}),
        Told("stage", "tides: new -> seed"),
        Told("judged", "tides: won"),
        Told("refused", "x of 02020202: refused; its signature is none"),
        Told("published", "published a table of 1"),
        Told("connected", "of no interest"),
    ):
        later.tell(each)
    with (home.app.home / "events.jsonl").open("ab") as file:
        file.write(b'{"at": "torn')
    found = morning.happened(home.app.home, began, Instant(began + 10))
    assert (found["sessions"], found["published"]) == (7, 1)
    assert found["counts"] == {"grown": 1, "trained": 1, "refused": 1}
    assert found["refused"] == ["x of 02020202: refused; its signature is none"]


class _At:
    def __init__(self, at: float) -> None:
        self.at = at

    def now_s(self) -> float:
        return self.at


def test_status_tells_the_last_night_in_lines_and_to_programs(home: Routed) -> None:
    book = Book(home.app.home, NOW)
    report = {
        "date": "2026-11-23",
        "began": NOW,
        "ended": NOW + 3600,
        "minutes": 60.0,
        "left": ["fetch and judge"],
        "sessions": 7,
        "published": 1,
        "counts": {"grown": 5, "refused": 1},
        "grown": [f"leaf-{n}: seed -> sprout" for n in range(5)],
        "refused": ["x: refused; its form is wrong"],
        "put_off": {"you": 12.0},
        "bytes_in": 2_500_000,
        "bytes_out": 40_000,
        "cpu_hours": 1.5,
        "energy_wh": 12.0,
    }
    book.tell(report)
    night = overview.status(home.app)["night"]
    assert night["last"] == report
    lines = show_night.facts(night, running=True)
    text = "\n".join(f"{key}: {value}" for key, value in lines)
    assert "60 min, 7 new sessions, 5 changes of stage, 1 refused, published" in text
    assert "2.5 MB in, 40.0 kB out, about 12.0 Wh, put off: fetch and judge" in text
    assert "and 2 more" in text and "its form is wrong" in text and "12 min for you" in text


def test_a_home_where_no_node_ran_has_no_night_to_tell_of(home: Routed) -> None:
    night = overview.status(home.app)["night"]
    assert night["last"] is None
    assert [key for key, _ in show_night.facts(night, running=False)] == ["unattended"]


def test_a_book_of_an_older_or_newer_node_does_not_stop_status(home: Routed) -> None:
    (home.app.home / night_book.FILE).write_text('{"since": "yesterday"}')
    assert overview.status(home.app)["night"]["last"] is None


# ---- after a long silence ------------------------------------------------------------------------


def foreign_in_table(home: Routed) -> list[str]:
    table = home.app.tables.load()
    assert table is not None
    return [entry.leaf for entry in table.entries if entry.origin]


def test_after_a_week_of_silence_peers_leaves_are_routed_to_only_once_peers_were_heard(
    home: Routed,
) -> None:
    app = home.app
    app.consent.record_consent(app.user_id, True, "1.0", scopes=set(Scope))
    leaf, chassis = home.leaf("tides"), set_aside.tag(app) or "d" * 16
    theirs = ForeignLeaf(
        ORIGIN, "ab" * 16, 1, Stage.MATURE, 9, "e" * 64, "f" * 64, 10, chassis, leaf.centroid
    )
    app.foreign.replace_origin(ORIGIN, [theirs])
    app.foreign.settle(app.foreign.all()[0], State.ACCEPTED, {"gate": 0.3}, "tides")
    app.deploy()
    assert foreign_in_table(home) == [theirs.leaf]
    heard.note(app.home, Instant(app.now() - 7 * DAY - 60))
    deploying.begin(app)  # as a command does that routes, with no node running
    assert foreign_in_table(home) == []
    app.deploy()
    assert foreign_in_table(home) == []
    heard.note(app.home, app.now())
    app.deploy_if_routed()
    assert foreign_in_table(home) == [theirs.leaf]
