"""What is told, asked, asked again and remembered between replicas."""

from __future__ import annotations

import pytest
from gossip_kit import (
    ALICE,
    BOB,
    CAROL,
    NOW_H,
    NOW_S,
    A,
    Line,
    bob,
    card,
    have,
    informed,
    keys,
    manifest,
    only,
    publish,
    received,
    replica,
    retraction,
    sent,
    signed,
)
from msgspec.structs import replace

from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.envelope import id_of, seal
from gossip.events import (
    PeerDown,
    PeerUp,
    Received,
    Refused,
    Send,
    SyncDue,
    TellDue,
    WakeAfter,
)
from gossip.news import NEWS_MAX
from gossip.ports import PeerId
from gossip.reading import Frame, Memory
from gossip.recent import HEADS_MAX, PER_ORIGIN, Recent
from gossip.reconcile import Items, opening
from gossip.wire import (
    ZERO32,
    Compare,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Fork,
    Gone,
    Have,
    Head,
    Standing,
    TableGet,
    WireError,
    decode,
    encode,
)

# Telling ------------------------------------------------------------------------------------------


def learns(node: Replica, who: object, now_s: int = NOW_S) -> list[object]:
    by = keys(who)
    env, whole = signed(card(1), by=by)
    node.handle(received(ALICE, have(env, by=by), now_s))
    return list(node.handle(received(ALICE, manifest(env, whole), now_s)))


def told(effects: list[object]) -> list[Compare]:
    return [m for m in sent(effects) if isinstance(m, Compare) and m.summaries]  # type: ignore[arg-type]


def test_a_single_new_head_is_told_at_once_and_in_brief() -> None:
    effects = learns(bob(), "dave")
    (news,) = told(effects)
    assert [summary.slot for summary in news.summaries] == [keys("dave").origin[:16]]
    assert news.answer == 1
    (send,) = (e for e in effects if isinstance(e, Send))
    assert send.peer == CAROL and len(send.frame) < 120


def test_heads_that_come_close_together_are_told_together() -> None:
    node = bob()
    learns(node, "first")
    assert not [told(learns(node, n)) for n in range(5) if told(learns(node, n))]
    (news,) = told(list(node.handle(TellDue(NOW_S + 2))))
    assert len(news.summaries) == 5


def test_what_waits_to_be_told_asks_for_one_timer() -> None:
    node = replica("bob")
    effects = [*node.handle(PeerUp(ALICE, NOW_S)), *node.handle(PeerUp(CAROL, NOW_S))]
    effects += [effect for n in range(6) for effect in learns(node, n)]  # type: ignore[misc]
    assert only(effects, WakeAfter) == [WakeAfter(2.0, tell=True)]
    assert only(node.handle(TellDue(NOW_S + 2)), WakeAfter) == [WakeAfter(2.0, tell=True)]
    assert only(node.handle(TellDue(NOW_S + 4)), WakeAfter) == [], "all are told"


def test_news_are_told_to_a_few_at_once_and_soon_to_all_others_that_did_not_tell_of_them() -> None:
    node, others = bob(fanout=1), [PeerId(f"peer{n}") for n in range(6)]
    for peer in others:
        node.handle(PeerUp(peer, NOW_S))
    effects = learns(node, "dave")
    (news,) = told(effects)
    (first,) = (e.peer for e in effects if isinstance(e, Send))
    teller = next(peer for peer in others if peer != first)
    node.handle(received(teller, news, NOW_S + 1))
    later = [e for e in node.handle(TellDue(NOW_S + 2)) if isinstance(e, Send)]
    assert {e.peer for e in later} == {CAROL, *others} - {first, teller}
    assert not told(list(node.handle(TellDue(NOW_S + 4))))


def test_of_much_that_is_new_at_once_only_a_few_are_told() -> None:
    node = replica("bob", GossipConfig(fanout=1))
    for peer in (ALICE, CAROL, PeerId("erin"), PeerId("frank")):
        node.handle(PeerUp(peer, NOW_S))
    learns(node, "first")
    for n in range(NEWS_MAX + 1):
        learns(node, n)
    tellings = told(list(node.handle(TellDue(NOW_S + 2))))
    assert [len(t.summaries) for t in tellings if len(t.summaries) > 1] == [NEWS_MAX + 1]
    assert not told(list(node.handle(TellDue(NOW_S + 4))))


def test_who_else_told_of_a_head_is_asked_for_it_if_the_first_keeps_silent() -> None:
    node = bob()
    holder = replica("erin")
    holder.handle(PeerUp(ALICE, NOW_S))
    holder.handle(PeerUp(BOB, NOW_S))
    (news,) = told(learns(holder, "dave"))
    assert [m.answer for m in sent(list(node.handle(received(ALICE, news))))] == [0]  # type: ignore[union-attr]
    assert not sent(list(node.handle(received(CAROL, news))))
    asked = [
        (NOW_S + s, effect.peer)
        for s in range(2, 10, 2)
        for effect in node.handle(TellDue(NOW_S + s))
        if isinstance(effect, Send) and effect.peer == CAROL
    ]
    assert asked[0] == (NOW_S + 6, CAROL), "in five seconds, at the next tick"


def test_who_asks_for_news_is_given_the_change_of_the_table_with_the_head() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1), card(2)))
    line.now_s += 60
    line.log.clear()
    line.give(ALICE, publish(card(1, version=2), card(2), now_s=line.now_s))
    said = [m for m in sent([effect for _, effect in line.log]) if m != Compare((), 0)]
    assert [type(m) for m in said] == [Compare, Compare, Delta]
    assert line.nodes[BOB].view(A.origin) == line.nodes[ALICE].view(A.origin)


def test_a_change_of_a_table_that_is_not_held_is_no_reason_to_blame_and_fetches_the_whole() -> None:
    node, first = informed(card(1))
    seq = NOW_H << 16
    env, whole = signed(card(2), card(3), seq=seq + 9, prev_seq=seq, prev=id_of(first))
    strange = Delta(env, 5, bytes(31) + b"1", (card(2),), (), ())
    (asked,) = sent(list(node.handle(received(ALICE, strange))))
    assert asked == TableGet(A.origin, id_of(env), ZERO32)
    effects = list(node.handle(received(ALICE, manifest(env, whole))))
    assert not only(effects, Refused) and len(node.view(A.origin).cards) == 2


def test_a_table_that_nobody_has_asked_for_of_an_unknown_origin_is_ignored() -> None:
    env, _ = signed(card(1))
    assert bob().handle(received(ALICE, Delta(env, 0, ZERO32, (card(1),), (), ()))) == []


def test_a_record_of_a_later_version_in_a_known_message_is_refused_without_blame() -> None:
    env = signed(card(1))[0]
    for newer in (
        Have((), (replace(env, type="head/2"),), (), ()),
        Have((), (), (replace(env, type="retract/12"),), ()),
        Have((), (), (), (Fork(replace(env, type="head/2"), env),)),
        Delta(replace(env, type="head/2"), 0, ZERO32, (), (), ()),
        Echo(keys("bob").origin, None, replace(env, type="head/2")),
    ):
        assert bob().handle(received(ALICE, newer)) == [Refused(ALICE, "wrong type", blame=False)]


@pytest.mark.parametrize("kind", ["retract/1", "head", "/2", "head/x", "head/2 "])
def test_a_record_that_is_sealed_as_another_or_as_nonsense_is_blamed(kind: str) -> None:
    wrong = Have((), (replace(signed(card(1))[0], type=kind),), (), ())
    assert bob().handle(received(ALICE, wrong)) == [Refused(ALICE, "wrong type")]


def test_without_fanout_nothing_is_told_and_comparing_brings_it_all_the_same() -> None:
    quiet = GossipConfig(fanout=0)
    line = Line(alice=replica("alice", quiet), bob=replica("bob", quiet))
    line.connect()
    line.give(ALICE, publish(card(1)))
    assert line.nodes[BOB].view(A.origin).head is None
    line.give(BOB, SyncDue(NOW_S))
    assert line.nodes[BOB].view(A.origin).cards == (card(1),)


def test_a_retraction_that_came_by_broadcast_is_not_sent_on_besides() -> None:
    node = bob()
    told_one = encode(retraction(1))
    assert not sent(node.handle(Received(ALICE, told_one, NOW_S, urgent=True)))
    assert sent(bob().handle(Received(ALICE, told_one, NOW_S)))


def test_of_many_who_tell_of_a_head_one_is_asked_for_it() -> None:
    holder, _ = informed(card(1))
    (news,) = told([*holder.handle(PeerUp(PeerId("x"), NOW_S)), *_announced(holder)])
    node = bob()
    first = sent(node.handle(received(ALICE, news)))
    assert told([*node.handle(received(CAROL, news))]) == []
    assert len(told_back := [m for m in first if isinstance(m, Compare)]) == 1
    assert told_back[0].answer == 0
    again = node.handle(received(CAROL, news, NOW_S + 5))
    assert len([m for m in sent(again) if isinstance(m, Compare) and m.summaries]) == 1


def _announced(node: Replica) -> list[object]:
    digest = encode(opening(Items()))
    return list(node.handle(Received(PeerId("x"), digest, NOW_S)))


def test_who_tells_of_a_head_whose_table_is_on_its_way_becomes_a_source() -> None:
    holder, env = informed(card(1))
    (news,) = told([*holder.handle(PeerUp(PeerId("x"), NOW_S)), *_announced(holder)])
    node = bob()
    node.handle(received(ALICE, have(env)))
    assert not told(list(node.handle(received(CAROL, news))))
    effects = node.handle(received(ALICE, Gone(A.origin, id_of(env))))
    assert [e.peer for e in effects if isinstance(e, Send)] == [CAROL]


def test_a_key_that_the_peer_has_is_not_sent_again() -> None:
    holder, _ = informed(card(1))
    other = bob()
    other.handle(received(ALICE, Have((A.doc,), (), (), ())))
    asks = [m for m in sent(other.handle(SyncDue(NOW_S, again=False))) if isinstance(m, Digest)]
    (compare,) = [
        m for m in sent(holder.handle(received(CAROL, asks[0]))) if isinstance(m, Compare)
    ]
    (back,) = [m for m in sent(other.handle(received(ALICE, compare))) if isinstance(m, Compare)]
    (gift,) = [m for m in sent(holder.handle(received(CAROL, back))) if isinstance(m, Have)]
    assert (len(gift.keys), len(gift.heads)) == (0, 1)
    assert [type(m) for m in sent(other.handle(received(ALICE, gift)))] == [TableGet]


# Asking again -------------------------------------------------------------------------------------


def test_a_question_that_is_not_answered_is_asked_ten_times_in_all() -> None:
    node = replica("bob")
    (first, wake) = node.handle(PeerUp(ALICE, NOW_S))
    assert isinstance(first, Send) and wake == WakeAfter(2.0, tell=True)
    again = [node.handle(TellDue(NOW_S + 2 * n)) for n in range(1, 12)]
    assert [first in effects for effects in again] == [True] * 9 + [False] * 2
    assert not only(again[-1], WakeAfter)


@pytest.mark.parametrize("answer", [Compare((), 0), Have((), (), (), ())], ids=["nothing", "have"])
def test_a_question_that_was_answered_is_not_asked_again(answer: Compare | Have) -> None:
    node = replica("bob")
    node.handle(PeerUp(ALICE, NOW_S))
    node.handle(received(ALICE, answer))
    assert node.handle(TellDue(NOW_S + 2)) == []


def test_a_peer_that_went_away_is_asked_nothing_more() -> None:
    node = replica("bob")
    node.handle(PeerUp(ALICE, NOW_S))
    node.handle(PeerDown(ALICE, NOW_S))
    assert node.handle(TellDue(NOW_S + 2)) == []


def test_a_table_that_does_not_come_is_asked_of_the_next_within_seconds() -> None:
    node = bob()
    env, whole = signed(card(1))
    node.handle(received(ALICE, have(env)))
    node.handle(received(CAROL, have(env)))
    effects = node.handle(TellDue(NOW_S + 4))
    assert [e.peer for e in effects if isinstance(e, Send)][-1] == CAROL
    node.handle(received(ALICE, manifest(env, whole), NOW_S + 5))  # late, but here
    assert node.view(A.origin).cards == (card(1),)


def test_who_passed_on_a_head_before_it_had_the_table_is_asked_again_soon() -> None:
    node = bob()
    env, whole = signed(card(1))
    node.handle(Received(ALICE, encode(have(env)), NOW_S, urgent=True))
    assert not sent(node.handle(received(ALICE, Gone(A.origin, id_of(env)))))
    asked = [m for m in sent(node.handle(TellDue(NOW_S + 2))) if isinstance(m, TableGet)]
    assert [get.head for get in asked] == [id_of(env)]
    node.handle(received(ALICE, manifest(env, whole), NOW_S + 2))
    assert node.view(A.origin).cards == (card(1),)


def test_who_never_has_the_table_is_not_asked_for_ever() -> None:
    node = bob()
    env, _ = signed(card(1))
    node.handle(received(ALICE, have(env)))
    for n in range(20):
        node.handle(received(ALICE, Gone(A.origin, id_of(env)), NOW_S + 2 * n))
        node.handle(TellDue(NOW_S + 2 * n))
    assert not only(node.handle(TellDue(NOW_S + 60)), Send)


def test_a_peer_that_sends_other_tables_is_waited_for() -> None:
    node = bob()
    first, whole = signed(card(1))
    second, _ = signed(card(1), by=keys("dave"))
    node.handle(received(ALICE, have(first)))
    node.handle(received(ALICE, have(second, by=keys("dave"))))
    node.handle(received(ALICE, manifest(first, whole), NOW_S + 3))
    assert not [m for m in sent(node.handle(TellDue(NOW_S + 4))) if isinstance(m, TableGet)]
    assert [m for m in sent(node.handle(TellDue(NOW_S + 8))) if isinstance(m, TableGet)]


# Joining ------------------------------------------------------------------------------------------


def test_who_holds_nothing_compares_with_one_peer_at_first() -> None:
    node = replica("bob")
    assert [type(m) for m in sent(node.handle(PeerUp(ALICE, NOW_S)))] == [Digest]
    assert sent(node.handle(PeerUp(CAROL, NOW_S))) == []
    full = replica("dave")
    full.handle(PeerUp(BOB, NOW_S))
    for n in range(100):
        full.handle(received(BOB, Have((keys(n).doc,), (), (), ())))
    (question,) = [m for m in sent(full.handle(SyncDue(NOW_S))) if isinstance(m, Digest)]
    assert sent(node.handle(received(CAROL, question))) == []
    assert sent(node.handle(received(ALICE, question))) != []
    node.handle(PeerDown(ALICE, NOW_S))
    assert sent(node.handle(received(CAROL, question))) != []


def test_tables_on_their_way_fit_into_a_peers_queue() -> None:
    node = bob(pull_bytes_max=100_000)
    cards = [card(n) for n in range(60)]
    tables = {n: signed(*cards, by=keys(n)) for n in range(8)}
    asked: list[TableGet] = []
    for n, (env, _) in tables.items():
        effects = node.handle(received(ALICE, have(env, by=keys(n))))
        asked += [m for m in sent(effects) if isinstance(m, TableGet)]
    assert len(asked) == 2
    got = 0
    while asked:
        n = next(n for n in tables if keys(n).origin == asked[0].origin)
        asked.pop(0)
        got += 1
        effects = node.handle(received(ALICE, manifest(*tables[n])))
        asked += [m for m in sent(effects) if isinstance(m, TableGet)]
    assert got == 8


# Heads that stood before --------------------------------------------------------------------------


def test_a_second_history_is_found_out_at_a_head_that_was_replaced_long_ago() -> None:
    node = bob(heads_burst=100, heads_day_max=100)
    follows: dict[str, object] = {}
    for n in range(10):
        env, whole = signed(seq=(NOW_H << 16) + n, **follows)
        follows = {"prev_seq": (NOW_H << 16) + n, "prev": id_of(env)}
        node.handle(received(ALICE, have(env)))
        node.handle(received(ALICE, manifest(env, whole)))
    assert node.view(A.origin).standing is Standing.SOUND
    rival, _ = signed(card(5), seq=(NOW_H << 16) + 3, prev_seq=(NOW_H << 16) + 2)
    node.handle(received(CAROL, have(rival)))
    assert node.view(A.origin).standing is Standing.FROZEN


def test_heads_that_stood_before_are_bounded_for_each_origin_and_in_all() -> None:
    recent = Recent()
    for n in range(20):
        env, _ = signed(card(1), seq=(NOW_H << 16) + n)
        recent.add(seal(decode(env.payload, Head), A.op))
    assert [h.value.seq & 0xFF for h in recent.of(A.origin, 1)] == list(range(4, 20))
    assert len(recent.of(A.origin, 1)) == PER_ORIGIN and recent.of(A.origin, 2) == ()
    recent.forget(A.origin)
    assert recent.of(A.origin, 1) == () and recent._count == 0
    assert HEADS_MAX >= 1_000 * PER_ORIGIN


# Reading ------------------------------------------------------------------------------------------


def test_frames_are_remembered_as_far_as_there_is_room() -> None:
    memory = Memory(bytes_max=200)
    frames = [encode(EchoGet(keys(n).origin)) for n in range(10)]
    first = memory.read(frames[0])
    assert memory.read(frames[0]) is first
    for frame in frames:
        memory.read(frame)
    assert memory.read(frames[0]) is not first
    assert memory._bytes <= 200


def test_a_frame_that_is_no_table_has_no_head_and_one_that_says_nothing_says_nothing() -> None:
    frame = Frame(encode(EchoGet(A.origin)))
    assert frame.said == {}
    with pytest.raises(WireError):
        _ = frame.head
    said = Frame(encode(Echo(A.origin, A.doc, None))).said
    assert list(said) == [A.origin]


NEWER = {
    "a later version": (["have/2", 1, 2], False),
    "another type": (["witness/1", b""], False),
    "a known type that is wrong": (["have/1", 1], True),
    "no type": ([1, 2, 3], True),
    "a type without a version": (["have", 1], True),
    "not even an array": (7, True),
}


@pytest.mark.parametrize("case", NEWER)
def test_what_a_later_release_may_send_is_refused_without_blame(case: str) -> None:
    value, blame = NEWER[case]
    (refused,) = bob().handle(Received(ALICE, encode(value), NOW_S))
    assert isinstance(refused, Refused) and refused.blame is blame


@pytest.mark.parametrize("frame", [b"", b"\x91", b"\x91\xa2\xff\xfe", b"\xc1" * 40])
def test_garbage_is_blamed_but_not_on_who_passed_on_a_broadcast(frame: bytes) -> None:
    (refused,) = bob().handle(Received(ALICE, frame, NOW_S))
    assert isinstance(refused, Refused) and refused.blame
    (refused,) = bob().handle(Received(ALICE, frame, NOW_S, urgent=True))
    assert isinstance(refused, Refused) and not refused.blame
