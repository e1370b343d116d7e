"""Two nodes find each other by multicast DNS; what else is announced is not believed."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from ipaddress import ip_network
from pathlib import Path

import pytest
import trio

from gossip.keys import private_key, public_bytes
from gossip.mdns import Neighbours, addresses_of
from gossip.multiaddrs import Vicinity, peer_of_key
from gossip.ports import PeerId

ROOT = Path(__file__).parent.parent
A, B = (peer_of_key(public_bytes(private_key(bytes([n]) * 32))) for n in range(2))


def multicast_works() -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            probe.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            probe.sendto(b"", ("224.0.0.251", 5353))
    except OSError:
        return False
    return True


needs_multicast = pytest.mark.skipif(not multicast_works(), reason="no multicast on loopback")


class Heard:
    """What one node has found."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.any = trio.Event()

    def __call__(self, address: str) -> None:
        self.addresses.append(address)
        self.any.set()


def at(peer: PeerId, port: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"


@pytest.mark.network
@needs_multicast
async def test_two_nodes_find_each_other_and_leave_no_thread_behind() -> None:
    threads = set(threading.enumerate())
    a, b = Heard(), Heard()
    one, other = Neighbours(A, a), Neighbours(B, b)
    one.move([at(A, 5001)], [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(other.run)  # it has no address yet, and says nothing
        await trio.sleep(0.1)
        other.move([at(B, 5002)], [])
        with trio.fail_after(30):
            await a.any.wait()
            await b.any.wait()
        nursery.cancel_scope.cancel()
    assert set(a.addresses) == {at(B, 5002)} and set(b.addresses) == {at(A, 5001)}
    left = [t for t in threading.enumerate() if t not in threads and "Trio" not in t.name]
    assert left == []


class _Said:
    """What a neighbour announces, as zeroconf hands it over."""

    def __init__(self, peer: bytes | None, port: int, *hosts: str) -> None:
        self.properties: dict[bytes, bytes | None] = {b"peer": peer}
        self.port = port
        self.hosts = hosts

    def parsed_addresses(self) -> list[str]:
        return list(self.hosts)


OURS = Vicinity(frozenset({"192.168.1.2"}), (ip_network("192.168.1.0/24"), ip_network("fd00::/64")))


@pytest.mark.parametrize(
    "said",
    [
        _Said(None, 4021, "192.168.1.7"),
        _Said(b"", 4021, "192.168.1.7"),
        _Said(b"\xff" * 52, 4021, "192.168.1.7"),
        _Said(b"x" * 200, 4021, "192.168.1.7"),
        _Said(str(A).encode(), 4021, "192.168.1.7"),  # itself
        _Said(str(B).encode(), 0, "192.168.1.7"),
        _Said(str(B).encode(), 80, "192.168.1.1"),  # the router's own page
        _Said(str(B).encode(), 70_000, "192.168.1.7"),
        _Said(str(B).encode(), 4021, "192.168.1.2"),  # this machine
        _Said(str(B).encode(), 4021, "192.168.1.255", "192.168.1.0"),  # all of the network
        _Said(str(B).encode(), 4021),
        _Said(str(B).encode(), 4021, "203.0.113.9", "127.0.0.1", "10.0.0.1"),  # other networks
    ],
)
def test_what_is_no_neighbour_is_not_dialled(said: _Said) -> None:
    assert addresses_of(said, A, OURS, loopback=False) == []


def test_a_neighbour_is_dialled_in_the_networks_that_are_shared() -> None:
    said = _Said(str(B).encode(), 4021, "203.0.113.9", "192.168.1.7", "fd00::7")
    assert addresses_of(said, A, OURS, loopback=False) == [
        f"/ip4/192.168.1.7/tcp/4021/p2p/{B}",
        f"/ip6/fd00::7/tcp/4021/p2p/{B}",
    ]


def test_nothing_is_loaded_that_speaks_multicast_until_it_is_wanted() -> None:
    code = "import sys, gossip.mdns, node.links; sys.exit('zeroconf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
