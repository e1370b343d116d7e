"""Two people's nodes meet through the commands, and go on meeting whatever befalls them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gossip.addresses import Source
from leaves.model import Instant
from node import meeting, overview, peerbook, show_peers, swarm
from node.app import App
from node.errors import MisuseError, OwnerError

ROOT = Path(__file__).parent.parent
LISTEN = "/ip4/127.0.0.1/tcp/0"


class Home:
    """One person's home, and the node that runs there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        folder.mkdir(mode=0o700)
        (folder / "keys").mkdir(mode=0o700)
        self.node: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str] = queue.Queue()

    def groove(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments],
            env={**os.environ, "GROOVE_HOME": str(self.path)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def told(self, *arguments: str) -> dict[str, Any]:
        done = self.groove(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def start(self, listen: str = LISTEN) -> dict[str, Any]:
        """Run the node, and return what it says once it listens."""
        command = [sys.executable, "-m", "node.cli", "run", "--json", "--listen", listen]
        self.lines = queue.Queue()
        self.node = subprocess.Popen(
            command,
            env={**os.environ, "GROOVE_HOME": str(self.path)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.node, self.lines), daemon=True).start()
        return self.event("listening")

    def event(self, name: str) -> dict[str, Any]:
        """Wait until the node tells of an event."""
        deadline = time.monotonic() + 120
        while True:
            line = self.lines.get(timeout=deadline - time.monotonic())
            told: dict[str, Any] = json.loads(line)
            if told["event"] == name:
                return told["data"]

    def until(self, holds: Any) -> dict[str, Any]:
        """Wait until `peers list` shows something."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = self.told("peers", "list")
            if holds(found):
                return found
            time.sleep(0.5)
        raise AssertionError(f"not seen: {found}")

    def end(self, with_signal: int = signal.SIGTERM) -> None:
        if self.node is not None:
            self.node.send_signal(with_signal)
            self.node.wait(60)
            assert self.node.stdout is not None
            self.node.stdout.close()
            self.node = None

    @staticmethod
    def _read(node: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert node.stdout is not None
        for line in node.stdout:
            lines.put(line)


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    pair = Home(tmp_path / "ann"), Home(tmp_path / "ben")
    yield pair
    for home in pair:
        home.end(signal.SIGKILL)


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.network
def test_two_people_meet_by_one_string_and_meet_again_after_a_kill(
    homes: tuple[Home, Home],
) -> None:
    ann, ben = homes
    at = ann.start()["addresses"][0]
    done = ann.groove("peers", "invite")
    assert "on this machine alone" in done.stderr
    text = done.stdout.strip()
    assert text.startswith("groove1") and "\n" not in text
    ben.start()
    joined = ben.told("peers", "join", text)
    assert joined["addresses"] == [at] and joined["running"] and not joined["restart"]
    assert not joined["private_swarm"] and len(joined["origin"]) == 64
    ann.event("connected")
    found = ben.until(lambda told: told["peers"] and told["book"][0]["last_reached"])
    (entry,) = found["book"]
    assert entry["address"] == at and entry["named_by"] == "you" and entry["score"] == 4.0
    found = ann.until(lambda told: told["peers"] and told["book"])
    assert found["book"][0]["named_by"] == "itself"  # it has told where it listens
    ben.end(signal.SIGKILL)
    ann.event("disconnected")
    ben.start()
    assert ann.event("connected")["peer"] == found["peers"][0]["peer"]
    ben.told("peers", "remove", joined["peer"][-10:])
    ben.until(lambda told: all(each["named_by"] != "you" for each in told["book"]))


@pytest.mark.slow
@pytest.mark.network
def test_a_private_swarm_lets_in_who_was_invited_and_nobody_else(
    homes: tuple[Home, Home], tmp_path: Path
) -> None:
    ann, ben = homes
    at = ann.start()["addresses"][0]
    invited = ann.told("peers", "invite", "--private")
    assert invited["private_swarm"] and invited["restart"]
    key = swarm.load(ann.path)
    assert (ann.path / "keys" / "swarm.key").stat().st_mode & 0o077 == 0
    ann.end()
    listen = at.rpartition("/p2p/")[0]
    ann.start(listen)
    stranger = Home(tmp_path / "eve")
    try:
        stranger.start()
        stranger.told("peers", "add", at)
        ben.told("peers", "join", invited["invite"])
        assert swarm.load(ben.path) == key
        ben.start()
        assert ann.event("connected")["peer"] == ben.told("peers", "list")["addresses"][0][-52:]
        assert stranger.until(lambda told: told["book"][0]["failures"])["peers"] == []
    finally:
        stranger.end(signal.SIGKILL)


def app_of(folder: Path, config: str = "") -> App:
    folder.mkdir(mode=0o700)
    (folder / "groove.toml").write_text(f"[mesh.transport]\n{config}\n")
    return App(folder)


FIXED = 'listen = "/ip4/127.0.0.1/tcp/4999"'


def test_an_invitation_needs_no_running_node_if_the_port_is_known(tmp_path: Path) -> None:
    ann, ben = app_of(tmp_path / "ann", FIXED), app_of(tmp_path / "ben")
    peer = meeting.own_peer(ann)
    invited = meeting.invite(ann)
    assert invited["addresses"] == [f"/ip4/127.0.0.1/tcp/4999/p2p/{peer}"]
    joined = meeting.join(ben, invited["invite"].upper())
    assert joined["peer"] == peer and not joined["running"]
    assert [entry["address"] for entry in overview.peers(ben)["book"]] == invited["addresses"]
    with pytest.raises(MisuseError, match="own invitation"):
        meeting.join(ann, invited["invite"])
    assert not invited["running"] and "only while this node runs" in show_peers.invited(invited)
    gone = {"removed": peer, "was_connected": False}
    assert meeting.remove(ben, invited["addresses"][0]) == gone
    assert overview.peers(ben)["book"] == []
    with pytest.raises(MisuseError, match="no known peer"):
        meeting.remove(ben, peer)


def test_without_a_fixed_port_the_node_must_run_to_invite(tmp_path: Path) -> None:
    ann = app_of(tmp_path / "ann", 'listen = "/ip4/127.0.0.1/tcp/0"')
    with pytest.raises(OwnerError) as refusal:
        meeting.invite(ann)
    assert "groove-node run" in refusal.value.next_step


def test_what_the_owner_announces_is_told_before_the_rest(tmp_path: Path) -> None:
    name = 'announce = ["/dns4/ann.example.org/tcp/4021"]'
    ann = app_of(tmp_path / "ann", f"{name}\n{FIXED}")
    invited = meeting.invite(ann)
    peer = meeting.own_peer(ann)
    assert invited["addresses"] == [f"/dns4/ann.example.org/tcp/4021/p2p/{peer}"]
    assert invited["reach"] == "public"
    wrong = app_of(tmp_path / "eve", f'announce = ["/ip4/198.51.100.7/tcp/1/p2p/{peer}"]\n{FIXED}')
    with pytest.raises(OwnerError, match="another peer's"):
        meeting.invite(wrong)


def test_a_node_is_in_one_swarm_at_a_time(tmp_path: Path) -> None:
    ann, ben = app_of(tmp_path / "ann", FIXED), app_of(tmp_path / "ben")
    into_open = meeting.invite(ann)["invite"]
    private = meeting.invite(ann, private=True)["invite"]
    for _ in range(2):  # once more, and nothing comes of it
        assert meeting.join(ben, private)["private_swarm"]
    with pytest.raises(OwnerError, match="belongs to a private one") as refusal:
        meeting.join(ben, into_open)
    assert "--switch" in refusal.value.next_step
    assert swarm.load(ben.home) == swarm.load(ann.home) != ""
    meeting.join(ben, into_open, switch=True)
    assert swarm.load(ben.home) == ""


def test_joining_a_private_swarm_says_what_is_left_and_how_to_go_back(tmp_path: Path) -> None:
    ann, ben = app_of(tmp_path / "ann", FIXED), app_of(tmp_path / "ben")
    private = meeting.invite(ann, private=True)["invite"]
    assert "groove-node peers leave" in show_peers.joined(meeting.join(ben, private))
    assert "groove-node peers leave" not in show_peers.joined(meeting.join(ben, private))
    left = meeting.leave(ben)
    assert "open to all" in show_peers.left(left) and swarm.load(ben.home) == ""
    with pytest.raises(OwnerError, match="open to all"):
        meeting.leave(ben)


def test_an_address_of_a_document_is_not_said_to_work_from_anywhere(tmp_path: Path) -> None:
    ann = app_of(tmp_path / "ann", f'announce = ["/ip4/203.0.113.7/tcp/4021"]\n{FIXED}')
    invited = meeting.invite(ann)
    assert invited["reach"] == "nowhere" and "leads nowhere" in show_peers.invited(invited)


def test_whoever_removes_a_connected_peer_is_told_that_it_may_dial_again() -> None:
    said = show_peers.removed({"removed": "12D3", "was_connected": True})
    assert "if it dials this node, it is connected again" in said
    assert show_peers.removed({"removed": "12D3", "was_connected": False}) == "12D3 is forgotten"


def test_on_a_narrow_terminal_an_address_stays_whole_and_the_reason_is_named(
    tmp_path: Path,
) -> None:
    peer = meeting.own_peer(app_of(tmp_path / "ann"))
    address = f"/ip4/198.51.100.7/tcp/4021/p2p/{peer}"
    entry = {"peer": peer, "address": address, "named_by": "you", "score": 0.5}
    entry |= {"last_reached": None, "failures": 1, "why": "connection refused"}
    result = {"running": True, "addresses": [], "peers": [], "book": [entry]}
    rows = show_peers.rows(result, Instant(0))
    assert show_peers.fits(rows, None) and not show_peers.fits(rows, 80)
    first, second = show_peers.lines(rows)
    assert first.startswith(f"…{peer[-8:]}  not connected: connection refused, failed 1 time")
    assert second == f"  {address}"
    assert "groove-node doctor" in show_peers.listed(result)


def test_a_damaged_swarm_key_stops_the_node_and_is_mended_by_joining_again(tmp_path: Path) -> None:
    ann, ben = app_of(tmp_path / "ann", FIXED), app_of(tmp_path / "ben")
    private = meeting.invite(ann, private=True)["invite"]
    meeting.join(ben, private)
    (ben.home / "keys" / "swarm.key").write_text("nonsense\n")
    with pytest.raises(OwnerError, match="64 hexadecimal digits"):
        overview.peers(ben)
    meeting.join(ben, private)
    assert swarm.load(ben.home) == swarm.load(ann.home)


def test_a_damaged_address_book_is_set_aside_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann = app_of(tmp_path / "ann")
    book = ann.home / "peers.json"
    for damage in (b"", b"\x00" * 200, b'[{"address": "/ip4/x"}]', b"[" * 100_000):
        book.write_bytes(damage)
        caplog.clear()
        assert len(peerbook.load(ann)) == 0
        assert "address book damaged" in caplog.text
        assert (ann.home / "peers.json.damaged").read_bytes() == damage
        assert not book.exists()


def test_a_book_is_saved_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    ann = app_of(tmp_path / "ann")
    book = peerbook.load(ann)
    book.add(f"/ip4/198.51.100.7/tcp/4021/p2p/{meeting.own_peer(ann)}", Source.OWNER)
    peerbook.save(ann, book)
    assert list(peerbook.load(ann)) == list(book)
    assert (ann.home / "peers.json").stat().st_mode & 0o077 == 0
    assert [path.name for path in ann.home.glob(".peers*")] == []


def test_a_peer_of_the_configuration_cannot_be_removed_by_a_command(tmp_path: Path) -> None:
    address = f"/ip4/198.51.100.7/tcp/4021/p2p/{meeting.own_peer(app_of(tmp_path / 'ann'))}"
    ben = app_of(tmp_path / "ben")
    (ben.home / "groove.toml").write_text(f'[mesh]\npeers = ["{address}"]\n')
    with pytest.raises(OwnerError, match=r"stands in groove\.toml"):
        meeting.remove(App(ben.home), address)


@pytest.mark.parametrize("text", ["hello", "groove9abc"])
def test_what_is_no_invitation_is_refused_with_a_reason(
    homes: tuple[Home, Home], text: str
) -> None:
    said = refused(homes[0].groove("peers", "join", text), 2)
    assert "this is no invitation" in said and "Nothing was remembered." in said
