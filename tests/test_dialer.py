"""The dialer, alone and over loopback."""

from __future__ import annotations

import os
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gossip.addresses import BY_MDNS, AddressBook, Source
from gossip.dialer import Dialer, DialerConfig, DialLoop, looked_up
from gossip.ports import Connected, Disconnected, PeerId
from gossip.transport_config import DialError, DialReason


def peer(number: int) -> PeerId:
    return PeerId(f"12D3KooW{number:044d}")


def address(number: int, port: int = 4021) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{peer(number)}"


ME = peer(0)


# ---- the dialer ----------------------------------------------------------------------------------


def dialer(owners: int = 0, learned: int = 0, **config: float) -> Dialer:
    book = AddressBook()
    for number in range(1, owners + 1):
        book.add(address(number), Source.OWNER)
    for number in range(100, 100 + learned):
        book.add(address(number), Source.LEARNED)
    return Dialer(ME, book, Random(1), DialerConfig(**config))  # type: ignore[arg-type]


def test_this_node_is_never_dialled() -> None:
    one = dialer(owners=1)
    one.book.add(address(0), Source.OWNER)
    assert [name for name, _ in one.due(0.0)] == [peer(1)]


def test_the_owners_peers_are_dialled_always_and_learned_ones_up_to_the_links_wanted() -> None:
    one = dialer(owners=3, learned=9, links_wanted=5, dials_max=99)
    chosen = [name for name, _ in one.due(0.0)]
    assert chosen[:3] == [peer(1), peer(2), peer(3)] and len(chosen) == 5
    for name in chosen:
        one.connected(name)
    assert one.due(1.0) == [] and one.next_due() is None
    one.disconnected(peer(1), 2.0)
    assert [name for name, _ in one.due(4.0)] == [peer(1)]


def test_no_more_than_eight_dials_run_at_a_time() -> None:
    one = dialer(owners=9)
    first = [name for name, _ in one.due(0.0)]
    assert len(first) == 8 and one.next_due() is None
    one.failed(first[0], 0.0)
    assert len(one.due(0.0)) == 1


@given(st.integers(0, 2**32))
def test_the_pause_doubles_from_one_to_sixty_seconds_with_jitter(seed: int) -> None:
    book = AddressBook()
    book.add(address(1), Source.OWNER)
    one = Dialer(ME, book, Random(seed))
    now, pauses = 0.0, []
    for _ in range(10):
        assert [name for name, _ in one.due(now)] == [peer(1)]
        one.failed(peer(1), now)
        due = one.next_due()
        assert due is not None and one.due(due - 0.001) == []
        pauses.append(due - now)
        now = due
    for number, pause in enumerate(pauses):
        full = min(60.0, 2.0**number)
        assert full / 2 <= pause <= full


@given(st.integers(0, 2**32), st.floats(0.0, 110.0))
def test_a_peer_that_comes_back_within_two_minutes_is_dialled_within_five_seconds(
    seed: int, back_at: float
) -> None:
    book = AddressBook()
    book.add(address(1), Source.LEARNED)
    one = Dialer(ME, book, Random(seed))
    one.connected(peer(1))
    one.disconnected(peer(1), 0.0)
    while True:
        now = one.next_due()
        assert now is not None
        assert one.due(now)
        if now >= back_at:
            break
        one.failed(peer(1), now)
    assert now - back_at <= 5.0


def test_a_dial_that_succeeds_without_a_connection_is_tried_again() -> None:
    one = dialer(owners=1)
    one.due(0.0)
    one.reached(peer(1), 1.0)
    assert one.due(2.0) == []
    assert [name for name, _ in one.due(6.0)] == [peer(1)]


async def test_the_loop_tries_each_address_and_waits_without_spinning(
    autojump_clock: trio.testing.MockClock,
) -> None:
    book = AddressBook()
    book.add(address(1, 1), Source.OWNER)
    book.add(address(1, 2), Source.OWNER)
    dialled: list[tuple[float, str]] = []
    start = trio.current_time()

    async def dial(where: str) -> PeerId:
        await trio.sleep(0.1)
        dialled.append((trio.current_time() - start, where))
        if trio.current_time() - start < 10 or where == address(1, 1):
            raise DialError("refused")
        loop.on_link(Connected(peer(1), where))
        return peer(1)

    loop = DialLoop(Dialer(ME, book, Random(1)), dial, clock=lambda: 7.0)
    with trio.move_on_after(120):
        await loop.run()
    assert {where for _, where in dialled} == {address(1, 1), address(1, 2)}
    assert dialled[-1][1] == address(1, 2) and len(dialled) < 20
    assert [entry.last_ok_s for entry in book] == [0.0, 7.0]
    before = len(dialled)
    with trio.move_on_after(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            loop.on_link(Disconnected(peer(1)))
    assert len(dialled) == before + 1  # the address that works is tried first


def linked_in(one: Dialer, *numbers: int) -> None:
    """Peers that have dialled this node, from one network."""
    for number in numbers:
        one.connected(peer(number), f"/ip4/203.0.113.{number % 250}/tcp/50000", inbound=True)


def test_some_links_are_made_however_many_have_come_in() -> None:
    one = dialer(learned=9, links_wanted=8, outbound_min=4, dials_max=99)
    linked_in(one, *range(500, 550))
    chosen = [name for name, _ in one.due(0.0)]
    assert len(chosen) == 4
    for name in chosen:
        one.connected(name, address(100))
    assert one.due(1.0) == []


def introduced(one: Dialer, number: int, by: int, network: str = "198.51") -> PeerId:
    where = f"/ip4/{network}.{number // 250}.{number % 250}/tcp/4021/p2p/{peer(number)}"
    assert one.book.introduce(where, str(peer(by)), 1.0)
    return peer(number)


def test_no_more_than_half_of_the_links_are_to_peers_that_one_other_has_introduced() -> None:
    one = dialer(links_wanted=8, outbound_min=8, dials_max=99)
    of_one = {introduced(one, number, by=1) for number in range(200, 220)}
    of_others = {introduced(one, number, by=number - 100) for number in range(300, 320)}
    chosen = {name for name, _ in one.due(0.0)}
    assert len(chosen) == 8 and len(chosen & of_one) == 4 and len(chosen & of_others) == 4
    alone = dialer(links_wanted=8, outbound_min=8, dials_max=99)
    for number in range(200, 220):
        introduced(alone, number, by=1)
    assert len(alone.due(0.0)) == 4


def test_two_of_the_links_made_lie_in_different_networks_where_there_are_such() -> None:
    one = dialer(links_wanted=4, outbound_min=4, dials_max=99)
    for number in range(200, 210):
        where = f"/ip4/198.51.0.{number}/tcp/4021/p2p/{peer(number)}"
        one.book.introduce(where, str(peer(number)), 1.0)
        one.book.succeeded(where, 5.0)  # what works comes first, but for one
    introduced(one, 7, by=7, network="203.0")
    chosen = [name for name, _ in one.due(0.0)]
    assert peer(7) in chosen and len(chosen) == 4
    later = dialer(links_wanted=4, outbound_min=4, dials_max=99)
    for number in range(200, 206):
        introduced(later, number, by=number)
    for name, where in later.due(0.0):
        later.connected(name, where[0])
    assert later.due(1.0) == []
    introduced(later, 7, by=7, network="203.0")
    assert [name for name, _ in later.due(2.0)] == [peer(7)]  # beyond the links wanted


def test_one_introducer_has_sixteen_strangers_dialled_an_hour() -> None:
    one = dialer(links_wanted=8, dials_max=99)
    dials = 0
    for number in range(200, 260):
        introduced(one, number, by=1)
        for name, where in one.due(float(number)):
            dials += 1
            one.book.failed(where[0], 0.0)
            one.failed(name, float(number))
    assert dials == 16
    due = one.next_due(300.0)
    assert due is not None and 3700.0 <= due <= 3900.0
    assert len(one.due(due)) >= 1


def dials_in_an_hour(one: Dialer, places: list[str], *, vouched: bool = False) -> list[str]:
    """Each minute a new name says that it is at four of the places; none answers."""
    dialled = []
    for minute in range(60):
        now = 60.0 * minute
        for number in range(4):
            where = f"{places[(4 * minute + number) % len(places)]}/p2p/{peer(1000 + minute)}"
            one.book.introduce(where, str(peer(9 if vouched else 1000 + minute)), now)
        for name, addresses in one.due(now):
            dialled += addresses
            for where in addresses:
                one.book.failed(where, now)
            one.failed(name, now)
    return dialled


def test_a_door_that_strangers_name_is_dialled_once_an_hour_under_whatever_names() -> None:
    one = dialer()
    dialled = dials_in_an_hour(one, [f"/ip4/198.51.100.7/tcp/{2000 + n}" for n in range(4)])
    assert len(dialled) == 4
    due = one.next_due(3600.0)
    assert due is not None and due <= 3600.0
    assert [len(addresses) for _, addresses in one.due(due)] == [4]


@pytest.mark.parametrize(
    ("form", "dials"),
    [
        ("/ip4/198.51.100.7/tcp/{port}", 4),
        ("/ip6/2001:db8::{port:x}/tcp/{port}", 4),
        ("/ip6/2001:db8:{port:x}::1/tcp/{port}", 30),
    ],
)
def test_a_host_that_strangers_name_is_dialled_four_times_an_hour_at_whatever_ports(
    form: str, dials: int
) -> None:
    one = dialer()
    assert len(dials_in_an_hour(one, [form.format(port=2000 + n) for n in range(240)])) == dials


def test_a_neighbour_is_tried_again_after_half_a_minute_and_its_machine_four_times_an_hour() -> (
    None
):
    one, dialled = dialer(), []
    for second in range(0, 3600, 10):
        where = f"/ip4/192.168.1.7/tcp/4021/p2p/{peer(1000 + second)}"
        one.book.introduce(where, BY_MDNS, float(second))
        for name, _ in one.due(float(second)):
            dialled.append(second)
            one.book.failed(where, float(second))
            one.failed(name, float(second))
    assert dialled == [0, 30, 60, 90]


def test_strangers_have_sixty_dials_an_hour_half_of_them_for_whom_nobody_vouches() -> None:
    far = [f"/ip4/{11 + n // 200}.{n % 200}.0.1/tcp/4021" for n in range(240)]
    assert len(dials_in_an_hour(dialer(), far)) in range(30, 34)
    one = dialer(strangers_h_max=999)
    one.book.add(address(9), Source.LEARNED)
    one.book.succeeded(address(9), 1.0)
    one.connected(peer(9), address(9), inbound=True)
    assert len(dials_in_an_hour(one, far, vouched=True)) in range(60, 64)


def test_addresses_that_strangers_name_for_a_peer_that_works_are_counted_too() -> None:
    one = dialer()
    one.book.add(address(9), Source.LEARNED)
    one.book.succeeded(address(9), 1.0)
    dialled = []
    for minute in range(60):
        now = 60.0 * minute
        where = f"/ip4/198.51.100.7/tcp/{2000 + minute}/p2p/{peer(9)}"
        one.book.introduce(where, str(peer(5)), now)
        for name, addresses in one.due(now):
            dialled += [each for each in addresses if each != address(9)]
            for each in addresses:
                one.book.failed(each, now)
            one.failed(name, now)
    assert len(dialled) == 4


def test_strangers_that_wait_for_their_turn_keep_out_nobody_who_is_known() -> None:
    one = dialer(links_wanted=4, outbound_min=0, knocks_h_max=8)
    for number in range(200, 240):
        introduced(one, number, by=number)
    for _ in range(20):
        for name, where in one.due(0.0):
            one.book.failed(where[0], 0.0)
            one.failed(name, 0.0)
    assert len(one.book) > 20
    one.book.add(address(9), Source.LEARNED)
    one.book.succeeded(address(9), 1.0)
    for _ in range(4):
        one.book.failed(address(9), 2.0)  # so that any stranger's score is higher
    assert [name for name, _ in one.due(0.0)] == [peer(9)]


def test_a_relay_that_is_linked_is_asked_for_any_number_of_peers() -> None:
    one = dialer(links_wanted=9)
    relay = f"/ip4/198.51.100.9/tcp/4021/p2p/{peer(9)}"
    for number in range(200, 207):
        where = f"{relay}/p2p-circuit/p2p/{peer(number)}"
        one.book.introduce(where, str(peer(number)), 1.0)
    assert len(one.due(0.0)) == 1
    for number in range(200, 207):
        one.failed(peer(number), 0.0)
    one.connected(peer(9), relay, 100.0, inbound=True)
    assert len(one.due(100.0)) == 7


def test_waking_forgets_all_waits() -> None:
    one = dialer(owners=3, learned=2)
    for _ in range(12):
        due = one.next_due(0.0)
        assert due is not None
        for name, _ in one.due(due):
            one.failed(name, due)
    waiting = one.next_due(due)
    assert waiting is not None and one.due(due) == []
    one.woke(due)
    assert len(one.due(due)) == 5


def test_a_link_found_dead_after_waking_is_dialled_in_that_moment() -> None:
    one = dialer(owners=1)
    one.connected(peer(1), address(1))
    one.woke(100.0)
    one.disconnected(peer(1), 103.0)
    assert [name for name, _ in one.due(103.0)] == [peer(1)]
    one.connected(peer(1), address(1))
    one.disconnected(peer(1), 200.0)
    assert one.due(200.0) == []


def test_a_peer_linked_through_a_relay_is_dialled_directly_now_and_then() -> None:
    one = dialer()
    relay = f"/ip4/198.51.100.9/tcp/4021/p2p/{peer(9)}/p2p-circuit"
    one.book.add(address(1), Source.OWNER)
    one.book.add(f"{relay}/p2p/{peer(1)}", Source.OWNER)
    assert one.book.addresses(peer(1))[0] == address(1)
    one.due(0.0)
    one.connected(peer(1), relay, 0.0)
    assert one.due(9.0) == [] and one.next_due(9.0) == 10.0
    assert one.due(10.0) == [(peer(1), [address(1)])]
    one.failed(peer(1), 12.0)
    due = one.next_due(12.0)
    assert due is not None and 17.0 <= due <= 22.0
    assert one.due(due) == [(peer(1), [address(1)])]
    one.reached(peer(1), due)
    assert one.next_due(due) is None and one.due(due + 1000) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12), st.floats(0, 100)), max_size=60))
def test_whatever_happens_each_peer_is_dialled_once_at_a_time_and_never_when_linked(
    steps: list[tuple[int, int, float]],
) -> None:
    one = dialer(owners=6, learned=6)
    now, dialling, linked = 0.0, set(), set()
    for kind, number, wait_s in steps:
        now += wait_s
        name = peer(number if number <= 6 else 93 + number)
        if kind == 0:
            one.connected(name, address(number), now, inbound=True)
            linked.add(name)
            dialling.discard(name)
        elif kind == 1 and name in linked:
            one.disconnected(name, now)
            linked.discard(name)
        elif kind == 2 and name in dialling:
            one.failed(name, now)
            dialling.discard(name)
        elif kind == 3 and name in dialling:
            one.reached(name, now)
            dialling.discard(name)
        elif kind == 4:
            one.woke(now)
        chosen = [each for each, _ in one.due(now)]
        assert not set(chosen) & (dialling | linked) and len(set(chosen)) == len(chosen)
        dialling.update(chosen)
        assert len(dialling) <= 8
        due = one.next_due(now)
        assert due is None or due > now or len(dialling) == 8


async def test_an_address_that_is_silent_does_not_hold_up_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    book = AddressBook()
    for port in (1, 2, 3):
        book.add(address(1, port), Source.OWNER)
    start, reached = trio.current_time(), []

    async def dial(where: str) -> PeerId:
        if where != address(1, 3):
            await trio.sleep_forever()
        reached.append(trio.current_time() - start)
        loop.on_link(Connected(peer(1), where))
        return peer(1)

    loop = DialLoop(Dialer(ME, book, Random(1)), dial, clock=lambda: 7.0)
    with trio.move_on_after(60):
        await loop.run()
    assert reached == [2.0]
    assert {e.address for e in book if e.last_ok_s} == {address(1, 3)}
    assert all(entry.failures == 0 for entry in book)  # who lost the race has not failed


@pytest.mark.parametrize(
    ("others", "reason", "failures"),
    [
        (1, DialReason.NO_ANSWER, 1),
        (0, DialReason.NO_ANSWER, 0),  # it may be this machine that is not online
        (0, DialReason.REFUSED, 1),  # by a machine that is reached
        (1, DialReason.NO_ROUTE, 0),
        (1, DialReason.NOT_RUNNING, 0),
    ],
)
async def test_an_outage_of_this_machine_is_nobodys_failure(
    autojump_clock: trio.testing.MockClock, others: int, reason: DialReason, failures: int
) -> None:
    book = AddressBook()
    book.introduce(address(1), str(peer(1)), 1.0)
    book.succeeded(address(1), 2.0)

    async def dial(where: str) -> PeerId:
        ended.set()
        raise DialError("failed", reason)

    ended = trio.Event()
    loop = DialLoop(Dialer(ME, book, Random(1)), dial, clock=lambda: 7.0)
    for number in range(others):
        loop.on_link(Connected(peer(50 + number), address(50 + number), inbound=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        await ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [entry.failures for entry in book] == [failures]


async def test_who_comes_in_while_it_is_dialled_has_not_proven_where_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    book = AddressBook()
    book.introduce(address(1, 2001), str(peer(1)), 1.0)
    book.introduce(address(1, 2002), str(peer(1)), 1.0)

    async def dial(where: str) -> PeerId:
        if where == address(1, 2001):
            loop.on_link(Connected(peer(1), "/ip4/198.51.100.1/tcp/50000", inbound=True))
            await trio.sleep_forever()
        return peer(1)  # the transport has a link with it, and dials nobody

    loop = DialLoop(Dialer(ME, book, Random(1)), dial, clock=lambda: 7.0)
    with trio.move_on_after(20):
        await loop.run()
    assert [entry.last_ok_s for entry in book] == [0.0, 0.0]


async def test_waking_calls_off_what_is_dialled_and_asks_the_links_whether_they_live(
    autojump_clock: trio.testing.MockClock,
) -> None:
    book = AddressBook()
    book.add(address(1), Source.OWNER)
    dialled: list[float] = []
    asked: list[tuple[PeerId, float]] = []
    start = trio.current_time()

    async def dial(where: str) -> PeerId:
        dialled.append(trio.current_time() - start)
        if len(dialled) == 1:
            await trio.sleep_forever()  # a connection that is begun on a network that is gone
        loop.on_link(Connected(peer(1), where))
        return peer(1)

    async def probe(name: PeerId, within_s: float) -> bool:
        asked.append((name, within_s))
        await trio.sleep(within_s)
        loop.on_link(Disconnected(name))
        return False

    loop = DialLoop(Dialer(ME, book, Random(1)), dial, clock=lambda: 7.0, probe=probe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        loop.on_link(Connected(peer(2), address(2)))
        await trio.sleep(5)
        loop.woke()
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert dialled == [0.0, 5.0]
    assert asked == [(peer(2), 3.0)]


@pytest.mark.network
async def test_a_name_is_looked_up_when_it_is_dialled() -> None:
    assert await looked_up(f"/dns4/localhost/tcp/4021/p2p/{peer(1)}") == [
        f"/ip4/127.0.0.1/tcp/4021/p2p/{peer(1)}"
    ]
    assert await looked_up(address(1)) == [address(1)]
    with pytest.raises(DialError, match="cannot be looked up"):
        await looked_up(f"/dns4/no-such-name.invalid/tcp/4021/p2p/{peer(1)}")


# ---- over loopback -------------------------------------------------------------------------------


@pytest.mark.network
async def test_a_peer_restarted_on_its_port_is_linked_again() -> None:
    from support_libp2p import next_of, running, transport

    a, key = transport(), os.urandom(32)
    first = transport(key=key)
    book = AddressBook()
    loop = DialLoop(Dialer(a.peer_id(), book, Random(1)), a.dial, clock=lambda: 0.0)
    async with running(a) as nursery:
        nursery.start_soon(loop.run)
        async with running(first):
            book.add(first.addresses()[0], Source.OWNER)
            listen = first.addresses()[0].split("/p2p/")[0]
            loop.stir()
            loop.on_link(await next_of(a, Connected))
        loop.on_link(await next_of(a, Disconnected))
        await trio.sleep(1.0)  # the restart takes a while
        back = transport(listen, key)
        async with running(back):
            with trio.fail_after(60):
                assert (await next_of(a, Connected)).peer == back.peer_id()
