"""kill -9 in the middle of real work: what was reached is kept, and nothing is done twice."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import support_demo

from gossip.sqlite_store import SqliteStore
from leaves.bundle import decode_label, unpack

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "GROOVE_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def groove(home: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "node.cli", *arguments, "--json"]
    done = subprocess.run(
        command, env=environment(home), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with sessions enough for a first training of some seconds."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    support_demo.write_config(
        folder / "groove.toml", tmp_path / "chassis", steps=120, learning_rate=0.001
    )
    sessions = support_demo.write_sessions(tmp_path / "sessions.jsonl", per_topic=120)
    groove(folder, "init")
    groove(folder, "consent", "grant", "capture", "train", "publish", "--yes")
    groove(folder, "import", "jsonl", str(sessions))
    return folder


def adapters(home: Path) -> dict[str, str]:
    """Leaf -> hash of the adapter in force."""
    found = {}
    for leaf in groove(home, "tree")["leaves"]:
        if leaf["bundle"]:
            blob = (home / "bundles" / f"{leaf['bundle']}.bundle").read_bytes()
            found[leaf["leaf_id"]] = decode_label(unpack(blob).label).adapter
    return found


def test_a_round_killed_in_training_resumes_to_the_same_adapters(
    home: Path, tmp_path: Path
) -> None:
    unbroken = tmp_path / "unbroken"
    shutil.copytree(home, unbroken)  # which turns consent off there: it was moved
    groove(unbroken, "consent", "grant", "capture", "train", "publish", "--yes")
    groove(unbroken, "round")
    killed = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "round"],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((home / "training").rglob("checkpoint*")):
        assert killed.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = len((home / "events.jsonl").read_text().splitlines())
    assert groove(home, "status")["round"]["open"] == "train"
    events = [event["event"] for event in groove(home, "round")["events"]]
    assert events[0] == "resumed" and "embedded" not in events
    assert len((home / "events.jsonl").read_text().splitlines()) > before
    assert adapters(home) == adapters(unbroken) != {}
    assert groove(home, "status")["round"]["open"] is None


def test_an_import_killed_in_the_middle_loses_nothing_and_captures_nothing_twice(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    sessions = support_demo.write_sessions(tmp_path / "sessions.jsonl", per_topic=320)
    groove(home, "init")
    groove(home, "consent", "grant", "capture", "--yes")
    for _ in range(3):
        killed = subprocess.Popen(
            [sys.executable, "-m", "node.cli", "import", "jsonl", str(sessions)],
            env=environment(home),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        corpus = home / "training_data"
        deadline = time.monotonic() + 60
        size = sum(path.stat().st_size for path in corpus.glob("*.jsonl")) if corpus.exists() else 0
        while killed.poll() is None and time.monotonic() < deadline:
            now = sum(path.stat().st_size for path in corpus.glob("*.jsonl"))
            if now > size:
                break
        killed.kill()
        killed.wait()
    groove(home, "import", "jsonl", str(sessions))
    assert groove(home, "import", "jsonl", str(sessions))["added"] == 0
    records = [
        json.loads(line)
        for path in sorted((home / "training_data").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(records) == len({record["record_id"] for record in records}) == 3 * 960


@pytest.mark.network
def test_a_killed_node_never_signs_an_older_head(home: Path) -> None:
    """Two nodes, so that the first may publish; the second only has to be there."""
    groove(home, "round")
    assert groove(home, "leaf", "publish", "--all")["published"], "new topics wait for a word"
    other = home.parent / "other"
    other.mkdir(mode=0o700)
    groove(other, "init")
    listening = start(other)
    sequence = []
    try:
        address = groove(other, "peers", "list")["addresses"][0]
        groove(home, "peers", "add", address)
        for _ in range(3):
            node = start(home)
            sequence.append(wait_for_head(home, beyond=sequence[-1] if sequence else 0))
            node.kill()
            node.wait()
            leaf = groove(home, "tree")["leaves"][0]
            groove(home, "leaf", "rename", leaf["leaf_id"], f"renamed-{len(sequence)}")
    finally:
        listening.kill()
        listening.wait()
    assert sequence == sorted(set(sequence))


@pytest.mark.network
def test_a_node_that_cannot_store_what_it_hears_says_so_and_ends(home: Path) -> None:
    groove(home, "round")
    assert groove(home, "leaf", "publish", "--all")["published"]
    other = home.parent / "other"
    other.mkdir(mode=0o700)
    groove(other, "init")
    hearing = start(other, stderr=subprocess.PIPE)
    address = groove(other, "peers", "list")["addresses"][0]
    # No file may grow any more: the kernel refuses each write as it would on a full disk.
    resource.prlimit(hearing.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    groove(home, "peers", "add", address)
    speaking = start(home)
    try:
        _, told = hearing.communicate(timeout=120)
    finally:
        for node in (speaking, hearing):
            node.kill()
            node.wait()
    assert hearing.returncode == 1
    assert b"mesh.db cannot be written" in told and b"Make room on the disk" in told


def start(home: Path, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    (home / "run.json").unlink(missing_ok=True)
    node = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "run", "--listen", "/ip4/127.0.0.1/tcp/0"],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    deadline = time.monotonic() + 60
    while not (home / "run.json").exists():
        assert node.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return node


def wait_for_head(home: Path, beyond: int) -> int:
    """The sequence number of the newest own head on disk, once it is a new one."""
    from random import Random

    from gossip.config import GossipConfig
    from gossip.core import Replica
    from node.identity import load_or_create

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        store = SqliteStore(home / "mesh.db")
        replica = Replica(load_or_create(home, 0.0).keys, GossipConfig(), Random(0), store.load())
        store.close()
        head = replica.own_head()
        if head is not None and head.seq > beyond:
            return head.seq
        time.sleep(0.2)
    raise AssertionError(f"no head after {beyond} within 60 s")
