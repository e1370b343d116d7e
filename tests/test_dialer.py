"""The address book and the dialer, alone and over loopback."""

from __future__ import annotations

import os
from random import Random

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gossip.addresses import AddressBook, AddressError, Source
from gossip.dialer import Dialer, DialerConfig, DialLoop
from gossip.ports import Connected, Disconnected, PeerId
from gossip.transport_config import DialError


def peer(number: int) -> PeerId:
    return PeerId(f"12D3KooW{number:044d}")


def address(number: int, port: int = 4021) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{peer(number)}"


ME = peer(0)


# ---- the book ------------------------------------------------------------------------------------


def test_a_book_survives_its_json() -> None:
    book = AddressBook()
    book.add(address(1), Source.OWNER)
    book.add(address(2), Source.LEARNED)
    book.succeeded(address(2), 1_800_000_000.0)
    book.failed(address(1))
    again = AddressBook.from_json(book.to_json())
    assert list(again) == list(book)
    assert again.peers() == [peer(1), peer(2)]


def test_a_damaged_book_is_an_error_and_not_an_empty_book() -> None:
    for damaged in (b"", b"{}", b'[{"address": 1}]', b'[{"address": "/x", "extra": 1}]'):
        with pytest.raises(msgspec.DecodeError):
            AddressBook.from_json(damaged)
    with pytest.raises(AddressError):
        AddressBook.from_json(b'[{"address": "/ip4/192.0.2.1/tcp/1"}]')


@pytest.mark.parametrize(
    "wrong", ["", "localhost:4021", "/ip4/192.0.2.1/tcp/4021", "/p2p/", f"x/p2p/{peer(1)}"]
)
def test_only_the_address_of_a_peer_is_noted(wrong: str) -> None:
    with pytest.raises(AddressError, match="ends in /p2p/PEER"):
        AddressBook().add(wrong, Source.OWNER)


def test_learned_addresses_are_bounded_and_never_push_out_the_owners_or_what_works() -> None:
    book = AddressBook(peers_max=10, addresses_per_peer_max=2)
    book.add(address(1), Source.OWNER)
    book.add(address(2), Source.LEARNED)
    book.succeeded(address(2), 1.0)
    for number in range(3, 100):
        book.add(address(number), Source.LEARNED)
        book.add(address(2, port=number), Source.LEARNED)
    assert len(book) == 10
    assert {peer(1), peer(2)} <= set(book.peers())
    assert address(2) in book.addresses(peer(2)) and len(book.addresses(peer(2))) == 2


def test_an_address_that_works_is_tried_before_one_that_fails() -> None:
    book = AddressBook()
    for port in (1, 2, 3):
        book.add(address(1, port), Source.LEARNED)
    book.failed(address(1, 1))
    book.succeeded(address(1, 3), 5.0)
    assert book.addresses(peer(1)) == [address(1, 3), address(1, 2), address(1, 1)]


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


def test_no_more_than_four_dials_run_at_a_time() -> None:
    one = dialer(owners=9)
    first = [name for name, _ in one.due(0.0)]
    assert len(first) == 4 and one.next_due() is None
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
