"""A fault of our own leaves a report: where it happened, and not a word of what was worked on."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import crash, overview
from node.app import App
from node.cli import main
from node.clock import Clock
from node.logfile import FILE

ROOT = Path(__file__).parent.parent
SECRET = "my-dog-is-called-Zanzibar"
PROMPT = f"write a poem: {SECRET}"


class At:
    """A clock that goes on by a second at each look."""

    def __init__(self) -> None:
        self._now_s = 1_800_000_000.0

    def now_s(self) -> float:
        self._now_s += 1
        return self._now_s


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("GROOVE_HOME", str(folder))
    App(folder).identity  # noqa: B018 - a home has keys
    return folder


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(app: App) -> dict[str, object]:
        prompt = PROMPT
        return {"parsed": int(prompt)}

    monkeypatch.setattr(overview, "status", fail)


def raised(problem: Exception) -> Exception:
    try:
        raise problem
    except Exception as caught:
        return caught


def ran(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.mark.usefixtures("failing")
def test_a_command_that_fails_by_itself_says_where_and_keeps_a_report(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("status") == 1
    said = capsys.readouterr().err
    (path,) = crash.reports(home)
    text = path.read_text()
    assert str(path) in said and "Traceback" not in said and "nothing was sent" in said
    assert "ValueError in test_crash.py:" in said
    assert "builtins.ValueError" in text and "test_crash.py:" in text and "in failing" in text
    assert "node/cli/process.py:" in text and "command   status" in text
    assert SECRET not in text + said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.usefixtures("failing")
def test_what_was_typed_after_the_commands_name_is_not_in_the_report(home: Path) -> None:
    assert ran("status", "--json") == 1
    (path,) = crash.reports(home)
    assert "--json" not in path.read_text()


@pytest.mark.usefixtures("failing")
def test_whoever_mends_it_may_have_pythons_own_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(crash.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="invalid literal"):
        main(["status"])
    assert crash.reports(home) == []


@given(st.text(min_size=6))
def test_no_text_in_an_error_or_around_it_gets_into_a_report(text: str) -> None:
    secret = f"{SECRET}{text}"
    cause = raised(KeyError(secret))
    group = ExceptionGroup(secret, [raised(ValueError(secret)), raised(RuntimeError(secret))])
    group.__cause__ = cause
    assert SECRET not in crash.text_of(raised(group), Path("/nowhere"), "ask")
    assert SECRET not in crash.in_short(group)


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (OSError(28, "No space", f"/home/ann/{SECRET}"), "No space left on device"),
        (ModuleNotFoundError(f"in {SECRET}", name="torch"), "cannot import torch"),
        (AttributeError("'NoneType' object has no attribute 'x'"), "no attribute 'x'"),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad"), "left out"),
    ],
)
def test_what_is_said_of_an_error_is_made_of_names_in_code(problem: Exception, told: str) -> None:
    text = crash.text_of(raised(problem), Path("/nowhere"), "")
    assert told in text and SECRET not in text


def test_an_error_in_a_library_is_placed_without_the_owners_folders(home: Path) -> None:
    try:
        asyncio.run(None)  # type: ignore[arg-type]
    except ValueError as problem:
        text = crash.text_of(problem, home, "")
    assert "  asyncio/runners.py:" in text
    assert str(Path.home()) not in text and sys.prefix not in text


def test_settings_are_shown_where_they_are_numbers_and_named_where_they_are_texts(
    home: Path,
) -> None:
    (home / "groove.toml").write_text(f'[training]\nthreads = 3\nchassis = "{SECRET}"\n')
    text = crash.text_of(raised(ValueError()), home, "")
    assert "training.threads = 3" in text and "training.chassis = (set)" in text
    assert SECRET not in text


def test_the_log_gives_its_own_phrases_and_no_message_of_others(home: Path) -> None:
    (home / FILE).write_text(
        "2026-11-22 01:02:03,004 INFO node.daemon stopping\n"
        f"2026-11-22 01:02:04,004 ERROR node.fencing task failed task=x problem=E: {SECRET} said\n"
        "Traceback (most recent call last):\n"
        f"ValueError: {SECRET}\n"
        "2026-11-22 01:02:05,004 WARNING node.mesh refused peer=12D3 reason=BAD_SIGNATURE\n"
    )
    text = crash.text_of(raised(ValueError()), home, "")
    assert "node.daemon stopping" in text and "reason=BAD_SIGNATURE" in text
    assert "task failed task=x problem=(left out)" in text
    assert SECRET not in text and "Traceback" not in text


def test_a_chain_that_bites_its_tail_ends(home: Path) -> None:
    first, second = raised(ValueError()), raised(TypeError())
    first.__cause__, second.__cause__ = second, first
    assert crash.text_of(first, home, "").count("because of") == 1


def test_only_the_last_reports_are_kept(home: Path) -> None:
    clock: Clock = At()
    made = [
        crash.report(raised(ValueError()), home, "x", clock) for _ in range(crash.REPORTS_MAX + 3)
    ]
    assert crash.reports(home) == made[3:]


@pytest.fixture
def watched(home: Path) -> Iterator[Path]:
    before = threading.excepthook
    yield home
    threading.excepthook = before


def test_what_ends_a_thread_of_the_node_is_reported_too(watched: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THREAD, str(watched), PROMPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (path,) = crash.reports(watched)
    assert "builtins.ValueError" in path.read_text()
    assert SECRET not in path.read_text() + done.stderr


def test_a_process_that_dies_by_a_signal_leaves_the_places_it_was_at(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SIGNAL, str(home), PROMPT], cwd=ROOT, capture_output=True
    )
    assert done.returncode == -signal.SIGSEGV
    path = home / crash.FOLDER / crash.HARD_FILE
    text = path.read_text()
    assert "Segmentation fault" in text and "in dying" in text and SECRET not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


_THREAD = """
import sys, threading
from pathlib import Path
from node import crash
crash.watch(Path(sys.argv[1]))
thread = threading.Thread(target=int, args=(sys.argv[2],))
thread.start(); thread.join()
"""
_SIGNAL = f"""
import os, resource, sys
from pathlib import Path
from node import crash
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
crash.watch(Path(sys.argv[1]))
def dying(prompt):
    os.kill(os.getpid(), {int(signal.SIGSEGV)})
dying(sys.argv[2])
"""


def test_without_a_home_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(App, "open", lambda: 1 / 0)
    assert ran("status") == 1
    assert "no home to keep a report in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_node_starts_though_no_report_could_be_written(tmp_path: Path) -> None:
    (tmp_path / "crashes").write_text("a file in the folder's place")
    hook = threading.excepthook
    try:
        crash.watch(tmp_path)
    finally:
        threading.excepthook = hook
