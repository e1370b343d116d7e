"""Circuit relay as bookkeeping: what a relay gives away, and which reservations a node keeps."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.relaying import Bucket, Circuit, Keeper, Ledger, Status
from gossip.transport_config import RelayLimits, TransportConfig

R1 = "/ip4/11.0.0.1/tcp/4021/p2p/12D3KooWR5VJ95ariMWis5mYWnZESbp66nTKwyZWU5CFbndGkGVH"
R2 = "/ip4/11.0.0.2/tcp/4021/p2p/12D3KooWKqFyiUNqLpmfqTUGxuN3FYasq2m9tEB1Lwhn9aBpGcVY"
R1_PEER, R2_PEER = (relay.rpartition("/")[2] for relay in (R1, R2))


def ledger(**limits: float) -> Ledger:
    return Ledger(RelayLimits(**limits), 0.0)  # type: ignore[arg-type]


def test_a_peer_is_reached_only_while_it_has_a_reservation() -> None:
    book = ledger(reservation_s=100)
    assert book.open("bob", "bob", "alice", 0) is Status.NO_RESERVATION
    assert book.reserve("alice", "host", 0) is Status.OK
    assert isinstance(book.open("bob", "bob", "alice", 99), Circuit)
    assert book.open("bob", "bob", "alice", 100) is Status.NO_RESERVATION


def test_a_reservation_ends_with_the_connection_that_it_was_made_over() -> None:
    book = ledger()
    book.reserve("alice", "host", 0)
    book.gone("alice")
    assert book.open("bob", "bob", "alice", 1) is Status.NO_RESERVATION


def test_reservations_are_counted_in_all_and_for_each_host_and_renewing_is_free() -> None:
    book = ledger(reservations_max=3, reservations_per_host_max=2)
    assert [book.reserve(peer, "one", 0) for peer in ("a", "b", "c")] == [
        Status.OK,
        Status.OK,
        Status.RESERVATION_REFUSED,
    ]
    assert book.reserve("d", "two", 0) is Status.OK
    assert book.reserve("e", "three", 0) is Status.RESERVATION_REFUSED
    assert book.reserve("a", "one", 1) is Status.OK
    assert book.reservations(1) == 3


def test_circuits_are_counted_for_both_ends_and_in_all_until_they_are_closed() -> None:
    book = ledger(circuits_max=3, circuits_per_peer_max=2)
    for target in ("alice", "carol", "dave"):
        book.reserve(target, target, 0)
    first = book.open("bob", "bob", "alice", 0)
    assert isinstance(first, Circuit) and isinstance(book.open("eve", "eve", "alice", 0), Circuit)
    assert book.open("dave", "dave", "alice", 0) is Status.RESOURCE_LIMIT_EXCEEDED  # alice has two
    assert isinstance(book.open("bob", "bob", "carol", 0), Circuit)
    assert book.open("eve", "eve", "dave", 0) is Status.RESOURCE_LIMIT_EXCEEDED  # three in all
    book.close(first)
    assert isinstance(book.open("eve", "eve", "dave", 0), Circuit)


def test_the_names_of_one_host_share_the_circuits_that_it_may_have() -> None:
    book = ledger(circuits_per_host_max=2)
    for target in ("alice", "carol", "dave"):
        book.reserve(target, target, 0)
    assert isinstance(book.open("m1", "mallory", "alice", 0), Circuit)
    second = book.open("m2", "mallory", "carol", 0)
    assert isinstance(second, Circuit)
    assert book.open("m3", "mallory", "dave", 0) is Status.RESOURCE_LIMIT_EXCEEDED
    assert isinstance(book.open("bob", "bob", "dave", 0), Circuit)
    book.close(second)
    assert isinstance(book.open("m3", "mallory", "dave", 0), Circuit)


def test_who_holds_most_of_a_targets_circuits_gives_one_to_who_has_none() -> None:
    book = ledger(circuits_per_peer_max=4)
    book.reserve("alice", "alice", 0)
    theirs = [book.open(f"m{n}", "mallory", "alice", n) for n in range(4)]
    assert all(isinstance(each, Circuit) for each in theirs)
    assert book.open("m4", "mallory", "alice", 9) is Status.RESOURCE_LIMIT_EXCEEDED
    assert isinstance(book.open("bob", "bob", "alice", 9), Circuit)
    assert isinstance(book.open("carol", "bob", "alice", 9), Circuit)
    assert book.open("dave", "bob", "alice", 9) is Status.RESOURCE_LIMIT_EXCEEDED  # two each
    assert [isinstance(each, Circuit) and each.dropped for each in theirs] == [True] * 2 + [
        False
    ] * 2
    assert book.circuits == 4
    first = theirs[0]
    assert isinstance(first, Circuit) and book.spend(first, 1, 9) is None
    book.close(first)  # as whoever carried it does
    assert book.circuits == 4


def test_who_holds_most_of_the_relay_gives_one_to_who_has_none() -> None:
    book = ledger(circuits_max=4)
    for target in ("alice", "carol"):
        book.reserve(target, target, 0)
    theirs = [book.open("mallory", "mallory", "alice", n) for n in range(4)]
    assert isinstance(book.open("bob", "bob", "carol", 9), Circuit)
    assert [isinstance(each, Circuit) and each.dropped for each in theirs] == [
        True,
        False,
        False,
        False,
    ]


def test_a_target_that_calls_others_itself_takes_nothing_from_them() -> None:
    book = ledger(circuits_per_peer_max=2)
    for target in ("alice", "carol"):
        book.reserve(target, target, 0)
    own = [book.open("alice", "alice", "carol", n) for n in range(2)]
    assert book.open("bob", "bob", "alice", 9) is Status.RESOURCE_LIMIT_EXCEEDED
    assert not any(isinstance(each, Circuit) and each.dropped for each in own)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), max_size=80))
def test_no_host_is_refused_at_a_target_while_another_has_two_more(
    calls: list[tuple[str, str]],
) -> None:
    book = ledger(circuits_per_peer_max=5, circuits_max=12, circuits_per_host_max=12)
    held: list[Circuit] = []
    for target in "xyz":
        book.reserve(target, target, 0)
    for number, (host, target) in enumerate(calls):
        got = book.open(f"{host}{number}", host, target, number)
        held = [each for each in held if not each.dropped]
        if isinstance(got, Circuit):
            held.append(got)
        elif sum(each.target == target for each in held) == 5:
            of_target = [each.host for each in held if each.target == target]
            assert max(map(of_target.count, of_target)) <= of_target.count(host) + 1
        assert book.circuits == len(held) <= 12
        assert all(sum(each.target == name for each in held) <= 5 for name in "xyz")


def test_a_circuit_ends_after_its_bytes_and_after_its_time() -> None:
    book = ledger(circuit_bytes_max=1000, circuit_s=60)
    book.reserve("alice", "host", 0)
    circuit = book.open("bob", "bob", "alice", 0)
    assert isinstance(circuit, Circuit)
    assert book.spend(circuit, 1000, 59) is not None
    assert book.spend(circuit, 1, 59) is None
    other = book.open("eve", "eve", "alice", 0)
    assert isinstance(other, Circuit) and book.spend(other, 1, 60) is None


def test_two_circuits_share_the_pace_of_the_whole_relay() -> None:
    book = ledger(circuit_bytes_per_s=1000, bytes_per_s_max=1500)
    book.reserve("alice", "host", 0)
    one, two = book.open("bob", "bob", "alice", 0), book.open("eve", "eve", "alice", 0)
    assert isinstance(one, Circuit) and isinstance(two, Circuit)
    assert book.spend(one, 1000, 0) == 0
    assert book.spend(two, 1000, 0) == pytest.approx(500 / 1500)
    assert book.spend(one, 500, 0) == pytest.approx(1000 / 1500)


def test_who_asks_too_often_is_not_heard_until_later() -> None:
    book = ledger(asks_per_min=4)
    assert [book.heard("eve", 0) for _ in range(3)] == [True, True, False]
    assert book.heard("bob", 0)
    assert book.heard("eve", 15)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 5)), max_size=40))
def test_no_more_than_the_burst_and_the_pace_passes_a_bucket(
    takes: list[tuple[int, float]],
) -> None:
    bucket, now, passed = Bucket(1000, 2000, 0.0), 0.0, 0
    for count, pause in takes:
        now += bucket.take(count, now)  # whoever takes waits until it is paid
        passed += count
        assert passed <= 2000 + 1000 * now + 1e-6
        now += pause


# ---- the client ----------------------------------------------------------------------------------


def test_a_reservation_is_renewed_before_it_ends_and_sooner_than_a_wrong_clock_says() -> None:
    keeper = Keeper([R1], Random(1))
    for ttl_s, soonest, latest in (
        (3600, 700, 900),
        (300, 110, 150),
        (-5000, 45, 60),
        (1e9, 700, 900),
    ):
        assert keeper.due(0) == [R1] and keeper.due(0) == []
        keeper.granted(R1, ttl_s, 0)
        assert soonest <= keeper.next_due() <= latest and keeper.reserved(keeper.next_due()) == [R1]
        keeper = Keeper([R1], Random(1))


def test_a_relay_that_fails_is_asked_less_and_less_often_and_never_given_up() -> None:
    keeper, now, pauses = Keeper([R1], Random(1)), 0.0, []
    for _ in range(12):
        assert keeper.due(now) == [R1]
        keeper.failed(R1, "no answer", now)
        pauses.append(keeper.next_due() - now)
        now = keeper.next_due()
    assert pauses[0] <= 2 and pauses[3] > pauses[0] and 150 <= pauses[-1] <= 300
    assert keeper.states(now)[0].why == "no answer"


def test_a_reservation_is_made_again_when_the_connection_to_the_relay_ends() -> None:
    keeper = Keeper([R1, R2], Random(1))
    for relay in keeper.due(0):
        keeper.granted(relay, 3600, 0)
    assert keeper.reserved(1) == [R1, R2] and keeper.holds(R1_PEER, 1)
    keeper.lost(R1_PEER, 10)
    assert keeper.reserved(10) == [R2] and not keeper.holds(R1_PEER, 10)
    assert keeper.next_due() <= 12 and keeper.due(12) == [R1]


def test_a_renewal_that_fails_leaves_what_was_granted() -> None:
    keeper = Keeper([R1], Random(1))
    keeper.due(0)
    keeper.granted(R1, 3600, 0)
    assert keeper.due(900) == [R1]
    keeper.failed(R1, "no answer", 900)
    assert keeper.reserved(1000) == [R1] and keeper.reserved(3600) == []


def test_only_three_relays_are_kept() -> None:
    relays = [R1.replace("11.0.0.1", f"11.0.0.{n}") for n in range(5)]
    assert Keeper(relays, Random(1)).due(0) == relays[:3]


@pytest.mark.parametrize("key", ["abc", "g" * 64, "A" * 64, "0" * 63])
def test_a_swarm_key_that_is_none_is_refused_when_the_config_is_read(key: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"swarm_key": key}, TransportConfig)
    assert msgspec.convert({"swarm_key": "0" * 64}, TransportConfig).swarm_key
