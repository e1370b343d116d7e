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
from support_consent import HandClock, Home, read_only_state
from support_transcripts import ClaudeChat, claude_path, written

from node.cli import main
from node.consent import disclosure
from node.identity import load_or_create

ROOT = Path(__file__).parent.parent
Run = Callable[..., Any]
ANSWERED = "bob.planted" + "@" + "kettle.example"
SECRET = "ada.planted" + "@" + "kettle.example"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's home with a history of Claude Code, and a node's home as `init` makes it."""
    user, home = tmp_path / "ada", tmp_path / "groove"
    chat = ClaudeChat(cwd=str(user / "kettle"))
    chat.ask(f"Why does the kettle whistle? Write to {SECRET} about it. " + "And so on. " * 90)
    chat.text(f"I wrote to {ANSWERED}.")
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


def granting(place: Path, source: str, project: str = "kettle") -> tuple[str, ...]:
    """The command that allows one source in one project."""
    folder = str(place / "ada" / project)
    return "consent", "grant", "capture", "--source", source, "--folder", folder


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
    code, seen = at_a_terminal(place, "n", *granting(place, "claude-code"))
    assert code == 0
    assert "Nothing was changed." in seen
    assert tree(place) == before
    assert "Names of people and street addresses are not found at all" in seen
    assert "from claude-code" in seen
    assert f"Write to {SECRET} about it" in seen.partition("before")[2]
    assert "Write to [EMAIL] about it" in seen.partition("after ")[2]
    assert "EMAIL (" in seen.partition("why")[2]
    assert seen.count("And so on.") < 90, "a long text is cut"
    answer = seen.partition("its answer")[2]
    assert f"I wrote to {ANSWERED}." in answer.partition("before")[2].partition("after")[0]
    assert "I wrote to [EMAIL]." in answer.partition("after ")[2]


def test_a_yes_is_recorded_with_the_text_that_was_shown(place: Path, groove: Run) -> None:
    code, seen = at_a_terminal(place, "y", *granting(place, "claude-code"))
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
    shown_text = disclosure.text(["capture"], ["claude-code"], shown["folders"])
    assert [each["disclosure"] for each in told["receipts"]] == [disclosure.sha256(shown_text)]
    assert " ".join(shown_text.split()) in seen
    assert all(each["signed"] and not each["signed_late"] for each in told["receipts"])
    kept = b"".join(tree(place / "groove").values()) + b"".join(tree(place / "state").values())
    assert SECRET.encode() not in kept


def test_without_a_history_an_example_is_shown(place: Path) -> None:
    claude_path(place / "ada" / ".claude").unlink()
    code, seen = at_a_terminal(place, "n", *granting(place, "claude-code"))
    assert code == 0
    assert "No ask of these sources and folders" in seen
    assert "[EMAIL]" in seen and "Ann Miller of 12 Hill Road" in seen.partition("after ")[2]


def test_the_disclosure_states_what_the_specification_asks_for() -> None:
    text = " ".join(disclosure.text(["capture", "train"]).split())
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
    assert disclosure.text(["capture"]).splitlines()[2] in done.stdout
    assert SECRET not in done.stdout + done.stderr, "a preview may not land in a file"
    assert tree(place) == before


def test_with_yes_the_disclosure_is_printed_all_the_same(place: Path, groove: Run) -> None:
    done = groove("consent", "grant", "capture", "--yes")
    assert done.returncode == 0
    assert disclosure.text(["capture"]) in done.stdout
    as_json = groove("consent", "grant", "train", "--yes", "--json")
    assert json.loads(as_json.stdout)["scopes"] == ["capture", "train"]
    assert disclosure.text(["train"]) in as_json.stderr


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


def test_a_withdrawal_that_could_not_be_noted_outside_the_home_is_told_with_what_to_do(
    place: Path, groove: Run
) -> None:
    groove("consent", "grant", "capture", "--yes")
    with read_only_state():
        done = groove("consent", "revoke")
    assert done.returncode == 0 and "still allowed: nothing" in done.stdout
    assert f"Make {place / 'state'} writable, and revoke again" in done.stderr
    assert "revoke again" not in groove("consent", "revoke").stderr


def test_a_withdrawal_after_the_store_was_removed_is_recorded(place: Path, groove: Run) -> None:
    groove("consent", "grant", "capture", "--yes")
    for path in (place / "groove").glob("consent.db*"):
        path.unlink()
    assert groove("consent", "revoke").returncode == 0
    assert json.loads(groove("consent", "show", "--json").stdout)["standing"] == "revoked"


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
    from node import consenting
    from node.app import App
    from node.consent import manager as consent

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


def test_the_page_is_about_what_was_asked_for() -> None:
    text = disclosure.text(["publish"])
    assert "Signed leaf states" in text and "What is kept" not in text
    for lists in ((["codex"], []), ([], ["/kettle"])):
        widened = disclosure.text(["fetch"], *lists)
        assert "What is kept" in widened, "sources and folders are capture's"
        assert "Peers' adapters are fetched" in widened
    assert disclosure.sha256(text) != disclosure.sha256(disclosure.text(["fetch"]))


def test_the_page_says_that_providers_terms_keep_their_sessions_out_of_training() -> None:
    for scopes, sources in ((["train"], []), (["capture"], ["claude-code"]), ([], ["codex"])):
        text = " ".join(disclosure.text(scopes, sources).split())
        assert "forbid training" in text and "restricted_outputs = true" in text
        assert "finding domains and for routing only" in text
    assert "forbid" not in disclosure.text(["capture"]), "an own program's records may be trained"


def test_a_bare_grant_of_capture_shows_no_assistants_asks_and_says_why(place: Path) -> None:
    code, seen = at_a_terminal(place, "n", "consent", "grant", "capture")
    assert code == 0
    assert SECRET not in seen
    assert "captures nothing of the histories of coding assistants" in seen
    assert "`groove-node consent grant capture --source claude-code --folder DIR`" in seen
    assert "from an example" in seen and "[EMAIL]" in seen


def test_a_source_without_a_folder_is_shown_nothing_of_and_told_what_it_lacks(place: Path) -> None:
    _, seen = at_a_terminal(place, "n", "consent", "grant", "capture", "--source", "claude-code")
    assert SECRET not in seen and "captures nothing of that history yet" in seen
    (place / "ada" / "other").mkdir()
    _, seen = at_a_terminal(place, "n", *granting(place, "claude-code", "other"))
    assert SECRET not in seen, "no ask of another project is shown"
    _, seen = at_a_terminal(place, "n", *granting(place, "codex"))
    assert SECRET not in seen, "no ask of another source is shown"


def test_a_grant_that_widens_capture_shows_what_it_adds(place: Path, groove: Run) -> None:
    kettle = str(place / "ada" / "kettle")
    groove("consent", "grant", "capture", "--yes")
    _, seen = at_a_terminal(
        place, "y", "consent", "grant", "--source", "claude-code", "--folder", kettle
    )
    assert "Your latest asks that this would capture" in seen and SECRET in seen
    _, seen = at_a_terminal(place, "n", *granting(place, "claude-code"))
    assert SECRET not in seen, "nothing new is captured"
    _, seen = at_a_terminal(place, "n", "consent", "grant", "train")
    assert SECRET not in seen and "Your latest asks" not in seen


def test_a_withdrawal_of_what_was_not_allowed_says_so_and_fails(place: Path, groove: Run) -> None:
    groove("consent", "grant", "capture", "--yes")
    done = groove("consent", "revoke", "--folder", "/nope")
    assert done.returncode == 1
    assert "/nope: nothing of it was allowed" in done.stderr
    assert "still allowed: capture" in done.stdout
    done = groove("consent", "revoke", "capture", "train")
    assert done.returncode == 0, "some of it was withdrawn"
    assert "train: nothing of it was allowed" in done.stderr
    assert "still allowed: nothing" in done.stdout


def test_receipts_that_are_missing_after_a_restore_are_named(place: Path, groove: Run) -> None:
    groove("consent", "grant", "capture", "--yes")
    home = Home(place / "groove")
    old = home.back_up()
    groove("consent", "grant", "train", "--yes")
    groove("consent", "revoke")
    home.restore(old)
    groove("consent", "grant", "capture", "--yes")
    verified = groove("consent", "receipts", "--verify")
    assert verified.returncode == 0
    assert "gone: receipts 2-3 are missing: the store was replaced" in verified.stdout
    assert "none is missing" not in verified.stdout
    told = json.loads(groove("consent", "receipts", "--verify", "--json").stdout)
    assert (told["problems"], len(told["missing"])) == ([], 1)
    records = json.loads(groove("consent", "log", "--json").stdout)["records"]
    assert [each["by"][:29] for each in records] == ["you", "the node: receipts 2-3 are mi", "you"]


def test_since_begins_anew_where_a_restored_home_was_off(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node import consenting
    from node.app import App

    monkeypatch.setenv("GROOVE_STATE", str(place / "state"))

    def granted(at_s: float) -> dict[str, str]:
        app = App(place / "groove")
        monkeypatch.setattr(app, "clock", HandClock())
        monkeypatch.setattr(app.clock, "time_s", at_s)
        consenting.grant(app, ["capture"])
        since: dict[str, str] = consenting.standing(app)["since"]
        app.consent.close()
        return since

    first = granted(1_777_204_800.0)
    assert granted(1_777_208_400.0) == first, "unbroken"
    home = Home(place / "groove")
    old = home.back_up()
    granted(1_777_212_000.0)
    home.restore(old)
    assert granted(1_777_215_600.0) == {"capture": "2026-04-26 15:00"}


def test_doctor_does_not_ask_for_what_was_withdrawn(groove: Run) -> None:
    groove("consent", "grant", "capture", "train", "--yes")
    groove("consent", "revoke")
    found = json.loads(groove("doctor", "--json").stdout)["findings"]
    (consent,) = [each for each in found if each["check"] == "consent"]
    assert (consent["verdict"], consent["advice"]) == ("ok", "")
    assert "you withdrew it" in consent["text"]
