"""README.md says what is so: its commands run, its promises about the machine hold."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import support_transcripts
import tiny_llama

from node import footprint
from node.cli import command
from node.home import groove_cache

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def shown_commands() -> list[list[str]]:
    """The `$ groove-node …` lines of the console blocks, split as a shell would."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line[2:]) for line in lines]


@pytest.mark.slow
@pytest.mark.network
def test_the_commands_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    """With a tiny chassis, for the time it takes; everything else is as it is printed."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    chassis = tiny_llama.build(tmp_path / "chassis")
    training = f'[training]\nchassis = "{chassis}"\nsteps = 2\ncontrol_pairs = 0\n'
    (home / "groove.toml").write_text(training)
    write_history(tmp_path)
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "GROOVE_HOME": str(home),
        "GROOVE_CACHE": str(groove_cache()),  # not that of the new HOME, where no model is
        "HF_HUB_OFFLINE": "1",
    }
    commands = shown_commands()
    assert ["groove-node", "init"] in commands and ["groove-node", "run"] in commands
    for name, *arguments in commands:
        assert name == "groove-node"
        if "grant" in arguments:
            arguments += ["--yes"]  # nobody is here to answer
        argv = [sys.executable, "-m", "node.cli", *arguments]
        if arguments == ["run"]:
            run_until_it_listens([*argv, "--listen", "/ip4/127.0.0.1/tcp/0"], environment)
            continue
        done = subprocess.run(
            argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
    assert list(footprint.strangers(home, footprint.HOME)) == []  # `uninstall` knows all of it


def write_history(home: Path) -> None:
    """A project, and what a coding assistant has kept of a session in it."""
    project = home / "work" / "shop"
    project.mkdir(parents=True)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    chat = support_transcripts.ClaudeChat(cwd=str(project))
    chat.ask("Why does the price of the kettle round down?", timestamp=now)
    chat.text("It is cut to an integer before the tax is added.", timestamp=now)
    path = home / ".claude" / "projects" / "shop" / "session.jsonl"
    support_transcripts.written(path, chat.rows)


def run_until_it_listens(argv: list[str], environment: dict[str, str]) -> None:
    node = subprocess.Popen(
        argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert node.stdout is not None
        assert any(b"listening" in line for line in node.stdout)
    finally:
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=60) == 0
        node.stdout.close()


def test_every_command_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`groove-node ([a-z]+)", README))
    named |= {words[1] for words in shown_commands()}
    known = {name for name in command if not name.startswith("-")}
    assert named <= known, named - known


def test_every_file_that_the_readme_names_exists() -> None:
    for path in re.findall(r"`((?:docs|gossip|leaves|node|router|simnet|tests)/[\w./*]+)`", README):
        assert list(ROOT.glob(path)), path


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"@[A-Z_]+@", README)
