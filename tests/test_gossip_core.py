"""The replica, through its one door: events in, orders out."""

from __future__ import annotations

from random import Random

import pytest
from gossip_kit import (
    ALICE,
    BOB,
    CAROL,
    DAY_S,
    NOW_H,
    NOW_S,
    A,
    Line,
    bob,
    card,
    have,
    informed,
    keys,
    leaf,
    manifest,
    only,
    publish,
    received,
    replica,
    retraction,
    seed,
    sent,
    signed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gossip.config import GossipConfig
from gossip.envelope import id_of, seal
from gossip.events import (
    Broadcast,
    LeafRetracted,
    OriginChanged,
    PeerDown,
    PeerUp,
    PublishBlocked,
    Received,
    Refused,
    RetractOwn,
    Save,
    Send,
    SyncDue,
)
from gossip.ports import PeerId
from gossip.table import TableTooLargeError
from gossip.wire import (
    ZERO32,
    Cards,
    CardsGet,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Ended,
    Fork,
    Gone,
    Have,
    Manifest,
    Op,
    Reason,
    Retract,
    Scope,
    Stage,
    Standing,
    TableGet,
    decode_sync,
    encode,
)

# Publishing ---------------------------------------------------------------------------------------


def test_nothing_is_signed_before_a_peer_has_told_what_it_holds_of_us() -> None:
    node = replica("alice")
    assert node.handle(publish(card(1))) == []
    asked = node.handle(PeerUp(BOB, NOW_S))
    assert [type(message) for message in sent(asked)] == [Digest, EchoGet]
    assert node.own_head() is None
    told = node.handle(received(BOB, Echo(A.origin, None, None)))
    assert node.own_head() is not None
    assert isinstance(told[0], Save) and told[0].durable


def test_a_head_is_on_disk_before_anyone_is_told() -> None:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    node.handle(publish(card(1), urgent=True))
    effects = node.handle(received(BOB, Echo(A.origin, None, None)))
    kinds = [type(effect) for effect in effects]
    assert kinds == [Save, OriginChanged, Broadcast, Send]
    head = node.own_head()
    assert head is not None
    assert head.seq == NOW_H << 16
    assert head.flags == 1


def test_after_a_restore_the_next_head_follows_the_one_that_peers_hold() -> None:
    newer, _ = signed(card(1), seq=(NOW_H << 16) + 40)
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    node.handle(publish(card(1), card(2)))
    effects = node.handle(received(BOB, Echo(A.origin, A.doc, newer)))
    head = node.own_head()
    assert head is not None
    assert (head.prev_seq, head.seq) == ((NOW_H << 16) + 40, (NOW_H << 16) + 41)
    noted = effects[0]
    assert isinstance(noted, Save) or isinstance(effects[1], Save)


def test_three_peers_are_asked_and_all_are_awaited() -> None:
    node = replica("alice")
    peers = [PeerId(name) for name in "bcdef"]
    for peer in peers:
        node.handle(PeerUp(peer, NOW_S))
    asked = [e.peer for e in node.handle(publish(card(1))) if isinstance(e, Send)]
    assert len(asked) == 3
    for peer in asked[:2]:
        node.handle(received(peer, Echo(A.origin, None, None)))
    assert node.own_head() is None
    node.handle(PeerDown(asked[2], NOW_S))
    assert node.own_head() is None  # there are others who can be asked
    again = [e.peer for e in node.handle(SyncDue(NOW_S + 30)) if isinstance(e, Send)]
    node.handle(received(again[0], Echo(A.origin, None, None)))
    assert node.own_head() is not None


def test_a_peer_that_is_silent_again_and_again_does_not_keep_us_from_publishing() -> None:
    node = bob()
    own = keys("bob").origin
    node.handle(publish(card(1)))
    node.handle(received(ALICE, Echo(own, None, None)))
    for i in range(1, 4):
        assert node.own_head() is None
        node.handle(SyncDue(NOW_S + 30 * i))
    assert node.own_head() is not None


def test_an_own_head_of_an_earlier_epoch_is_not_followed() -> None:
    node = replica("alice", epoch=2)
    node.handle(PeerUp(BOB, NOW_S))
    node.handle(publish(card(1)))
    old, _ = signed(card(1))
    node.handle(received(BOB, Echo(A.origin, A.doc, old)))
    head = node.own_head()
    assert head is not None
    assert (head.epoch, head.prev_seq) == (2, 0)


def test_silence_of_all_is_no_leave_to_publish() -> None:
    node = bob()
    node.handle(publish(card(1)))
    for i in range(1, 20):
        node.handle(SyncDue(NOW_S + 30 * i))
    assert node.own_head() is None


def test_an_echo_that_was_not_asked_for_changes_nothing() -> None:
    node = replica("alice")
    node.handle(publish(card(1)))
    assert node.handle(received(BOB, Echo(A.origin, None, None))) == []
    assert node.handle(received(BOB, Echo(seed("other"), None, None))) == []
    assert node.own_head() is None


def test_a_table_that_is_the_same_is_not_signed_again() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1)))
    assert line.give(ALICE, publish(card(1))) == []
    assert only(line.give(ALICE, publish(card(1, version=2))), Save)


def test_a_head_is_renewed_before_it_expires() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1)))
    line.log.clear()
    line.now_s += DAY_S
    line.give(ALICE, SyncDue(line.now_s))
    for node in line.nodes.values():
        head = node.view(A.origin).head
        assert head is not None
        assert head.ts_h == NOW_H + 24
    told = [decode_sync(e.frame) for _, e in line.log if isinstance(e, Send)]
    assert not any(isinstance(message, TableGet) for message in told)  # the table is the same


def test_a_table_too_large_for_one_head_is_the_owners_error_and_changes_nothing() -> None:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    with pytest.raises(TableTooLargeError, match="1100 live"):
        node.handle(publish(*(card(n) for n in range(1100))))
    into = tuple(leaf(n) for n in range(8))
    with pytest.raises(TableTooLargeError, match="index of"):
        node.handle(publish(ended=[Ended(leaf(n), 1, Reason.MERGED, into) for n in range(900)]))
    parents = tuple(bytes([n]) * 80 for n in range(8))
    with pytest.raises(TableTooLargeError, match="at most 1024"):
        node.handle(publish(replace(card(1), op=Op.ADOPT, parents=parents)))
    with pytest.raises(ValueError, match="out of order"):
        node.handle(publish(card(1), card(1)))
    assert node.handle(received(BOB, Echo(A.origin, None, None))) == []


def test_what_is_retracted_is_never_published_again() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, RetractOwn(leaf(1), NOW_S))
    line.give(ALICE, publish(card(1), card(2)))
    view = line.nodes[BOB].view(A.origin)
    assert [c.leaf for c in view.cards] == [leaf(2)]
    assert view.retracted == (leaf(1),)


BLOCKED = {
    "dead": (Have((keys("alice", op="other").doc,), (), (), ()), "this origin is dead"),
    "newer key": (
        Have((keys("alice", 2).doc,), (), (), ()),
        "a newer key of this origin is in use",
    ),
    "retracted": (
        Have(
            (A.doc,),
            (),
            (seal(Retract(A.origin, 1, None, NOW_H, Scope.CAPTURE), A.op).env,),
            (),
        ),
        "everything of this origin is retracted",
    ),
    "frozen": (
        Have((A.doc,), (), (), (Fork(signed(card(1))[0], signed(card(2))[0]),)),
        "this key is frozen: two histories were signed with it",
    ),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_what_cannot_be_signed_is_said_to_the_owner(case: str) -> None:
    heard, reason = BLOCKED[case]
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(3)))
    line.give(ALICE, received(CAROL, heard))
    assert line.give(ALICE, publish(card(4))) == [PublishBlocked(reason)]


def test_a_key_that_is_not_valid_now_signs_nothing() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.now_s = (A.doc.not_after_h + 1) * 3600
    effects = line.give(ALICE, publish(card(1), now_s=line.now_s))
    assert sent(effects) == [EchoGet(A.origin)] * 1
    assert (ALICE, PublishBlocked("this key is not valid now")) in line.log


# Heads --------------------------------------------------------------------------------------------


def test_an_old_head_is_ignored_and_nobody_is_blamed() -> None:
    old, _ = signed(card(1))
    node, new = informed(card(2), seq=(NOW_H << 16) + 5, prev_seq=(NOW_H << 16) + 4)
    for env in (old, new):
        assert node.handle(received(CAROL, have(env))) == []


FORGED = {
    "a bad signature": (replace(signed(card(1))[0], sig=bytes(64)), "bad signature", True),
    "another type": (replace(signed(card(1))[0], type="retract/1"), "wrong type", True),
    "a life too long": (signed(card(1), exp_h=NOW_H + 169)[0], "head lives too long", True),
    "a head of the future": (
        signed(card(1), ts_h=NOW_H + 2)[0],
        "head from the future",
        False,
    ),
    "a number of the future": (
        signed(card(1), seq=2**62)[0],
        "sequence number from the future",
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_head_that_cannot_be_is_refused(case: str) -> None:
    env, reason, blame = FORGED[case]
    node = bob()
    assert Refused(CAROL, reason, blame) in node.handle(received(CAROL, have(env)))
    assert node.view(A.origin).head is None


def test_a_head_without_its_key_is_refused_and_blames_nobody() -> None:
    env, _ = signed(card(1))
    effects = bob().handle(received(ALICE, Have((), (env,), (), ())))
    # The key may have been given up here for want of room since we showed that we hold it.
    assert effects == [Refused(ALICE, "record without its key", blame=False)]


def test_of_a_frame_that_is_wrong_in_part_what_came_before_counts() -> None:
    good, _ = signed(card(1))
    bad, _ = signed(card(1), by=keys("dave"))
    frame = Have((A.doc, keys("dave").doc), (good, replace(bad, sig=bytes(64))), (), ())
    effects = bob().handle(received(ALICE, frame))
    assert [type(m) for m in sent(effects)] == [TableGet]
    assert effects[-1] == Refused(ALICE, "bad signature")


def test_expired_leaves_are_kept_and_not_usable() -> None:
    node, _ = informed(card(1))
    assert node.view(A.origin).usable == (card(1),)
    later = NOW_S + 8 * DAY_S
    assert OriginChanged(A.origin) in node.handle(SyncDue(later))
    view = node.view(A.origin)
    assert (view.stale, view.cards, view.usable) == (True, (card(1),), ())
    assert OriginChanged(A.origin) not in node.handle(SyncDue(later))
    hour = NOW_H + 190
    env, _ = signed(card(1), seq=hour << 16, prev_seq=NOW_H << 16 | 9, ts_h=hour, exp_h=hour + 9)
    assert OriginChanged(A.origin) in node.handle(received(ALICE, have(env), later))
    assert node.view(A.origin).usable == (card(1),)


def test_an_expired_head_is_held_and_passed_on_but_its_leaves_are_not_usable() -> None:
    node, _ = informed(card(1), ts_h=NOW_H - 20, exp_h=NOW_H - 1)
    view = node.view(A.origin)
    assert (view.stale, view.usable) == (True, ())


def test_two_histories_freeze_an_origin_and_the_proof_is_told_at_once() -> None:
    node, first = informed(card(1))
    second, _ = signed(card(2))
    effects = node.handle(received(CAROL, have(second)))
    (proof,) = (decode_sync(e.frame) for e in effects if isinstance(e, Broadcast))
    assert isinstance(proof, Have)
    assert {proof.forks[0].a, proof.forks[0].b} == {first, second}
    view = node.view(A.origin)
    assert (view.standing, view.head, view.cards) == (Standing.FROZEN, None, ())
    other, _ = informed(card(1))
    other.handle(received(CAROL, proof))
    assert other.view(A.origin) == view


def test_two_histories_are_found_out_while_a_table_is_on_its_way() -> None:
    node = bob()
    node.handle(received(ALICE, have(signed(card(1))[0])))
    node.handle(received(CAROL, have(signed(card(2))[0])))
    assert node.view(A.origin).standing is Standing.FROZEN
    assert not sent(node.handle(SyncDue(NOW_S + 60)))[1:]


def test_a_key_of_the_next_epoch_ends_the_last_ones_heads() -> None:
    node, _ = informed(card(1))
    second = keys("alice", epoch=2)
    node.handle(received(ALICE, Have((second.doc,), (), (), ())))
    assert node.view(A.origin).cards == ()
    env, whole = signed(card(2), by=second)
    node.handle(received(ALICE, have(env, by=second)))
    node.handle(received(ALICE, manifest(env, whole)))
    assert node.view(A.origin).usable == (card(2),)


# Retractions --------------------------------------------------------------------------------------


def test_a_retraction_is_durable_before_it_is_told_and_drops_the_card() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1), card(2)))
    effects = line.give(ALICE, RetractOwn(leaf(1), NOW_S))
    assert [type(e) for e in effects] == [Save, OriginChanged, LeafRetracted, Broadcast, Send]
    assert effects[0].durable  # type: ignore[union-attr]
    assert (BOB, LeafRetracted(A.origin, leaf(1))) in line.log
    assert [c.leaf for c in line.nodes[BOB].view(A.origin).cards] == [leaf(2)]
    assert not [r for r in line.records("bob") if r.key == A.origin + leaf(1) and r.table == "card"]


def test_a_retraction_holds_over_every_later_head() -> None:
    node = bob()
    node.handle(received(ALICE, retraction(1)))
    env, whole = signed(card(1), card(2))
    node.handle(received(ALICE, have(env)))
    node.handle(received(ALICE, manifest(env, whole)))
    assert node.view(A.origin).cards == (card(2),)


def test_the_card_of_a_retracted_leaf_is_neither_asked_for_nor_served() -> None:
    node, env = informed(card(1), card(2))
    node.handle(received(ALICE, retraction(1)))
    (told, given_) = sent(node.handle(received(CAROL, TableGet(A.origin, id_of(env), ZERO32))))
    assert isinstance(told, Have) and len(told.retracts) == 1
    assert isinstance(given_, Manifest) and given_.cards == (card(2),)
    late = bob()
    late.handle(received(ALICE, have(env)))
    late.handle(received(ALICE, told))
    late.handle(received(ALICE, given_))
    assert late.view(A.origin).cards == (card(2),)


def test_a_retraction_that_makes_the_last_card_needless_completes_a_table() -> None:
    node = bob()
    env, whole = signed(card(1), card(2))
    node.handle(received(ALICE, have(env)))
    cards = tuple(c for c in whole.live() if c.leaf == leaf(2))
    node.handle(received(ALICE, Manifest(env, whole.index, cards, ())))
    assert node.view(A.origin).head is None
    node.handle(received(CAROL, retraction(1)))
    assert node.view(A.origin).cards == (card(2),)


def test_a_whole_origin_can_be_retracted() -> None:
    node, _ = informed(card(1), card(2))
    effects = node.handle(received(ALICE, retraction(None)))
    assert LeafRetracted(A.origin, None) in effects
    assert node.view(A.origin).cards == ()


def test_an_origin_that_dies_takes_its_leaves_with_it() -> None:
    node, _ = informed(card(1))
    rival = keys("alice", op="other").doc
    effects = node.handle(received(CAROL, Have((rival,), (), (), ())))
    assert LeafRetracted(A.origin, None) in effects
    assert node.view(A.origin).standing is Standing.DEAD


# Whatever a peer sends ----------------------------------------------------------------------------

FRAMES = [
    encode(message)
    for env, whole in [signed(card(1), card(2)), signed(card(3))]
    for message in [
        have(env),
        manifest(env, whole),
        Delta(env, 0, ZERO32, (card(1),), (), ()),
        TableGet(A.origin, id_of(env), ZERO32),
        CardsGet(A.origin, id_of(env), bytes(64), 1),
        Cards(A.origin, id_of(env), (card(2),), ()),
        Gone(A.origin, id_of(env)),
        EchoGet(A.origin),
        Echo(A.origin, A.doc, env),
        retraction(1),
        retraction(None),
        Have((A.doc,), (), (), (Fork(signed(card(1))[0], signed(card(3))[0]),)),
        Have((keys("alice", 2).doc, keys("alice", op="other").doc), (), (), ()),
    ]
]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_replica_never_fails_on_what_a_peer_sends(number: int) -> None:
    chance = Random(number)
    node = bob()
    for _ in range(30):
        frame = bytearray(chance.choice(FRAMES))
        if chance.random() < 0.3:
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
        peer = chance.choice([ALICE, CAROL, PeerId("stranger")])
        for effect in node.handle(Received(peer, bytes(frame), NOW_S)):
            if isinstance(effect, Send):
                decode_sync(effect.frame)
    node.handle(SyncDue(NOW_S + 60))
    view = node.view(A.origin)
    assert view.head is None or view.cards or view.retracted


def test_a_config_out_of_its_range_is_refused() -> None:
    for bad in ({"head_lifetime_h": 200}, {"refresh_after_h": 168}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GossipConfig(**bad)


def test_a_stage_of_a_card_is_carried_and_never_acted_upon() -> None:
    node, _ = informed(card(1, stage=Stage.SEED), card(2, stage=Stage.MATURE))
    assert {c.stage for c in node.view(A.origin).usable} == {Stage.SEED, Stage.MATURE}
