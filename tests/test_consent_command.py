"""`groove-node consent`: the owner is told, shown and asked; a no leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support_consent import Home
from support_transcripts import ClaudeChat, claude_path, written

from node import disclosure
from node.cli import main
from node.identity import load_or_create

ROOT = Path(__file__).parent.parent
Run = Callable[..., Any]
SECRET = "ada.planted" + "@" + "kettle.example"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's home with a history of Claude Code, and a node's home as `init` makes it."""
    user, home = tmp_path / "ada", tmp_path / "groove"
    chat = ClaudeChat(cwd=str(user / "kettle"))
    chat.ask(f"Why does the kettle whistle? Write to {SECRET} about it. " + "And so on. " * 90)
    written(claude_path(user / ".claude"), chat.rows)
    (user / "kettle").mkdir()
    home.mkdir(mode=0o700)
    load_or_create(home, 1_777_204_800.0)
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLAUDE", "CODEX", "XDG"))}
    return {
        **kept,
        "HOME": str(place / "ada"),
        "GROOVE_HOME": str(place / "groove"),
        "GROOVE_STATE": str(place / "state"),
        "TERM": "dumb",
        "COLUMNS": "4000",
    }


@dataclass
class Done:
    """What a command that ran in this process printed, and how it ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def groove(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    mask = os.umask(0o077)
    for name in [name for name in os.environ if name.startswith(("CLAUDE", "CODEX", "XDG"))]:
        monkeypatch.delenv(name)
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        try:
            main(arguments)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    yield run
    os.umask(mask)


def at_a_terminal(place: Path, answer: str, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal, answer its question, and return what was on the screen."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "node.cli", *arguments],
        env=environment(place),
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, answer.encode() + b"\n")
    seen = b""
    while True:
        try:
            got = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not got:
            break
        seen += got
    os.close(ours)
    return child.wait(timeout=60), " ".join(seen.decode().split())


def tree(place: Path) -> dict[str, bytes]:
    """Every file under the place and what it holds; folders too."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else b""
        for path in place.rglob("*")
    }


def test_a_no_leaves_every_byte_as_it_was_and_the_preview_shows_what_would_be_kept(
    place: Path,
) -> None:
    before = tree(place)
    code, seen = at_a_terminal(place, "n", "consent", "grant", "capture")
    assert code == 0
    assert "Nothing was changed." in seen
    assert tree(place) == before
    assert "Names of people and street addresses are not found at all" in seen
    assert "from claude-code" in seen
    assert f"Write to {SECRET} about it" in seen.partition("before")[2]
    assert "Write to [EMAIL] about it" in seen.partition("after ")[2]
    assert "EMAIL (" in seen.partition("why")[2]
    assert seen.count("And so on.") < 90, "a long text is cut"


def test_a_yes_is_recorded_with_the_text_that_was_shown(place: Path, groove: Run) -> None:
    code, seen = at_a_terminal(
        *(place, "y", "consent", "grant", "capture", "--source", "claude-code"),
        *("--folder", str(place / "ada" / "kettle")),
    )
    assert code == 0 and "allowed: capture, claude-code" in seen
    shown = json.loads(groove("consent", "show", "--json").stdout)
    assert shown["standing"] == "in force"
    assert shown["sources"] == ["claude-code"]
    assert shown["folders"] == [str(place / "ada" / "kettle")]
    assert shown["since"].keys() == {"capture", "claude-code", *shown["folders"]}
    verified = groove("consent", "receipts", "--verify", "--json")
    assert verified.returncode == 0
    told = json.loads(verified.stdout)
    assert told["problems"] == []
    assert [each["disclosure"] for each in told["receipts"]] == [disclosure.SHA256]
    assert all(each["signed"] and not each["signed_late"] for each in told["receipts"])
    kept = b"".join(tree(place / "groove").values()) + b"".join(tree(place / "state").values())
    assert SECRET.encode() not in kept


def test_without_a_history_an_example_is_shown(place: Path) -> None:
    claude_path(place / "ada" / ".claude").unlink()
    code, seen = at_a_terminal(place, "n", "consent", "grant", "capture")
    assert code == 0
    assert "No history of an assistant was found" in seen
    assert "[EMAIL]" in seen and "Ann Miller of 12 Hill Road" in seen.partition("after ")[2]


def test_the_disclosure_states_what_the_specification_asks_for() -> None:
    text = " ".join(disclosure.TEXT.split())
    for demanded in (
        *("prompts", "answers", "tool, model, times and outcome"),  # what is collected
        *("adapters (expert models) are trained", "improve"),  # how it is used
        *("E-mail addresses, phone numbers, API keys", "file paths", "placeholders"),
        *("withdraw at any time", "consent revoke", "data --delete"),
        *("does not find everything", "Names of people and street addresses are not found"),
    ):
        assert demanded in text, demanded


def test_off_a_terminal_nothing_is_assumed_and_the_command_to_type_is_told(
    place: Path, groove: Run
) -> None:
    before = tree(place)
    done = groove("consent", "grant", "capture", "--source", "codex")
    assert done.returncode == 2
    assert "`groove-node consent grant capture --source codex --yes`" in done.stderr
    assert disclosure.TEXT.splitlines()[2] in done.stdout
    assert SECRET not in done.stdout + done.stderr, "a preview may not land in a file"
    assert tree(place) == before


def test_with_yes_the_disclosure_is_printed_all_the_same(place: Path, groove: Run) -> None:
    done = groove("consent", "grant", "capture", "--yes")
    assert done.returncode == 0
    assert disclosure.TEXT in done.stdout
    as_json = groove("consent", "grant", "train", "--yes", "--json")
    assert json.loads(as_json.stdout)["scopes"] == ["capture", "train"]
    assert disclosure.TEXT.splitlines()[2] in as_json.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("grant", "--yes"), "nothing was named"),
        (("grant", "--source", "claude-code", "--yes"), "capture is not granted"),
        (("grant", "capture", "--source", "chrome", "--yes"), "chrome"),
        (("grant", "capture", "--folder", "/nowhere/at/all", "--yes"), "no such folder"),
        (("grant", "capture", "--folder", "/", "--yes"), "root of all folders"),
        (("grant", "capture", "--folder", "~", "--yes"), "whole home"),
    ],
)
def test_what_cannot_be_granted_is_one_clear_error(
    groove: Run, arguments: tuple[str, ...], said: str
) -> None:
    done = groove("consent", *arguments)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert json.loads(groove("consent", "show", "--json").stdout)["scopes"] == []


def test_sources_and_folders_are_withdrawn_by_name(place: Path, groove: Run) -> None:
    kettle = str(place / "ada" / "kettle")
    groove("consent", "grant", "capture", "--source", "codex", "--folder", kettle, "--yes")
    left = json.loads(groove("consent", "revoke", "--folder", kettle, "--json").stdout)
    assert left == {"scopes": ["capture"], "sources": ["codex"], "folders": []}
    left = json.loads(groove("consent", "revoke", "--json").stdout)
    assert left == {"scopes": [], "sources": [], "folders": []}
    records = json.loads(groove("consent", "log", "--json").stdout)["records"]
    assert [(r["scopes"], r["folders"]) for r in records] == [
        ("capture", kettle),
        ("capture", ""),
        ("nothing", ""),
    ]


def test_a_restored_home_says_so_and_how_to_say_yes_again(place: Path, groove: Run) -> None:
    kettle = str(place / "ada" / "kettle")
    groove("consent", "grant", "capture", "--source", "codex", "--folder", kettle, "--yes")
    home = Home(place / "groove")
    old = home.back_up()
    groove("consent", "revoke")
    home.restore(old)
    again = f"groove-node consent grant capture --source codex --folder {kettle}"
    for command in (("consent", "show"), ("status",)):
        told = groove(*command).stdout
        assert "NOTHING until you say yes again" in told and again in told, command
    assert json.loads(groove("consent", "show", "--json").stdout)["standing"] == "restored"
    verified = groove("consent", "receipts", "--verify")
    assert verified.returncode == 1 and "written last" in verified.stdout
    refused = groove("round")
    assert refused.returncode == 1 and "written last" in refused.stderr
    groove(*again.split()[1:], "--yes")
    assert json.loads(groove("consent", "show", "--json").stdout)["standing"] == "in force"
    assert groove("consent", "receipts", "--verify").returncode == 0


def test_terms_that_changed_are_told_and_nothing_is_allowed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node import consent, consenting
    from node.app import App

    monkeypatch.setenv("GROOVE_STATE", str(place / "state"))
    app = App(place / "groove")
    consenting.grant(app, ["capture", "train"])
    monkeypatch.setattr(consent, "CURRENT_CONSENT_VERSION", "2.0")
    stands = consenting.standing(app)
    assert (stands["standing"], stands["scopes"]) == ("terms changed", [])
    line = disclosure.standing_line(stands)
    assert "NOTHING until you answer again" in line
    assert "terms 1.0" in line and "2.0" in line and "consent grant capture train" in line


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    assert disclosure.printable("a\x1b[2Jb\n\tc\x07\u202ed") == "a�[2Jb c��d"
