"""A small internet in network namespaces: a public segment, routers that translate, hosts behind.

Needs CAP_NET_ADMIN, `ip` and `nft`; `missing()` says what is not there. All names are random, and
everything is removed at the end, whatever happened in between. Addresses of the public segment are
such that a program takes them for public: nothing leaves the namespaces.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60.0  # a guard against hanging, not a promise
PUBLIC = "11.7.0"  # of a network that the public internet has elsewhere


def missing() -> str:
    """Why no namespaces can be made here; empty if they can."""
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"`{program}` is not installed"
    name = f"groove-probe-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no namespace can be made: {made.stderr.strip()}"
    try:
        table = ["ip", "netns", "exec", name, "nft", "add", "table", "ip", "probe"]
        ruled = subprocess.run(table, capture_output=True, text=True)
        return "" if ruled.returncode == 0 else f"nft cannot be used: {ruled.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def needs_namespaces() -> list[pytest.MarkDecorator]:
    """Marks of a module whose tests run in namespaces of their own."""
    reason = missing()
    return [
        pytest.mark.netns,
        pytest.mark.network,
        pytest.mark.skipif(bool(reason), reason=reason or "namespaces can be made"),
    ]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


@dataclass
class Space:
    """One network namespace. ip: the address by which the others in its segment know it."""

    name: str
    ip: str

    def run(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.name, *command)

    def nft(self, rules: str) -> None:
        for line in filter(None, (line.strip() for line in rules.splitlines())):
            self.run("nft", line)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], text=True, **options)

    # ---- faults: each replaces the one before ----------------------------------------------------

    def lose(self, percent: int) -> None:
        """Drop this share of the packets that come in."""
        self.heal()
        self.nft(
            f"""add table ip faults
            add chain ip faults in {{ type filter hook input priority 0 ; }}
            add rule ip faults in numgen random mod 100 < {percent} drop"""
        )

    def cut(self) -> None:
        """Drop all that comes in, from now on and without a word."""
        self.heal()
        self.nft(
            """add table ip faults
            add chain ip faults in { type filter hook input priority 0 ; }
            add rule ip faults in iifname != "lo" drop"""
        )

    def heal(self) -> None:
        subprocess.run(
            ["ip", "netns", "exec", self.name, "nft", "delete", "table", "ip", "faults"],
            capture_output=True,
            check=False,
        )

    def rate(self, mbit: int) -> None:
        """Let no more out than this."""
        self.run(
            *("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf"),
            *("rate", f"{mbit}mbit", "burst", "64kbit", "latency", "400ms"),
        )


@dataclass
class Internet:
    """The public segment, and what hangs on it."""

    tag: str
    _spaces: list[str] = field(default_factory=list)
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _hosts: int = 0
    _routers: int = 0

    def __post_init__(self) -> None:
        self._wire = self._add("wire")
        run("ip", "-n", self._wire, "link", "add", "public", "type", "bridge")
        run("ip", "-n", self._wire, "link", "set", "public", "up")

    def host(self) -> Space:
        """A machine with an address that everybody can dial."""
        self._hosts += 1
        space = Space(self._add(f"host{self._hosts}"), f"{PUBLIC}.{self._hosts}")
        self._plug(space, space.ip)
        return space

    def behind_nat(self) -> Space:
        """A machine behind a router of its own, which lets connections out and none in."""
        self._routers += 1
        number = self._routers
        outside = f"{PUBLIC}.{100 + number}"
        router = Space(self._add(f"nat{number}"), outside)
        self._plug(router, outside)
        inside = Space(self._add(f"home{number}"), f"192.168.{number}.2")
        self._cable(router.name, "lan", inside.name, "eth0")
        run("ip", "-n", router.name, "addr", "add", f"192.168.{number}.1/24", "dev", "lan")
        run("ip", "-n", inside.name, "addr", "add", f"{inside.ip}/24", "dev", "eth0")
        run("ip", "-n", inside.name, "route", "add", "default", "via", f"192.168.{number}.1")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        router.nft(
            """add table ip nat
            add chain ip nat out { type nat hook postrouting priority 100 ; }
            add rule ip nat out oifname "eth0" masquerade
            add table ip wall
            add chain ip wall through { type filter hook forward priority 0 ; policy drop ; }
            add rule ip wall through ct state established,related accept
            add rule ip wall through iifname "lan" accept"""
        )
        return inside

    def nat_of(self, inside: Space) -> str:
        """The public address of the router before a machine."""
        return f"{PUBLIC}.{100 + int(inside.ip.split('.')[2])}"

    def keep(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """End a process with the namespaces, if it has not ended before."""
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            end(process)
        for name in reversed(self._spaces):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _add(self, role: str) -> str:
        name = f"groove-{self.tag}-{role}"
        run("ip", "netns", "add", name)
        self._spaces.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def _plug(self, space: Space, ip: str) -> None:
        port = f"p{len(self._spaces)}"
        self._cable(self._wire, port, space.name, "eth0")
        run("ip", "-n", self._wire, "link", "set", port, "master", "public")
        run("ip", "-n", space.name, "addr", "add", f"{ip}/24", "dev", "eth0")

    def _cable(self, a: str, a_end: str, b: str, b_end: str) -> None:
        run(
            *("ip", "-n", a, "link", "add", a_end, "type", "veth"),
            *("peer", "name", b_end, "netns", b),
        )
        run("ip", "-n", a, "link", "set", a_end, "up")
        run("ip", "-n", b, "link", "set", b_end, "up")


@contextmanager
def internet() -> Iterator[Internet]:
    net: Internet | None = None
    try:
        net = Internet(secrets.token_hex(3))
        yield net
    finally:
        if net is not None:
            net.close()


def end(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> None:
    """End a process that was started here; `ip netns exec` has become it."""
    if process.poll() is None:
        process.send_signal(how)
    process.wait(30)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


# ---- peers ---------------------------------------------------------------------------------------


@dataclass
class Peer:
    """A `support_peer` process in a namespace: one line of JSON for each order and each event."""

    process: subprocess.Popen[str]
    peer: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _unread: bytes = b""

    def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def wait_for(
        self, event: str, holds: Callable[[dict[str, Any]], bool] = lambda line: True
    ) -> dict[str, Any]:
        """Return the next line of this kind, passing over the others, which stay in `seen`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            said: dict[str, Any] = json.loads(self._line(deadline, event))
            said["after_s"] = time.monotonic() - self._started
            self.seen.append(said)
            if said["event"] == event and holds(said):
                return said

    def _line(self, deadline: float, event: str) -> bytes:
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        while b"\n" not in self._unread:
            said = select.poll()  # `select.select` takes no descriptor above 1,023
            said.register(out, select.POLLIN)
            ready = said.poll(max(0.0, deadline - time.monotonic()) * 1000)
            more = os.read(out, 65_536) if ready else b""
            assert more, f"no {event!r} came; the last of what did: {self.seen[-5:]}"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def start_peer(net: Internet, space: Space, folder: Path, **config: Any) -> Peer:
    """Run a transport, a driver and a replica in a namespace; wait until it listens."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("a") as stderr:
        process = space.start(
            *(sys.executable, "-W", "ignore", str(Path(__file__).parent / "support_peer.py")),
            *(str(folder), json.dumps(config)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            cwd=ROOT,
        )
    peer = Peer(net.keep(process))
    peer.peer = peer.wait_for("listening")["peer"]
    return peer
