"""Two nodes behind routers that let nobody in meet through a relay that both can dial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support_demo
from support_netns import ROOT, Internet, Peer, Space, internet, needs_namespaces, start_peer

pytestmark = needs_namespaces()

LISTEN = "/ip4/0.0.0.0/tcp/4021"
BUNDLE_BYTES = 3_000_000


@pytest.fixture
def net() -> Iterator[Internet]:
    with internet() as made:
        yield made


def start_relay(net: Internet, folder: Path, **config: object) -> tuple[Peer, str]:
    """A node in the public segment that relays, and the address that everybody dials it at."""
    space = net.host()
    relay = start_peer(net, space, folder / "relay", listen=LISTEN, relay_for_others=True, **config)
    return relay, f"/ip4/{space.ip}/tcp/4021/p2p/{relay.peer}"


def at_home(net: Internet, folder: Path, relay: str) -> tuple[Peer, Space]:
    space = net.behind_nat()
    return start_peer(net, space, folder / space.name, listen=LISTEN, relay=[relay]), space


def relayed_address(peer: Peer) -> str:
    """Where it says it can be reached through the relay, once it has a reservation."""
    said = peer.wait_for(
        "addresses", lambda line: any("p2p-circuit" in each for each in line["addresses"])
    )
    found: list[str] = said["addresses"]
    return next(each for each in found if "p2p-circuit" in each)


def test_two_nodes_behind_different_routers_meet_through_a_relay(
    net: Internet, tmp_path: Path
) -> None:
    _, address = start_relay(net, tmp_path)
    alice, home = at_home(net, tmp_path, address)
    bob, _ = at_home(net, tmp_path, address)

    through = relayed_address(alice)
    relayed_address(bob)
    for closed in (home.ip, net.nat_of(home)):  # neither has a way in
        bob.order(do="dial", address=f"/ip4/{closed}/tcp/4021/p2p/{alice.peer}")
        failed = bob.wait_for("dialled")
        assert not failed["ok"], failed

    bob.order(do="know", address=through)
    bob.wait_for("connected", lambda line: line["peer"] == alice.peer)
    met = alice.wait_for("connected", lambda line: line["peer"] == bob.peer)
    assert "p2p-circuit" in met["address"] and met["inbound"]

    alice.order(do="add", size=BUNDLE_BYTES)
    root = alice.wait_for("added")["root"]
    bob.order(do="fetch", root=root, size=BUNDLE_BYTES)
    got = bob.wait_for("fetched")
    assert got["whole"] and got["sources"] == {alice.peer: BUNDLE_BYTES}

    alice.order(do="publish", leaves=[1, 2])
    bob.wait_for("heard", lambda line: line["leaves"] == 2)
    alice.order(do="retract", leaf=1)
    assert bob.wait_for("retracted")["urgent"] > 0


# ---- the node itself -----------------------------------------------------------------------------


class Node:
    """A home, and a `groove-node run` in a namespace."""

    def __init__(self, space: Space, folder: Path, **transport: object) -> None:
        self.space = space
        self._home = folder / space.name / "home"
        self._home.mkdir(mode=0o700, parents=True)
        self._config = support_demo.write_config(self._home / "groove.toml", folder / "chassis")
        self.configure(**transport)
        self.groove("init")

    def configure(self, **transport: object) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in transport.items()]
        with self._config.open("a") as file:
            file.write("\n".join(["\n[mesh.transport]", *lines, ""]))

    def groove(self, *arguments: str, succeeds: bool = True) -> dict[str, Any]:
        command = [sys.executable, "-m", "node.cli", *arguments, "--json"]
        done = subprocess.run(
            ["ip", "netns", "exec", self.space.name, *command],
            env=self._environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not succeeds or done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def start(self, net: Internet) -> None:
        process = self.space.start(
            *(sys.executable, "-m", "node.cli", "run"),
            env=self._environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        net.keep(process)
        until((self._home / "run.json").exists)

    def sees(self) -> dict[str, Any]:
        """What the running node has written of itself: a command takes seconds to say the same."""
        found: dict[str, Any] = json.loads((self._home / "run.json").read_bytes())
        return found

    def findings(self) -> dict[str, dict[str, Any]]:
        found = self.groove("doctor", succeeds=False)["findings"]
        return {each["check"]: each for each in found}

    def _environment(self) -> dict[str, str]:
        state = str(self._home.parent / "state")
        return {
            **os.environ,
            "GROOVE_HOME": str(self._home),
            "GROOVE_STATE": state,
            "HF_HUB_OFFLINE": "1",
        }


def until(holds: Callable[[], object]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_two_owners_meet_by_an_invitation_through_a_relay_and_doctor_says_how(
    net: Internet, tmp_path: Path
) -> None:
    relay = Node(net.host(), tmp_path, relay_for_others=True)
    relay.start(net)
    (listening,) = relay.sees()["addresses"]
    dialable = listening.replace("0.0.0.0", relay.space.ip)
    alice, bob = (Node(net.behind_nat(), tmp_path, relay=[dialable]) for _ in range(2))
    alice.start(net)
    bob.start(net)
    until(lambda: len(alice.sees()["addresses"]) == 2)
    bob.groove("peers", "join", alice.groove("peers", "invite")["invite"])
    until(lambda: any(each["relayed"] for each in bob.sees()["links"]["reach"]["links"]))
    until(lambda: relay.sees()["links"]["reach"]["carried"] == {"reservations": 2, "circuits": 1})

    found = bob.findings()
    assert found["relay"]["verdict"] == found["peers"]["verdict"] == "ok"
    assert "1 of 1" in found["peers"]["text"] and "1 through a relay" in found["peers"]["text"]
    assert "through a relay" in found["reachable"]["text"]
    found = relay.findings()
    assert "from outside: a peer" in found["reachable"]["text"]
    assert "2 reserved, 1 open" in found["relay"]["text"]
