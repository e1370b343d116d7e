"""`peers join`: an invitation with a swarm's key need not stand in a command line."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from node import cli, meeting, swarm
from node.app import App

ROOT = Path(__file__).parent.parent
HANGS_S = 120.0


@pytest.fixture
def invited(tmp_path: Path) -> str:
    """An invitation to a private swarm, as a mail program has broken it into lines."""
    home = tmp_path / "ann"
    home.mkdir(mode=0o700)
    (home / "groove.toml").write_text('[mesh.transport]\nlisten = "/ip4/0.0.0.0/tcp/4999"\n')
    text = str(meeting.invite(App(home), private=True)["invite"])
    return f"{text[:60]}\n  {text[60:]}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ben"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("GROOVE_HOME", str(folder))
    App(folder).identity  # noqa: B018 - a home has keys
    return folder


@pytest.mark.parametrize("by", ["-", "file", "file -"])
def test_an_invitation_is_read_from_standard_input_or_a_file(
    invited: str, home: Path, tmp_path: Path, by: str
) -> None:
    path = tmp_path / "invitation"
    path.write_text(invited)
    given = {"-": ["-"], "file": ["--file", str(path)], "file -": ["--file", "-"]}[by]
    done = subprocess.run(
        [sys.executable, "-m", "node.cli", "peers", "join", *given],
        cwd=ROOT,
        input="" if by == "file" else invited,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    assert swarm.load(home) == swarm.load(tmp_path / "ann") != ""


def test_on_a_terminal_an_invitation_is_asked_for_and_not_shown(
    invited: str, home: Path, tmp_path: Path
) -> None:
    text = "".join(invited.split())
    terminal, side = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "peers", "join"],
        cwd=ROOT,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    said = b""
    while b"Invitation: " not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, text.encode() + b"\n")
    while True:
        try:
            said += os.read(terminal, 1024)
        except OSError:  # the child has ended
            break
    os.close(terminal)
    assert child.wait(HANGS_S) == 0, said
    assert swarm.load(home) == swarm.load(tmp_path / "ann") != ""
    assert text[:40].encode() not in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "peers join -"),
        (["groove1abc", "--file", "invitation"], "one too many"),
        (["-"], "no invitation"),
        (["--file", "/dev/zero"], "no invitation"),
    ],
)
def test_without_one_invitation_nothing_is_joined(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as end:
        cli.main(["peers", "join", *given])
    told = capsys.readouterr().err
    assert end.value.code == 2 and said in told and "Nothing was remembered." in told
    assert not swarm.load(home)


def test_help_and_an_invitation_to_a_private_swarm_recommend_it(
    tmp_path: Path,
    invited: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "ann"))
    with pytest.raises(SystemExit):
        cli.main(["peers", "invite", "--private"])
    assert "kept in the shell's history" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        cli.main(["peers", "join", "--help"])
    assert "standard input" in " ".join(capsys.readouterr().out.split())
