"""`groove-node keys` as it is typed: no passphrase on the command line, no secret in print."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gossip.sqlite_store import SqliteStore
from node import doctor, rekeying
from node.app import App

ROOT = Path(__file__).parent.parent
PASSPHRASE = "a dozen grey geese"
HANGS_S = 120.0
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    App(folder).identity  # noqa: B018 - a home has keys
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "GROOVE_HOME": str(home), "HF_HUB_OFFLINE": "1", **more}


@pytest.fixture
def groove(home: Path) -> Run:
    def run(*arguments: str, at: Path = home, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments],
            env=environment(at, **more),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )

    return run


def secrets_of(home: Path) -> list[str]:
    return [(home / "keys" / f"{name}.key").read_text().strip() for name in ("root", "op")]


def test_keys_are_copied_put_back_and_shown_and_no_secret_is_printed(
    groove: Run, home: Path, tmp_path: Path
) -> None:
    copy, new = str(tmp_path / "copy"), tmp_path / "new"
    private = tmp_path / "passphrase"
    private.touch(mode=0o600)
    private.write_text(PASSPHRASE + "\nand a second line\n")
    told = [
        groove("keys", "export", copy, "--passphrase-file", str(private)),
        groove("keys", "restore", copy, at=new, GROOVE_PASSPHRASE=PASSPHRASE),
        groove("keys", "show", at=new),
        groove("keys", "show", "--json", at=new),
        groove("keys", "rotate", "--revoke", "--json"),
        groove("keys", "show", "--json"),
    ]
    assert [done.returncode for done in told] == [0] * len(told), [done.stderr for done in told]
    assert "asks peers for its own last head" in told[1].stdout
    assert "signs nothing until a peer has told" in " ".join(told[2].stdout.split())
    shown = json.loads(told[3].stdout)
    assert (shown["restored"], shown["epoch"], shown["standing"]) == (True, 1, "sound")
    assert json.loads(told[4].stdout) == {"epoch": 2, "revoked": [1], "node_runs": False}
    text = "".join(done.stdout + done.stderr for done in told)
    for secret in (*secrets_of(home), *secrets_of(new), PASSPHRASE):
        assert secret not in text


def test_a_passphrase_that_nobody_gives_or_that_others_can_read_is_refused(
    groove: Run, tmp_path: Path
) -> None:
    nobody = groove("keys", "export", str(tmp_path / "copy"))
    assert nobody.returncode == 2 and "--passphrase-file" in nobody.stderr
    wide = tmp_path / "passphrase"
    wide.write_text(PASSPHRASE)
    wide.chmod(0o644)
    shared = groove("keys", "export", str(tmp_path / "copy"), "--passphrase-file", str(wide))
    assert shared.returncode == 2 and "chmod 600" in shared.stderr
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("again", [PASSPHRASE, "something else"])
def test_on_a_terminal_a_passphrase_is_asked_twice_and_not_shown(
    home: Path, tmp_path: Path, again: str
) -> None:
    copy = tmp_path / "copy"
    terminal, side = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "keys", "export", str(copy)],
        env=environment(home),
        cwd=ROOT,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,  # without a terminal that controls it but this one
    )
    os.close(side)
    said = b""
    for prompt, answer in ((b"Passphrase: ", PASSPHRASE), (b"Once more: ", again)):
        while prompt not in said:
            said += os.read(terminal, 1024)
        os.write(terminal, answer.encode() + b"\n")
    while True:
        try:
            said += os.read(terminal, 1024)
        except OSError:  # the child has ended
            break
    os.close(terminal)
    assert child.wait(HANGS_S) == (0 if again == PASSPHRASE else 2), said
    assert copy.exists() == (again == PASSPHRASE)
    assert PASSPHRASE.encode() not in said


def test_to_replace_keys_is_asked_and_says_what_is_lost(
    groove: Run, home: Path, tmp_path: Path
) -> None:
    copy = str(tmp_path / "copy")
    assert groove("keys", "export", copy, GROOVE_PASSPHRASE=PASSPHRASE).returncode == 0
    before = secrets_of(home)
    done = groove("keys", "restore", copy, "--replace", GROOVE_PASSPHRASE=PASSPHRASE)
    assert done.returncode == 2 and "never be retracted" in done.stderr and "--yes" in done.stderr
    assert secrets_of(home) == before


def test_the_root_key_is_taken_out_and_given_for_one_rotation(
    groove: Run, home: Path, tmp_path: Path
) -> None:
    copy, secret = str(tmp_path / "root"), {"GROOVE_PASSPHRASE": PASSPHRASE}
    assert groove("keys", "export", copy, "--take-out", **secret).returncode == 2
    assert groove("keys", "export", copy, "--root-only", "--take-out", **secret).returncode == 0
    assert not (home / "keys" / "root.key").exists()
    refused = groove("keys", "rotate")
    assert refused.returncode == 1 and "--root-file" in refused.stderr
    done = groove("keys", "rotate", "--root-file", copy, "--json", **secret)
    assert json.loads(done.stdout)["epoch"] == 2
    assert not (home / "keys" / "root.key").exists()


def test_a_file_or_folder_that_is_not_there_is_named_as_it_was_given(
    groove: Run, tmp_path: Path
) -> None:
    secret = {"GROOVE_PASSPHRASE": PASSPHRASE}
    missing = groove("keys", "restore", str(tmp_path / "none"), at=tmp_path / "new", **secret)
    assert missing.returncode == 2 and f"{tmp_path}/none cannot be read" in missing.stderr
    nowhere = groove("keys", "export", str(tmp_path / "nowhere" / "copy"), **secret)
    assert nowhere.returncode == 2 and f"{tmp_path}/nowhere: no such folder" in nowhere.stderr


def test_init_speaks_of_the_copy_until_there_is_one(
    groove: Run, home: Path, tmp_path: Path
) -> None:
    told = groove("init").stdout
    assert "never be replaced" in told and "keys export" in told
    rekeying.export(App(home), tmp_path / "copy", PASSPHRASE)
    assert "keys export" not in groove("init").stdout


def test_doctor_says_whether_there_is_a_copy_and_of_which_epoch(home: Path, tmp_path: Path) -> None:
    app = App(home)
    none = doctor.keys(app)
    assert (none.verdict, none.advice) == ("note", "groove-node keys export FILE")
    rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    kept = doctor.keys(app)
    assert kept.verdict == "ok" and "copied on" in kept.text
    rekeying.rotate(app)
    older = doctor.keys(app)
    assert older.verdict == "note" and "epoch 1" in older.text
    assert not set(secrets_of(home)) & set(f"{none.text} {kept.text} {older.text}".split())


@pytest.fixture
def node(home: Path) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "run", "--listen", "/ip4/127.0.0.1/tcp/0", "--json"],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield started
    started.kill()
    started.communicate()


@pytest.mark.network
def test_a_running_node_takes_the_new_key_at_once(
    groove: Run, home: Path, node: subprocess.Popen[str]
) -> None:
    assert node.stdout is not None
    assert json.loads(node.stdout.readline())["event"] == "listening"
    assert json.loads(groove("keys", "rotate", "--json").stdout)["node_runs"] is True
    app = App(home)
    deadline = time.monotonic() + HANGS_S
    while app.mailbox.waiting():
        assert time.monotonic() < deadline and node.poll() is None
        time.sleep(0.05)
    assert app.mailbox.answer_to(1) == {"epoch": 2}
    node.send_signal(signal.SIGTERM)
    assert node.wait(HANGS_S) == 0
    told = {record.key[-1] for record in SqliteStore(home / "mesh.db").of(app.origin)}
    assert told == {2}  # the document was stored before it was told
