"""Who is let in: caps, rates, faults and bans, without a socket."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gossip import doorkeeper
from gossip.doorkeeper import Doorkeeper, account_of, is_local
from gossip.inbox import Inbox
from gossip.ports import PeerId
from gossip.transport_config import TransportConfig

STRANGER, NEIGHBOUR = "203.0.113.9", "192.168.1.9"
MALLORY = PeerId("mallory")


def door(**limits: Any) -> Doorkeeper:
    return Doorkeeper(TransportConfig(**limits), Counter())


def let_in(keeper: Doorkeeper, ip: str, tries: int, now: float = 0.0) -> int:
    """How many of so many connections are let in; each leaves at once."""
    admitted = 0
    for _ in range(tries):
        if guest := keeper.arrive(ip, now):
            keeper.leave(guest)
            admitted += 1
    return admitted


def test_an_address_connects_as_often_as_its_rate_allows() -> None:
    keeper = door(accept_burst=10, accept_per_s=2.0)
    assert let_in(keeper, STRANGER, 20) == 10
    assert let_in(keeper, STRANGER, 20, now=3.0) == 6
    assert let_in(keeper, "203.0.113.10", 20, now=3.0) == 10  # another address is another matter


def test_an_address_has_so_many_connections_and_the_local_network_more() -> None:
    keeper = door(per_address_max=3, connections_max=80)
    assert [keeper.arrive(STRANGER, 0.0) is not None for _ in range(5)] == [True] * 3 + [False] * 2
    assert all(keeper.arrive(NEIGHBOUR, 0.0) for _ in range(20))
    assert keeper.connections() == 23


def test_room_is_kept_for_the_connections_that_we_make() -> None:
    keeper = door(connections_max=16)
    assert sum(keeper.arrive(f"203.0.113.{n}", 0.0) is not None for n in range(30)) == 14


def test_the_oldest_handshake_of_the_busiest_address_makes_room() -> None:
    keeper = door(handshakes_max=4)
    early = keeper.arrive(NEIGHBOUR, 0.0)
    busy = [keeper.arrive(STRANGER, float(n)) for n in range(4)]
    assert early and busy[0] and keeper.to_make_room() is busy[0]
    keeper.leave(busy[0])
    assert keeper.to_make_room() is None
    keeper.shake(early, PeerId("alice"))
    assert keeper.arrive(STRANGER, 5.0) and keeper.to_make_room() is None


def test_faults_of_a_public_address_shut_it_out_and_those_of_a_local_one_do_not() -> None:
    keeper = door(ban_s=60.0, accept_per_s=5.0)
    for ip in (STRANGER, NEIGHBOUR):
        for _ in range(1000):
            keeper.botched(ip, "handshake failed", 0.0)
    assert let_in(keeper, STRANGER, 1, now=59.0) == 0
    assert let_in(keeper, STRANGER, 1, now=61.0) == 1
    assert let_in(keeper, NEIGHBOUR, 1, now=0.0) == 1


def test_too_many_faults_ban_a_peer_for_longer_each_time() -> None:
    keeper = door(faults_max=3, faults_forgiven_per_s=0.1, ban_s=60.0)
    assert [keeper.blame(MALLORY, "junk", 0.0) for _ in range(3)] == [False, False, True]
    assert keeper.banned(MALLORY, 59.0) and not keeper.banned(MALLORY, 60.0)
    assert [keeper.blame(MALLORY, "junk", 60.0) for _ in range(3)] == [False, False, True]
    assert keeper.banned(MALLORY, 179.0) and not keeper.banned(MALLORY, 180.0)
    assert keeper.refused_of(MALLORY) == {"junk": 6}


def test_faults_are_forgiven_with_time() -> None:
    keeper = door(faults_max=3, faults_forgiven_per_s=0.1)
    assert not any(keeper.blame(MALLORY, "junk", 20.0 * n) for n in range(100))


def test_a_peers_faults_are_paid_by_the_address_it_came_from() -> None:
    keeper = door(accept_burst=40, faults_max=1000)
    guest = keeper.arrive(STRANGER, 0.0)
    assert guest
    keeper.shake(guest, MALLORY)
    for _ in range(10):
        keeper.blame(MALLORY, "junk", 0.0)
    assert let_in(keeper, STRANGER, 1) == 0


def test_no_table_grows_without_bound() -> None:
    keeper = door(connections_max=100_000, accept_burst=2)
    for n in range(3 * doorkeeper.ADDRESSES_MAX):
        ip = f"203.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"
        let_in(keeper, ip, 1)
        keeper.blame(PeerId(str(n)), "junk", 0.0)
        keeper.came_from(PeerId(str(n)), ip)
    assert len(keeper._addresses) <= doorkeeper.ADDRESSES_MAX
    assert len(keeper._peers) <= doorkeeper.PEERS_MAX
    assert len(keeper._ip_of) <= doorkeeper.PEERS_MAX


def test_the_public_addresses_of_one_ipv6_network_pay_together() -> None:
    keeper = door(per_address_max=3, accept_burst=10, handshakes_max=4)
    early = keeper.arrive(STRANGER, 0.0)
    theirs = [keeper.arrive(f"2001:4860:1:2:{n:x}::1", 0.0) for n in range(5)]
    assert early and [guest is not None for guest in theirs] == [True] * 3 + [False] * 2
    assert keeper.arrive("2001:4860:1:3::1", 0.0) and keeper.to_make_room() is theirs[0]
    for guest in theirs:
        if guest:
            keeper.leave(guest)
    assert let_in(keeper, "2001:4860:1:2::99", 20) == 7
    keeper.came_from(MALLORY, "2001:4860:1:2::77")
    keeper.blame(MALLORY, "junk", 0.0)
    keeper.botched("2001:4860:1:2::78", "handshake failed", 0.0)
    assert let_in(keeper, "2001:4860:1:2::1", 20, now=1.0) == 0
    assert let_in(keeper, "2001:4860:1:3::1", 20, now=1.0) == 10


def test_who_pays_for_an_address() -> None:
    assert account_of("2001:4860:1:2:3:4:5:6") == account_of(account_of("2001:4860:1:2::9"))
    assert account_of("2001:4860:1:2::9") != account_of("2001:4860:1:3::9")
    assert account_of("::ffff:203.0.113.9") == STRANGER == account_of(STRANGER)
    assert not is_local(account_of("2001:4860:1:2::9")) and is_local(account_of("::1"))
    assert account_of("fd00::1") != account_of("fd00::2")  # neighbours share a network
    assert account_of("fe80::1%eth0") == "fe80::1"
    assert account_of("") == "" and account_of("?") == "?"


def test_what_is_local() -> None:
    local = ("127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fe80::1%eth0", "fd00::1")
    assert all(map(is_local, local))
    assert not any(map(is_local, ("8.8.8.8", "2001:4860:4860::8888", "?", "")))


async def test_frames_are_taken_from_one_sender_after_the_other() -> None:
    inbox: Inbox[str] = Inbox(10)
    for frame in ("a1", "a2"):
        await inbox.put("a", frame)
    await inbox.put("b", "b1")
    assert [inbox.take() for _ in range(4)] == ["a1", "b1", "a2", None]
