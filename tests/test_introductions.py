"""Peers that tell of peers: what an honest mesh learns by it, and what a liar gains."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
import second_decoder
from hypothesis import given
from hypothesis import strategies as st

from gossip.addresses import AddressBook
from gossip.introductions import (
    AGE_H_MAX,
    PLACES_MAX,
    FrameIn,
    IntroductionEffect,
    Introductions,
    IntroductionsConfig,
    Learned,
    LookDue,
    Met,
    Moved,
    Parted,
    Refused,
    SendFrame,
    WakeAfter,
    signed,
)
from gossip.keys import private_key, public_bytes
from gossip.multiaddrs import peer_of_key
from gossip.ports import PeerId
from gossip.wire import (
    HOUR_S,
    PEERS_FRAME_BYTES_MAX,
    RECORDS_MAX,
    AddressRecord,
    Peers,
    PeersGet,
    PeersMessage,
    WireError,
    decode_peers,
    encode,
)

NOW_S = 1_800_000_000
HOUR = NOW_S // HOUR_S
LAN = ("192.168.1.0/24",)


def key_of(number: int) -> Any:
    return private_key(number.to_bytes(32))


def peer(number: int) -> PeerId:
    return peer_of_key(public_bytes(key_of(number)))


def host(number: int) -> str:
    return f"/ip4/198.51.{number // 250}.{number % 250 + 1}"


def record(number: int, *places: str, ts_h: int = HOUR) -> AddressRecord:
    named = places or (f"{host(number)}/tcp/4021",)
    return signed(key_of(number), tuple(place.encode() for place in named), ts_h)


class Node:
    """A core, and what came of each event."""

    def __init__(self, number: int, *addresses: str, told: bool = True, **config: Any) -> None:
        self.peer = peer(number)
        key = key_of(number) if told else None
        self.core = Introductions(self.peer, key, Random(number), IntroductionsConfig(**config))
        if addresses:
            self.core.handle(Moved(addresses, LAN, NOW_S))

    def meet(self, number: int, at: str = "", now_s: int = NOW_S) -> list[IntroductionEffect]:
        return self.core.handle(Met(peer(number), at or f"{host(number)}/tcp/50000", now_s))

    def hear(self, number: int, message: Any, now_s: int = NOW_S) -> list[IntroductionEffect]:
        frame = message if isinstance(message, bytes) else encode(message)
        return self.core.handle(FrameIn(peer(number), frame, now_s))

    def told_to(self, number: int, now_s: int = NOW_S) -> tuple[AddressRecord, ...]:
        (effect,) = self.hear(number, PeersGet(RECORDS_MAX - 1), now_s)
        assert isinstance(effect, SendFrame) and len(effect.frame) <= PEERS_FRAME_BYTES_MAX
        answer = decode_peers(effect.frame)
        assert isinstance(answer, Peers)
        return answer.records


def places(records: tuple[AddressRecord, ...]) -> set[str]:
    return {place.decode() for record in records for place in record.places}


OWN = f"{host(1)}/tcp/4021"


# Asking and telling -------------------------------------------------------------------------------


def test_who_is_met_is_asked_and_tells_of_itself() -> None:
    node = Node(1, OWN)
    asked = node.meet(2)
    assert [type(effect) for effect in asked] == [SendFrame, WakeAfter]
    assert asked[0] == SendFrame(peer(2), encode(PeersGet(RECORDS_MAX - 1)))
    assert places(node.told_to(2)) == {OWN}
    assert node.hear(2, Peers((record(2),))) == [
        Learned(peer(2), (f"{host(2)}/tcp/4021/p2p/{peer(2)}",), peer(2))
    ]


def test_a_peer_that_was_met_is_introduced_to_the_next_one() -> None:
    node = Node(1, OWN)
    node.meet(2)
    node.hear(2, Peers((record(2),)))
    node.meet(3)
    assert places(node.told_to(3)) == {OWN, f"{host(2)}/tcp/4021"}
    assert places(node.told_to(2)) == {OWN}  # not of itself


def test_a_peer_is_introduced_for_a_day_after_it_has_gone() -> None:
    node = Node(1)
    node.meet(2)
    node.hear(2, Peers((record(2),)))
    node.core.handle(Parted(peer(2), NOW_S))
    node.meet(3)
    assert places(node.told_to(3, NOW_S + 23 * HOUR_S)) == {f"{host(2)}/tcp/4021"}
    assert places(node.told_to(3, NOW_S + 25 * HOUR_S)) == set()


def test_what_a_peer_told_of_others_is_not_passed_on_until_they_are_met() -> None:
    node = Node(1)
    node.meet(2)
    learned = node.hear(2, Peers((record(2), record(3))))
    assert [effect.peer for effect in learned if isinstance(effect, Learned)] == [peer(2), peer(3)]
    node.meet(4)
    assert places(node.told_to(4)) == {f"{host(2)}/tcp/4021"}
    node.meet(3, f"{host(3)}/tcp/4021")
    assert places(node.told_to(4)) == {f"{host(2)}/tcp/4021", f"{host(3)}/tcp/4021"}


def test_an_address_that_a_peer_was_not_seen_at_is_not_passed_on() -> None:
    """Else a mesh could be made to knock at a victim's door: each peer by the word of another."""
    node = Node(1)
    node.meet(2)
    victim = "/ip4/203.0.113.9/tcp/8080"
    assert node.hear(2, Peers((record(2, victim),))) == []  # nor tried here
    node.meet(3)
    assert node.told_to(3) == ()
    node.core.handle(LookDue(NOW_S + 300))
    both = record(2, f"{host(2)}/tcp/4021", victim)
    assert node.hear(2, Peers((both,)), NOW_S + 300) == [
        Learned(peer(2), (f"{host(2)}/tcp/4021/p2p/{peer(2)}",), peer(2))
    ]
    assert node.told_to(3, NOW_S + 300) == ()


def test_an_address_through_a_relay_is_passed_on_if_the_relay_is_known_there() -> None:
    node = Node(1)
    relayed = f"{host(9)}/tcp/4021/p2p/{peer(9)}/p2p-circuit"
    node.meet(2)
    assert node.hear(2, Peers((record(2, relayed),))) == []
    node.meet(3)
    assert node.told_to(3) == ()
    node.meet(9, f"{host(9)}/tcp/4021")
    assert places(node.told_to(3)) == {relayed}


def test_a_peer_names_itself_only_where_it_is_linked_from() -> None:
    """Else who makes itself a new name for each link sends this node wherever it likes."""
    relay, other = f"{host(9)}/tcp/4021/p2p/{peer(9)}", f"{host(8)}/tcp/4021/p2p/{peer(8)}"
    for at, place, tried in (
        (f"{host(2)}/tcp/50000", f"{host(2)}/tcp/4021", True),
        (f"{host(2)}/tcp/50000", f"{host(3)}/tcp/4021", False),
        (f"{host(2)}/tcp/50000", f"{relay}/p2p-circuit", False),
        (f"{relay}/p2p-circuit", f"{relay}/p2p-circuit", True),
        (f"{relay}/p2p-circuit/p2p/{peer(2)}", f"{relay}/p2p-circuit", True),
        (f"{relay}/p2p-circuit", f"{other}/p2p-circuit", False),
        (f"{relay}/p2p-circuit", f"{host(9)}/tcp/4021", False),
        ("/ip4/127.0.0.1/tcp/50000", f"{host(2)}/tcp/4021", False),
    ):
        node = Node(1, OWN)
        node.meet(2, at)
        assert bool(node.hear(2, Peers((record(2, place),)))) is tried, (at, place)
    node = Node(1, OWN)
    node.meet(9, f"{host(9)}/tcp/4021")
    node.meet(2)
    assert node.hear(2, Peers((record(2, f"{relay}/p2p-circuit"),)))  # a relay that is known there


def test_a_local_network_is_told_on_that_network_alone() -> None:
    lan, loop = "/ip4/192.168.1.7/tcp/4021", "/ip4/127.0.0.1/tcp/4021"
    node = Node(1, OWN, lan, loop)
    node.meet(2)
    node.meet(3, "/ip4/192.168.1.9/tcp/50000")
    node.meet(4, "/ip4/127.0.0.1/tcp/50000")
    assert places(node.told_to(2)) == {OWN}
    assert places(node.told_to(3)) == {OWN, lan}
    assert places(node.told_to(4)) == {OWN, lan, loop}
    node.meet(5, f"{host(9)}/tcp/1/p2p/{peer(9)}/p2p-circuit")
    assert places(node.told_to(5)) == {OWN}
    node.hear(3, Peers((record(3, "/ip4/192.168.1.9/tcp/4021"),)))
    assert places(node.told_to(2)) == {OWN}
    assert places(node.told_to(4)) == {OWN, lan, loop, "/ip4/192.168.1.9/tcp/4021"}


def test_who_does_not_want_to_be_introduced_tells_nothing_of_itself() -> None:
    node = Node(1, OWN, told=False)
    node.meet(2)
    node.hear(2, Peers((record(2),)))
    node.meet(3)
    assert places(node.told_to(3)) == {f"{host(2)}/tcp/4021"}


def test_a_node_without_an_address_from_outside_tells_none() -> None:
    node = Node(1, "/ip4/192.168.1.7/tcp/4021", "/ip4/127.0.0.1/tcp/4021")
    node.meet(2)
    assert node.told_to(2) == ()


def test_an_own_record_has_at_most_four_places_and_follows_the_machine() -> None:
    node = Node(1, *(f"{host(n)}/tcp/4021" for n in range(9)))
    node.meet(2)
    (own,) = node.told_to(2)
    assert len(own.places) == PLACES_MAX
    node.core.handle(Moved((f"{host(20)}/tcp/4021",), LAN, NOW_S + 60))
    (own,) = node.told_to(2)
    assert places((own,)) == {f"{host(20)}/tcp/4021"}
    node.core.handle(LookDue(NOW_S + 25 * HOUR_S))
    (own,) = node.told_to(2, NOW_S + 25 * HOUR_S)
    assert own.ts_h == HOUR + 25


def asked(effects: list[IntroductionEffect]) -> list[PeerId]:
    return [effect.peer for effect in effects if isinstance(effect, SendFrame)]


def pauses(effects: list[IntroductionEffect]) -> list[float]:
    return [effect.delay_s for effect in effects if isinstance(effect, WakeAfter)]


def test_one_peer_is_asked_at_a_look_while_links_are_lacking_and_else_seldom() -> None:
    node = Node(1, links_wanted=2, ask_again_s=1800.0)
    node.meet(2)
    assert asked(node.core.handle(LookDue(NOW_S + 5))) == [peer(2)]
    node.meet(3, now_s=NOW_S + 6)
    assert asked(node.core.handle(LookDue(NOW_S + 15))) == []
    node.core.handle(Parted(peer(3), NOW_S + 200))
    assert asked(node.core.handle(LookDue(NOW_S + 360))) == [peer(2)]
    node.meet(3, now_s=NOW_S + 365)
    assert asked(node.core.handle(LookDue(NOW_S + 540))) == []
    assert asked(node.core.handle(LookDue(NOW_S + 360 + 1800))) == [peer(2)]


def test_looks_grow_rarer_and_a_lost_link_makes_them_frequent_again() -> None:
    node = Node(1)
    found = pauses(node.meet(2)) + pauses(node.meet(3))
    for number in range(7):
        found += pauses(node.core.handle(LookDue(NOW_S + 1000 * number)))
    assert found == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 180.0, 180.0]
    node.core.handle(Parted(peer(3), NOW_S))
    assert pauses(node.core.handle(LookDue(NOW_S))) == [5.0]
    node.core.handle(Parted(peer(2), NOW_S))
    assert pauses(node.core.handle(LookDue(NOW_S))) == []  # nobody is there to be asked


def test_a_link_that_comes_and_goes_is_not_asked_each_time() -> None:
    node, answering = Node(1), Node(2)
    sent, answered = 0, 0
    for second in range(600):
        frames = asked(node.meet(2, now_s=NOW_S + second))
        if second % 5 == 0:
            frames += asked(node.core.handle(LookDue(NOW_S + second)))
        if second == 0:
            answering.meet(1)
        for _ in frames:
            sent += 1
            answer = answering.hear(1, PeersGet(RECORDS_MAX - 1), NOW_S + second)
            answered += isinstance(answer[0], SendFrame)
        node.core.handle(Parted(peer(2), NOW_S + second))
    assert sent == answered == 3 + 600 // 90  # and all that is asked is answered


# Liars --------------------------------------------------------------------------------------------


def refusals(effects: list[IntroductionEffect]) -> list[tuple[str, bool]]:
    return [(e.reason, e.blame) for e in effects if isinstance(e, Refused)]


def test_a_record_that_another_key_signed_is_blamed_on_who_told_it() -> None:
    node = Node(1)
    node.meet(2)
    true = record(3)
    for forged in (
        msgspec.structs.replace(true, key=public_bytes(key_of(4))),
        msgspec.structs.replace(true, places=(b"/ip4/203.0.113.9/tcp/8080",)),
        msgspec.structs.replace(true, ts_h=HOUR - 1),
        msgspec.structs.replace(true, sig=bytes(64)),
    ):
        node.core.handle(Parted(peer(2), NOW_S))
        node.core = Introductions(peer(1), None, Random(1))
        node.meet(2)
        assert refusals(node.hear(2, Peers((forged,)))) == [("address record forged", True)]


@pytest.mark.parametrize(
    "place",
    [
        "nonsense",
        "/ip4/198.51.100.7/udp/4021/quic-v1",
        f"/ip4/198.51.100.7/tcp/4021/p2p/{peer(7)}",
        "/ip4/198.51.100.7/tcp/99999",
        "\x00",
    ],
)
def test_a_place_that_is_no_address_is_blamed_on_who_told_it(place: str) -> None:
    node = Node(1)
    node.meet(2)
    told = node.hear(2, Peers((record(3, place),)))
    assert refusals(told) == [("address record malformed", True)]


def test_places_of_two_networks_do_not_share_a_record() -> None:
    node = Node(1)
    node.meet(2)
    mixed = record(2, f"{host(2)}/tcp/4021", "/ip4/192.168.1.9/tcp/4021")
    assert refusals(node.hear(2, Peers((mixed,)))) == [("address record malformed", True)]


@pytest.mark.parametrize("ts_h", [HOUR - AGE_H_MAX - 1, HOUR + 3, 0, 2**32 - 1])
def test_a_record_out_of_date_is_refused_without_blame(ts_h: int) -> None:
    node = Node(1)
    node.meet(2)
    told = node.hear(2, Peers((record(3, ts_h=ts_h),)))
    assert refusals(told) == [("address record out of date", False)]


def test_an_older_record_changes_nothing() -> None:
    node = Node(1)
    node.meet(2)
    assert node.hear(2, Peers((record(2),)))
    node.core.handle(LookDue(NOW_S + 300))
    old = record(2, "/ip4/203.0.113.9/tcp/4021", ts_h=HOUR - 1)
    assert node.hear(2, Peers((old,)), NOW_S + 300) == []


@pytest.mark.parametrize(
    ("at", "place"),
    [
        (f"{host(2)}/tcp/50000", "/ip4/127.0.0.1/tcp/8080"),  # this machine's own services
        (f"{host(2)}/tcp/50000", "/ip4/192.168.1.1/tcp/8080"),  # a printer beside it
        ("/ip4/192.168.1.9/tcp/50000", "/ip4/127.0.0.1/tcp/8080"),
        ("/ip4/192.168.1.9/tcp/50000", "/ip4/10.0.0.1/tcp/8080"),  # another network of ours
        (f"{host(2)}/tcp/50000", f"{host(3)}/tcp/25"),  # somebody's mail server
        (f"{host(2)}/tcp/50000", "/ip4/169.254.169.254/tcp/8080"),  # a cloud's metadata
        (f"{host(2)}/tcp/50000", "/dns4/localhost/tcp/8080"),
    ],
)
def test_nobody_sends_this_node_where_it_alone_can_go(at: str, place: str) -> None:
    node = Node(1, OWN)
    node.meet(2, at)
    told = node.hear(2, Peers((record(2, place),)))
    assert refusals(told) == [("address record of another network", False)]


@pytest.mark.parametrize(
    "place",
    [
        "/ip4/203.0.113.5",  # this machine, as the internet knows it
        "/ip4/203.0.113.9",  # beside it in a data centre, where it is let through
        "/ip4/203.0.113.255",
        "/ip6/64:ff9b::a00:1",  # 10.0.0.1, by a translator
        "/ip6/64:ff9b::7f00:1",
        "/ip6/64:ff9b:1::a00:1",
        "/ip6/2002:7f00:1::1",
        "/ip6/2001:0:7f00:1::1",
        "/ip6/::7f00:1",
        "/ip6/::ffff:127.0.0.1",
        "/ip6/::ffff:0:7f00:1",
        "/ip6/fec0::1",
        "/ip6/ff02::1",
        "/ip6/::1",
        "/ip6/2001:db8:5::9",
        "/ip4/0.1.2.3",
        "/ip4/100.64.0.1",
        "/ip4/192.0.0.8",
        "/ip4/198.18.0.1",
        "/ip4/10.0.0.1",
        "/ip4/127.0.0.1",
        "/ip4/255.255.255.255",
    ],
)
def test_nobody_from_afar_sends_this_node_into_its_own_networks_by_any_name(place: str) -> None:
    node = Node(1)
    networks = ("203.0.113.0/24", "192.168.1.0/24", "2001:db8:5::/64")
    node.core.handle(Moved(("/ip4/203.0.113.5/tcp/4021",), networks, NOW_S))
    for number, at in enumerate((f"{host(2)}/tcp/50000", f"{host(9)}/tcp/1/p2p/{peer(9)}")):
        node.meet(2 + number, at + "/p2p-circuit" * number)
        told = node.hear(2 + number, Peers((record(7, f"{place}/tcp/6379"),)))
        assert refusals(told) == [("address record of another network", False)]


def test_a_neighbour_in_a_public_network_may_name_its_hosts_but_no_broadcast_and_not_this_one() -> (
    None
):
    node = Node(1)
    node.core.handle(Moved(("/ip4/203.0.113.5/tcp/4021",), ("203.0.113.0/24",), NOW_S))
    for last, believed in ((9, True), (5, False), (255, False), (0, False)):
        node.core.handle(Parted(peer(2), NOW_S))
        node.meet(2, "/ip4/203.0.113.7/tcp/50000", NOW_S + 1000 * last)
        told = record(3, f"/ip4/203.0.113.{last}/tcp/4021")
        assert bool(refusals(node.hear(2, Peers((told,)), NOW_S))) is not believed


def test_a_node_is_not_told_of_itself() -> None:
    node = Node(1, OWN)
    node.meet(2)
    assert node.hear(2, Peers((record(1, "/ip4/203.0.113.9/tcp/8080"),))) == []


def test_peers_that_were_not_asked_for_are_refused_unread() -> None:
    node = Node(1)
    node.meet(2)
    node.hear(2, Peers((record(2),)))
    assert refusals(node.hear(2, Peers((record(3),)))) == [("peers not asked for", True)]
    assert node.hear(9, Peers((record(3),))) == []  # who is not linked is not heard


def test_who_asks_without_pause_is_answered_four_times_and_then_once_a_minute() -> None:
    node = Node(1, OWN)
    node.meet(2)
    answers = [node.hear(2, PeersGet(5)) for _ in range(10)]
    assert sum(isinstance(effects[0], SendFrame) for effects in answers) == 4
    assert refusals(answers[-1]) == [("asks for peers too often", True)]
    assert isinstance(node.hear(2, PeersGet(5), NOW_S + 60)[0], SendFrame)
    assert isinstance(node.hear(2, PeersGet(5), NOW_S + 61)[0], Refused)


def test_a_flood_of_records_is_bounded_and_costs_no_peer_that_was_met() -> None:
    node = Node(1, records_max=20)
    node.meet(2)
    node.hear(2, Peers((record(2),)))
    for start in range(100, 400, RECORDS_MAX):
        node.core.handle(LookDue(NOW_S + start * 10))
        told = tuple(record(n) for n in range(start, start + RECORDS_MAX))
        node.hear(2, Peers(told), NOW_S + start * 10)
    node.meet(3, now_s=NOW_S + 5000)
    assert places(node.told_to(3, NOW_S + 5000)) == {f"{host(2)}/tcp/4021"}


def test_an_introducer_of_a_thousand_fills_a_part_of_the_book_and_none_of_what_works() -> None:
    book = AddressBook(peers_max=50)
    for number in range(200, 220):
        address = f"{host(number)}/tcp/4021/p2p/{peer(number)}"
        book.introduce(address, str(peer(number)), NOW_S)
        book.succeeded(address, NOW_S)
    for number in range(10):
        address = f"/ip4/203.{number}.0.1/tcp/4021/p2p/{peer(300 + number)}"
        book.introduce(address, str(peer(9)), NOW_S)
    for number in range(1000, 2000):
        book.introduce(f"/ip4/198.18.{number % 250}.1/tcp/4021/p2p/{peer(number)}", "liar", NOW_S)
    kept = set(book.peers())
    assert len(book) <= 50
    assert {peer(n) for n in range(200, 220)} <= kept and {peer(n) for n in range(300, 310)} <= kept


@given(
    st.lists(
        st.binary(max_size=64)
        | st.sampled_from(
            [
                encode(PeersGet(3)),
                encode(Peers((record(2),))),
                encode(Peers((record(3), record(4)))),
            ]
        )
    ),
    st.data(),
)
def test_no_frame_raises_and_every_turned_bit_is_refused_or_harmless(
    frames: list[bytes], data: st.DataObject
) -> None:
    node = Node(1, OWN)
    node.meet(2)
    for number, frame in enumerate(frames):
        now_s = NOW_S + 200 * number
        node.core.handle(LookDue(now_s))
        turned = bytearray(frame)
        if turned and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(turned) * 8 - 1))
            turned[at // 8] ^= 1 << at % 8
        for effect in node.hear(2, bytes(turned), now_s):
            if isinstance(effect, Learned):
                assert effect.peer in {peer(2), peer(3), peer(4)}  # whose keys have signed
                assert all(address.startswith("/ip4/198.51.0.") for address in effect.addresses)


@given(st.binary(max_size=80), st.sampled_from([PeersGet(3), Peers((record(2), record(3)))]))
def test_two_decoders_agree_on_the_peers_channel(tail: bytes, message: Any) -> None:
    frame = encode(message)
    assert second_decoder.decode(frame, PeersMessage) == decode_peers(frame) == message
    for wrong in (tail, frame + tail, frame[: len(tail)]):
        if wrong == frame:
            continue
        for door in (decode_peers, lambda data: second_decoder.decode(data, PeersMessage)):
            with pytest.raises(WireError):
                door(wrong)
