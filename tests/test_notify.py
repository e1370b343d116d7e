"""What a service manager hears of a node: over a real datagram socket, and of a real process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from node.app import App
from node.notify import Notifier

ROOT = Path(__file__).parent.parent
HANGS_S = 120.0


class Manager:
    """A datagram socket as systemd holds one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(HANGS_S)

    def heard(self) -> str:
        return self.socket.recv(4096).decode()

    def hears(self, wanted: str) -> list[str]:
        """What it is told up to, and with, a message that begins so."""
        told = [self.heard()]
        while not told[-1].startswith(wanted):
            told.append(self.heard())
        return told

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.heard()
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(HANGS_S)
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    at = str(tmp_path / "notify") if request.param == "path" else f"@groove-test-{os.getpid()}"
    made = Manager(at)
    yield made
    made.socket.close()


def test_a_manager_hears_what_it_is_told_in_order(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready()
    notifier.status("listening")
    notifier.watchdog()
    notifier.stopping()
    told = [manager.heard() for _ in range(4)]
    assert told == ["READY=1", "STATUS=listening", "WATCHDOG=1", "STOPPING=1"]


def test_a_status_is_one_line_and_is_said_once_while_it_holds(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    for text in ("two\nREADY=1", "two\nREADY=1", "three"):
        notifier.status(text)
    assert [manager.heard(), manager.heard()] == ["STATUS=two READY=1", "STATUS=three"]
    assert manager.silent()


def test_what_a_manager_set_is_taken_out_of_the_environment() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "5",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    Notifier.taken(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
def test_without_a_socket_nothing_happens(address: str) -> None:
    notifier = Notifier(address, watchdog_s=1.0)
    notifier.ready()
    trio.run(notifier.run)  # ends at once


def test_a_manager_that_is_gone_or_does_not_read_stops_nobody(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "gone")).ready()
    deaf = Manager(str(tmp_path / "deaf"))
    notifier = Notifier(deaf.address)
    for _ in range(2000):  # more than its queue holds
        notifier.watchdog()
    deaf.socket.close()


async def test_the_watchdog_is_fed_twice_in_each_span_while_the_loop_answers(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"}
    with trio.move_on_after(299):
        await Notifier.taken(environment).run()
    assert [manager.heard() for _ in range(10)] == ["WATCHDOG=1"] * 10
    assert manager.silent()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"},
    ],
)
async def test_a_watchdog_that_is_not_for_this_process_is_not_fed(
    manager: Manager, environment: dict[str, str]
) -> None:
    await Notifier.taken({"NOTIFY_SOCKET": manager.address, **environment}).run()
    assert manager.silent()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start nodes; whatever still runs in the end is ended."""
    home, nodes = tmp_path / "home", []
    home.mkdir(mode=0o700)
    App(home).identity  # noqa: B018 - a home has keys

    def begin(**environment: str) -> subprocess.Popen[str]:
        node = subprocess.Popen(
            [sys.executable, "-m", "node.cli", "run", "--listen", "/ip4/127.0.0.1/tcp/0"],
            env={**os.environ, "GROOVE_HOME": str(home), **environment},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        nodes.append(node)
        return node

    yield begin
    for node in nodes:
        node.kill()
        node.communicate()


@pytest.mark.network
def test_a_running_node_says_when_it_is_ready_that_it_lives_and_that_it_stops(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    node = start(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000")
    manager.hears("READY=1")
    status = manager.hears("STATUS=")
    assert "/ip4/127.0.0.1/tcp/" in status[-1]
    manager.hears("WATCHDOG=1")
    manager.hears("WATCHDOG=1")
    node.send_signal(signal.SIGTERM)
    manager.hears("STOPPING=1")
    assert node.wait(HANGS_S) == 0
    manager.socket.close()


@pytest.mark.network
def test_a_node_that_hangs_falls_silent(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    node = start(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000")
    manager.hears("WATCHDOG=1")
    node.send_signal(signal.SIGSTOP)
    os.waitpid(node.pid, os.WUNTRACED)
    while not manager.silent():
        continue  # what it had said before
    manager.socket.settimeout(1.0)  # five spans of silence
    with pytest.raises(TimeoutError):
        manager.heard()
    node.send_signal(signal.SIGCONT)
    manager.socket.settimeout(HANGS_S)
    manager.hears("WATCHDOG=1")
    manager.socket.close()
