"""Keys that change under a running node, and keys that were stolen."""

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
    leaf,
    manifest,
    only,
    publish,
    received,
    replica,
    retraction,
    sent,
    signed,
)

from gossip.envelope import id_of
from gossip.events import (
    Broadcast,
    LeafRetracted,
    OriginChanged,
    PeerUp,
    PublishBlocked,
    Rekey,
    RetractOwn,
    Save,
    SyncDue,
    Withhold,
)
from gossip.origin import Claims, summary
from gossip.ports import PeerId
from gossip.wire import Echo, Fork, Have, Standing, decode_sync

SECOND = keys("alice", epoch=2, revoked=(1,))


def line_of_three() -> Line:
    line = Line(alice=replica("alice"), bob=replica("bob"), carol=replica("carol"))
    line.connect()
    line.give(ALICE, publish(card(1), card(2)))
    return line


def broadcasts(line: Line) -> list[Have]:
    told = [decode_sync(e.frame) for _, e in line.log if isinstance(e, Broadcast)]
    return [message for message in told if isinstance(message, Have)]


# A new epoch --------------------------------------------------------------------------------------


def test_a_running_node_takes_the_keys_of_a_new_epoch_and_tells_them_at_once() -> None:
    line = line_of_three()
    line.log.clear()
    first = line.give(ALICE, Rekey(SECOND, NOW_S))
    assert isinstance(first[0], Save) and first[0].durable
    assert [said.keys for said in broadcasts(line)] == [(SECOND.doc,)]
    for node in line.nodes.values():
        head = node.view(A.origin).head
        assert head is not None and (head.epoch, head.prev_seq) == (2, 0)
        assert node.view(A.origin).usable == tuple(sorted((card(1), card(2)), key=lambda c: c.leaf))


def test_after_new_keys_all_is_signed_with_them() -> None:
    line = line_of_three()
    line.give(ALICE, Rekey(SECOND, NOW_S))
    line.give(ALICE, RetractOwn(leaf(1), NOW_S))
    line.give(ALICE, publish(card(2), card(3)))
    for node in line.nodes.values():
        view = node.view(A.origin)
        assert view.head is not None and view.head.epoch == 2
        assert {c.leaf for c in view.cards} == {leaf(2), leaf(3)}
        assert view.retracted == (leaf(1),)


def test_new_keys_are_told_though_nothing_was_ever_published() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, Rekey(SECOND, NOW_S))
    assert [said.keys for said in broadcasts(line)] == [(SECOND.doc,)]
    assert line.nodes[BOB].origins() == [A.origin]


def test_the_same_keys_again_change_nothing() -> None:
    line = line_of_three()
    assert line.give(ALICE, Rekey(A, NOW_S)) == []


def test_keys_of_another_origin_are_the_owners_error() -> None:
    with pytest.raises(ValueError, match="keys of origin"):
        replica("alice").handle(Rekey(keys("bob"), NOW_S))


def test_new_keys_do_not_publish_what_the_owner_withholds() -> None:
    line = line_of_three()
    line.give(ALICE, Withhold(NOW_S))
    line.give(ALICE, Rekey(SECOND, NOW_S))
    assert line.nodes[ALICE].own_head() is None
    assert line.nodes[BOB].view(A.origin).cards == ()


def test_a_frozen_origin_is_whole_again_under_new_keys() -> None:
    line = line_of_three()
    proof = Fork(signed(card(8))[0], signed(card(9))[0])
    for name in line.nodes:
        line.give(name, received(CAROL, Have((A.doc,), (), (), (proof,))))
    assert line.nodes[BOB].view(A.origin).standing is Standing.FROZEN
    line.give(ALICE, Rekey(keys("alice", epoch=2), NOW_S))
    line.give(ALICE, publish(card(1)))
    for node in line.nodes.values():
        assert node.view(A.origin).usable == (card(1),)


def test_a_node_that_starts_with_keys_that_revoke_tells_them_before_it_publishes() -> None:
    node = replica("alice", epoch=2, revoked=(1,))  # type: ignore[arg-type]
    effects = node.handle(SyncDue(NOW_S))
    (told,) = (decode_sync(e.frame) for e in effects if isinstance(e, Broadcast))
    assert isinstance(told, Have) and told.keys == (SECOND.doc,)
    assert not only(node.handle(SyncDue(NOW_S + 30)), Broadcast)


# Revocation ---------------------------------------------------------------------------------------


def test_after_a_revocation_no_head_of_the_old_epoch_is_accepted_and_retractions_are() -> None:
    node, _ = informed(card(1), card(2))
    node.handle(received(CAROL, Have((SECOND.doc,), (), (), ())))
    assert node.view(A.origin).cards == ()
    for n in range(50):  # the thief's
        env, whole = signed(card(n), seq=(NOW_H << 16) + n)
        node.handle(received(ALICE, have(env)))
        node.handle(received(ALICE, manifest(env, whole)))
        assert node.view(A.origin).head is None
    effects = node.handle(received(ALICE, retraction(1)))
    assert LeafRetracted(A.origin, leaf(1)) in effects


def test_an_epoch_that_is_revoked_signs_no_head_though_it_is_the_highest() -> None:
    node, _ = informed(card(1))
    third = keys("alice", epoch=3)
    env, whole = signed(card(5), by=third)
    node.handle(received(ALICE, have(env, by=third)))
    node.handle(received(ALICE, manifest(env, whole)))
    assert node.view(A.origin).usable == (card(5),)
    later_told = keys("alice", epoch=2, revoked=(3,))
    effects = node.handle(received(CAROL, Have((later_told.doc,), (), (), ())))
    assert OriginChanged(A.origin) in effects
    view = node.view(A.origin)
    assert (view.standing, view.head, view.cards) == (Standing.FROZEN, None, ())
    env, _ = signed(card(6), by=third, seq=(NOW_H << 16) + 5)
    assert node.handle(received(CAROL, have(env, by=third))) == []
    fourth = keys("alice", epoch=4)
    env, whole = signed(card(7), by=fourth)
    node.handle(received(ALICE, have(env, by=fourth)))
    node.handle(received(ALICE, manifest(env, whole)))
    assert node.view(A.origin).usable == (card(7),)


def test_a_table_on_its_way_is_given_up_when_its_key_is_revoked() -> None:
    node = bob()
    env, whole = signed(card(1))
    node.handle(received(ALICE, have(env)))
    node.handle(received(CAROL, Have((keys("alice", 2, revoked=(1, 2)).doc,), (), (), ())))
    node.handle(received(ALICE, manifest(env, whole)))
    assert node.view(A.origin).head is None


def test_a_revocation_is_passed_on_at_once_and_reaches_who_was_away() -> None:
    node, _ = informed(card(1))
    effects = node.handle(received(ALICE, Have((SECOND.doc,), (), (), ())))
    assert Have((SECOND.doc,), (), (), ()) in sent(effects)
    line = Line(bob=node, dave=replica("dave"))
    line.connect()
    assert line.nodes[PeerId("dave")].view(A.origin) == node.view(A.origin)


def test_a_revoked_key_signs_nothing_and_the_owner_is_told() -> None:
    revoked = Line(alice=replica("alice", epoch=2, revoked=(2,)), bob=replica("bob"))  # type: ignore[arg-type]
    revoked.connect()
    revoked.give(ALICE, publish(card(1)))
    assert (ALICE, PublishBlocked("this key is revoked")) in revoked.log


def test_what_is_revoked_depends_on_the_keys_alone_not_on_their_order() -> None:
    docs = [A.doc, keys("alice", 2, revoked=(3,)).doc, keys("alice", 3).doc]
    first, last = Claims(A.origin), Claims(A.origin)
    for doc in docs:
        first = first.with_key(doc)
    for doc in reversed(docs):
        last = last.with_key(doc)
    assert summary(first) == summary(last)
    assert first.standing is last.standing is Standing.FROZEN


def test_a_head_that_was_heard_of_an_old_epoch_is_not_followed_under_new_keys() -> None:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    newer, _ = signed(card(1), seq=(NOW_H << 16) + 40)
    node.handle(publish(card(1)))
    node.handle(received(BOB, Echo(A.origin, A.doc, newer)))
    node.handle(Rekey(SECOND, NOW_S))
    head = node.own_head()
    assert head is not None and (head.epoch, head.prev_seq) == (2, 0)
    assert id_of(newer) != head.prev
