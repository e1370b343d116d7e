"""Peers that hold back what they announce, that take all turns, or that ask for far too much."""

from __future__ import annotations

import pytest
from gossip_kit import (
    ALICE,
    CAROL,
    NOW_H,
    NOW_S,
    A,
    bob,
    card,
    have,
    informed,
    keys,
    leaf,
    manifest,
    received,
    sent,
    signed,
)

from gossip import origin
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.envelope import id_of
from gossip.events import Broadcast, Effect, PeerUp, Received, Refused, RetractOwn, Send, TellDue
from gossip.interest import Interest
from gossip.ports import PeerId
from gossip.reconcile import HIGHEST, LOWEST
from gossip.wire import (
    SYNC_FRAME_BYTES_MAX,
    Cards,
    CardsGet,
    Compare,
    Digest,
    EchoGet,
    Env,
    Have,
    Manifest,
    Range,
    Standing,
    TableGet,
    encode,
)

LIARS = [PeerId(f"liar{i}") for i in range(4)]
CHATTER = encode(EchoGet(bytes(32)))


def with_liars(count: int = 4, **config: int) -> Replica:
    node = bob(**config)
    for liar in LIARS[:count]:
        node.handle(PeerUp(liar, NOW_S))
    return node


def asked_of(peer: PeerId, effects: list[Effect]) -> list[TableGet | CardsGet]:
    told = sent([e for e in effects if isinstance(e, Send) and e.peer == peer])
    return [message for message in told if isinstance(message, TableGet | CardsGet)]


@pytest.mark.parametrize("frames_s", [1, 3])
def test_peers_that_announce_and_never_serve_keep_no_table_for_more_than_a_quarter_minute_each(
    frames_s: int,
) -> None:
    node = with_liars()
    env, _ = signed(card(1))
    for liar in LIARS:
        node.handle(received(liar, have(env)))
    node.handle(received(ALICE, have(env)))
    for now_s in range(NOW_S + 1, NOW_S + 80):
        effects = []
        for liar in LIARS * frames_s:
            effects += node.handle(received(liar, have(env), now_s))
        if asked_of(ALICE, effects + node.handle(TellDue(now_s))):
            return
    pytest.fail("the honest holder was not asked")


def test_where_there_is_no_room_for_a_holder_one_that_was_too_slow_makes_it_for_good() -> None:
    node = with_liars(2, sources_max=2)
    env, whole = signed(card(1))
    for liar in LIARS[:2]:
        node.handle(received(liar, have(env)))
    node.handle(TellDue(NOW_S + 4))  # the first is silent, so the second is asked
    node.handle(received(ALICE, have(env), NOW_S + 4))
    node.handle(received(LIARS[0], have(env), NOW_S + 5))  # no room
    assert asked_of(ALICE, node.handle(TellDue(NOW_S + 8)))
    node.handle(received(ALICE, manifest(env, whole), NOW_S + 9))
    assert node.view(A.origin).head is not None


def test_a_table_that_drips_is_asked_of_another_and_what_came_is_kept() -> None:
    node = with_liars(1)
    env, whole = signed(*(card(n) for n in range(20)))
    node.handle(received(LIARS[0], have(env)))
    node.handle(received(ALICE, have(env)))
    node.handle(received(LIARS[0], Manifest(env, whole.index, (), ())))
    live = whole.live()
    dripped = Cards(A.origin, id_of(env), live[:1], ())
    for now_s in range(NOW_S + 1, NOW_S + 30):
        node.handle(Received(LIARS[0], CHATTER, now_s))
        if now_s == NOW_S + 9:
            node.handle(received(LIARS[0], dripped, now_s))
        if asked := asked_of(ALICE, node.handle(TellDue(now_s))):
            assert isinstance(asked[0], CardsGet) and len(asked[0].cards) == 32 * 19
            return
    pytest.fail("the other holder was not asked")


def test_a_peer_whose_tables_fill_all_that_may_be_awaited_keeps_no_others_away() -> None:
    node = with_liars(1, pull_bytes_max=2 * SYNC_FRAME_BYTES_MAX)
    for n in range(40):
        by = keys(n)
        env, _ = signed(by=by, n_live=1024)
        node.handle(received(LIARS[0], have(env, by=by)))
    env, whole = signed(card(1))
    (get,) = asked_of(ALICE, node.handle(received(ALICE, have(env))))
    assert get.origin == A.origin
    other, _ = signed(card(1), by=keys("z"))
    assert not asked_of(ALICE, node.handle(received(ALICE, have(other, by=keys("z")))))
    effects = node.handle(received(ALICE, manifest(env, whole)))
    assert [get.origin for get in asked_of(ALICE, effects)] == [keys("z").origin]


def test_peers_take_turns_and_a_newer_head_keeps_the_place_of_the_older() -> None:
    node = with_liars(1, pulls_max=1)
    heads: dict[bytes, tuple[Env, Manifest]] = {}

    def told(peer: PeerId, n: int, **head: int | bytes) -> list[TableGet | CardsGet]:
        env, whole = signed(card(1), by=keys(n), **head)  # type: ignore[arg-type]
        heads[keys(n).origin] = env, manifest(env, whole)
        return asked_of(peer, node.handle(received(peer, have(env, by=keys(n)))))

    assert [told(LIARS[0], n) != [] for n in range(4)] == [True, False, False, False]
    assert [told(ALICE, n) != [] for n in range(4, 7)] == [True, False, False]
    older = heads[keys(5).origin][0]
    told(ALICE, 5, seq=(NOW_H << 16) + 1, prev_seq=NOW_H << 16, prev=id_of(older))
    order = []
    turns = [(LIARS[0], keys(0).origin), (ALICE, keys(4).origin)]
    for peer, asked in turns:
        effects = node.handle(received(peer, heads[asked][1]))
        for one in (LIARS[0], ALICE):
            for get in asked_of(one, effects):
                order.append(get.origin)
                turns.append((one, get.origin))
    assert sorted(order) == sorted(keys(n).origin for n in (1, 2, 3, 5, 6))
    of_alice = [name for name in order if name in (keys(5).origin, keys(6).origin)]
    assert of_alice == [keys(5).origin, keys(6).origin]
    assert order.index(keys(6).origin) < 4  # not after all that the other announced before


def test_a_question_of_69_bytes_buys_a_peer_no_more_than_its_share_of_answers() -> None:
    config = GossipConfig(answer_bytes_s_max=1_000, answer_burst_bytes=100_000)
    node = bob(answer_bytes_s_max=1_000, answer_burst_bytes=100_000)
    for first in range(0, 1_000, 100):
        docs = tuple(keys(n).doc for n in range(first, first + 100))
        node.handle(received(CAROL, Have(docs, (), (), ())))
    question = Digest((Range(LOWEST, HIGHEST, 0, bytes(16), b""),))

    def answered(peer: PeerId, now_s: int) -> int:
        effects = [e for _ in range(20) for e in node.handle(received(peer, question, now_s))]
        return sum(len(e.frame) for e in effects if isinstance(e, Send) and e.peer == peer)

    assert 0 < answered(ALICE, NOW_S) <= config.answer_burst_bytes
    assert answered(ALICE, NOW_S) <= 65_536
    assert answered(CAROL, NOW_S) > 0  # each has its own
    assert answered(ALICE, NOW_S + 200) > 0  # and it refills


def test_who_names_an_origin_twice_in_one_comparison_is_refused_and_given_nothing() -> None:
    node, _ = informed(card(1))
    nothing = origin.nothing_of(origin.slot_of(A.origin))
    effects = node.handle(received(CAROL, Compare((nothing, nothing), 0)))
    assert [(e.reason, e.blame) for e in effects if isinstance(e, Refused)] == [
        ("slot twice", True)
    ]
    assert not [e for e in effects if isinstance(e, Send) and e.peer == CAROL]


def test_of_forks_found_out_here_only_a_few_a_second_are_broadcast_and_own_words_at_once() -> None:
    node = bob()
    broadcast = 0
    for n in range(20):
        by = keys(n)
        node.handle(received(ALICE, have(signed(by=by)[0], by=by)))
        effects = node.handle(received(ALICE, have(signed(by=by, flags=1)[0], by=by)))
        assert node.view(by.origin).standing is Standing.FROZEN
        assert [e for e in effects if isinstance(e, Send) and e.peer == CAROL]
        broadcast += sum(isinstance(e, Broadcast) for e in effects)
    assert broadcast == GossipConfig().proofs_s_max
    assert [e for e in node.handle(RetractOwn(leaf(1), NOW_S)) if isinstance(e, Broadcast)]


def test_one_peer_does_not_use_up_the_looks_of_a_day_nor_one_origin_more_than_one() -> None:
    interest = Interest(lambda view: True, A.origin, GossipConfig(looks_day_max=8))
    for _ in range(4):
        assert interest.looks(keys(0).origin, LIARS[0], NOW_H)
    taken = [interest.looks(keys(n).origin, LIARS[0], NOW_H) for n in range(8)]
    assert taken == [True] * 4 + [False] * 4
    assert interest.looks(keys(9).origin, ALICE, NOW_H)
    assert interest.looks(keys(7).origin, LIARS[0], NOW_H + 24)
