"""`groove-node logs`: what was logged, chosen by how grave it is, for a person or a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.app import App
from node.cli import main
from node.logfile import FILE, Entry, entries

LOG = (
    "ValueError: the end of one that was cut off\n"
    "2026-11-22 01:02:03,004 INFO node.daemon stopping\n"
    "2026-11-22 01:02:04,004 ERROR node.fencing task failed task=x problem=E\n"
    "Traceback (most recent call last):\n"
    '  File "x.py", line 1, in y\n'
    "2026-11-22 01:02:05,004 WARNING node.mesh refused peer=12D3 reason=BAD_SIGNATURE\n"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("GROOVE_HOME", str(folder))
    App(folder).identity  # noqa: B018 - a home has keys
    return folder


def ran(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["logs", *arguments])
    return ended.value.code


@pytest.mark.parametrize(
    ("level", "loggers"),
    [
        ("info", ["node.daemon", "node.fencing", "node.mesh"]),
        ("warning", ["node.fencing", "node.mesh"]),
        ("error", ["node.fencing"]),
    ],
)
def test_only_what_is_grave_enough_is_shown_each_with_its_traceback(
    home: Path, level: str, loggers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (home / FILE).write_text(LOG)
    assert ran("--level", level, "--json") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["logger"] for each in shown] == loggers
    failed = next(each for each in shown if each["logger"] == "node.fencing")
    assert failed["level"] == "ERROR" and failed["at"] == "2026-11-22 01:02:04,004"
    assert failed["text"].endswith("in y") and "cut off" not in failed["text"]


def test_the_last_are_counted_after_the_choice(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / FILE).write_text(LOG)
    assert ran("--level", "warning", "-n", "1") == 0
    assert capsys.readouterr().out == LOG.splitlines(keepends=True)[-1]


def test_without_a_choice_the_file_is_shown_as_it_is(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / FILE).write_text(LOG)
    assert ran() == 0
    assert capsys.readouterr().out == LOG


def test_without_a_log_the_owner_is_told_what_makes_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran() == 1
    assert "`groove-node run`" in capsys.readouterr().err


@given(st.lists(st.text().map(lambda text: text.replace("\r", "") + "\n")))
def test_any_lines_at_all_can_be_read(lines: list[str]) -> None:
    assert all(isinstance(each, Entry) for each in entries(lines))
