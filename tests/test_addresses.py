"""The address book: what it keeps, in which order, and what it does not take."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.addresses import BY_MDNS, INTRODUCED_BY_ONE_MAX, AddressBook, AddressError, Source
from gossip.ports import PeerId

DAY_S = 86_400.0


def peer(number: int) -> PeerId:
    return PeerId(f"12D3KooW{number:044d}")


def address(number: int, port: int = 4021) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{peer(number)}"


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


def test_names_and_ipv6_are_noted() -> None:
    book = AddressBook()
    for where in ("/dns4/node.example.org", "/dns6/node.example.org", "/ip6/2001:db8::7"):
        book.add(f"{where}/tcp/4021/p2p/{peer(1)}", Source.OWNER)
    assert len(book.addresses(peer(1))) == 3


@pytest.mark.parametrize("host", ["/ip4/0.0.0.0/tcp/4021", "/ip6/::/tcp/1", "/ip4/10.0.0.1/tcp/0"])
def test_where_a_node_listens_is_no_address_to_dial(host: str) -> None:
    with pytest.raises(AddressError, match="is where a node listens"):
        AddressBook().add(f"{host}/p2p/{peer(1)}", Source.OWNER)


def test_what_worked_lately_is_tried_before_what_worked_once() -> None:
    book = AddressBook()
    for number, day in ((1, 1.0), (2, 400.0), (3, 0.0), (4, 399.0)):
        book.add(address(number), Source.LEARNED)
        if day:
            book.succeeded(address(number), day * DAY_S)
    book.add(address(5), Source.LEARNED)
    book.failed(address(5))
    assert book.peers() == [peer(2), peer(4), peer(1), peer(3), peer(5)]
    for _ in range(3):
        book.failed(address(2))
    assert book.peers()[0] == peer(4)


def test_an_address_that_a_peer_named_is_tried_once_and_not_taken_again_for_an_hour() -> None:
    book = AddressBook()
    assert book.introduce(address(1), peer(9), 100.0)
    assert not book.introduce(address(1), peer(8), 100.0)
    assert book.introducer(peer(1)) == peer(9)
    book.failed(address(1), 200.0)
    assert len(book) == 0
    assert not book.introduce(address(1), peer(9), 3799.0)
    assert book.introduce(address(1), peer(8), 3801.0)
    book.succeeded(address(1), 3900.0)
    book.failed(address(1), 4000.0)
    assert book.peers() == [peer(1)]  # it works at times


def test_a_neighbour_is_taken_again_after_half_a_minute_and_all_after_a_change_of_network() -> None:
    book = AddressBook()
    book.introduce(address(1), BY_MDNS, 100.0)
    book.introduce(address(2), peer(9), 100.0)
    assert book.introducer(peer(1)) == ""
    book.failed(address(1), 100.0)
    book.failed(address(2), 100.0)
    assert not book.introduce(address(1), BY_MDNS, 120.0)
    assert book.introduce(address(1), BY_MDNS, 131.0)
    book.forgive()
    assert book.introduce(address(2), peer(9), 131.0)


def test_the_owners_word_makes_an_introduced_address_one_that_is_kept() -> None:
    book = AddressBook()
    book.introduce(address(1), peer(9), 100.0)
    book.add(address(1), Source.OWNER)
    for _ in range(50):
        book.failed(address(1), 200.0)
    assert book.is_owners(peer(1)) and book.introducer(peer(1)) == ""


def test_one_introducer_has_a_bounded_number_of_addresses_waiting() -> None:
    book = AddressBook()
    for number in range(100, 100 + 3 * INTRODUCED_BY_ONE_MAX):
        book.introduce(address(number), peer(9), 1.0)
    assert len(book) == INTRODUCED_BY_ONE_MAX
    assert peer(100 + 3 * INTRODUCED_BY_ONE_MAX - 1) in book


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_no_flood_pushes_out_what_the_owner_named_or_what_works(seed: int) -> None:
    rng, book = Random(seed), AddressBook(peers_max=20, addresses_per_peer_max=2)
    for number in range(1, 6):
        book.add(address(number), Source.OWNER)
    for number in range(6, 16):
        book.introduce(address(number), peer(number), 1.0)
        book.succeeded(address(number), 1.0)
    for step in range(300):
        number = rng.randrange(1, 2000)
        where = f"/ip4/198.51.{number % 7}.1/tcp/{rng.randrange(1024, 9999)}/p2p/{peer(number)}"
        book.introduce(where, str(peer(rng.randrange(2000, 2003))), float(step))
        if number > 15 and rng.random() < 0.3:
            book.failed(where, float(step))
        assert len(book) <= 20 and all(len(book.addresses(p)) <= 2 for p in book.peers())
    assert {peer(number) for number in range(1, 16)} <= set(book.peers())
    assert list(AddressBook.from_json(book.to_json())) == list(book)


def test_of_strangers_the_one_of_the_largest_crowd_goes_first() -> None:
    book = AddressBook(peers_max=12)
    for number in range(4):
        book.introduce(f"/ip4/203.{number}.0.1/tcp/4021/p2p/{peer(number)}", peer(50 + number), 1.0)
    for number in range(100, 200):  # each in the name of another introducer, from one network
        book.introduce(f"/ip4/198.51.0.1/tcp/{number + 1024}/p2p/{peer(number)}", f"x{number}", 1.0)
    assert {peer(number) for number in range(4)} <= set(book.peers()) and len(book) == 12


def test_what_worked_lately_outlives_an_outage_and_a_flood_of_new_names() -> None:
    book = AddressBook()
    proven = [f"/ip4/{20 + n}.1.1.1/tcp/4021/p2p/{peer(n)}" for n in range(200)]
    for number, where in enumerate(proven):
        book.introduce(where, peer(1000 + number), 1e6)
        book.succeeded(where, 1e6)
        for _ in range(6):
            book.failed(where, 1e6)
    for number in range(2000, 2000 + 16 * 32):
        where = f"/ip4/{11 + number % 200}.{number % 199}.9.9/tcp/4021/p2p/{peer(number)}"
        book.introduce(where, f"x{number // 32}", 1e6)
    assert len(book) == 256 and {peer(n) for n in range(200)} <= set(book.peers())


def test_a_book_full_of_what_works_has_room_for_news_and_forgets_what_is_long_gone() -> None:
    book = AddressBook(peers_max=16)
    for number in range(16):
        book.introduce(address(number), peer(number), 1.0)
        book.succeeded(address(number), DAY_S if number else 30 * DAY_S)
    for number in range(1, 16):
        book.failed(address(number), 30 * DAY_S)
        book.failed(address(number), 30 * DAY_S)
    for number in range(100, 104):
        where = f"/ip4/198.{number}.0.1/tcp/4021/p2p/{peer(number)}"
        book.introduce(where, peer(number), 30 * DAY_S)
    assert {peer(0), *(peer(n) for n in range(100, 104))} <= set(book.peers())
    fresh = AddressBook(peers_max=16)
    for number in range(16):
        fresh.introduce(address(number), peer(number), 1.0)
        fresh.succeeded(address(number), 1.0)
        fresh.failed(address(number), 1.0)
        fresh.failed(address(number), 1.0)
    for number in range(100, 110):
        fresh.introduce(address(number), f"x{number}", 1.0)
    assert sum(peer(n) in fresh for n in range(16)) == 14 and peer(109) in fresh
