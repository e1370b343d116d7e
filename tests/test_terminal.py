"""What a terminal prints where there is none: lines of long work, tables with long cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leaves.ports import Progress
from node.errors import OwnerError
from node.terminal import NOTE_S, Terminal
from node.told import Told


def test_off_a_terminal_each_step_of_a_lesson_is_a_line_and_long_work_one_a_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    out = Terminal(False, lambda: now[0])
    for done in range(40):
        out.progress(Progress("embed", done, 40))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        out.event(Told("training", "gears: first"))
        for done in range(3):
            out.progress(Progress("train leaf", done, 48, "900 tokens/s"))
    now[0] += NOTE_S
    out.progress(Progress("train leaf", 30, 48))
    out.progress(Progress("train leaf", 31, 48))
    began = "  train leaf, 0 of 48, 900 tokens/s\n"
    assert capsys.readouterr().err == f"{began}{began}  train leaf, 30 of 48\n"


def test_an_interruption_while_the_commands_load_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "cyclopts.py").write_text("raise KeyboardInterrupt\n")
    repository = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", "import node.cli"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


def test_with_json_no_progress_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(True).progress(Progress("train leaf", 0, 48))
    assert capsys.readouterr().err == ""


def test_a_table_of_long_cells_is_wrapped_where_there_is_no_edge(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Terminal(False).table(("WHAT", "WHY"), [("split", "word " * 60)], within=60)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= 60
    assert " ".join(lines).split().count("word") == 60


def test_what_strangers_say_in_an_error_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal.error(OwnerError("it said \x1b]0;title\x1b[2J\u202ehi", next_step="ask\x07 again"))
    told = capsys.readouterr().err
    assert "hi" in told and "again" in told
    assert not {"\x1b", "\u202e", "\x07"} & set(told)
