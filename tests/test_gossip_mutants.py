"""Boundaries that no other test stands on: each was found by changing one thing in the code.

A change of a comparison, a constant or a default in `envelope`, `reconcile`, `origin` or on the way
of a retraction makes a test fail; where none did, the test is here.
"""

from __future__ import annotations

import hashlib

import pytest
from gossip_kit import (
    ALICE,
    BOB,
    CAROL,
    DAY_S,
    NOW_H,
    NOW_S,
    bob,
    card,
    have,
    informed,
    keys,
    leaf,
    only,
    received,
    replica,
    seed,
    sent,
    signed,
)
from msgspec.structs import replace

from gossip import hearing, origin, table
from gossip.envelope import Signed, id_of, open_, read, seal
from gossip.events import (
    Broadcast,
    LeafRetracted,
    OriginChanged,
    PeerUp,
    Received,
    Refused,
    RetractOwn,
    Save,
    Send,
)
from gossip.hearing import Said
from gossip.keys import private_key
from gossip.origin import Claims
from gossip.records import Held, allowed
from gossip.wire import (
    RETRACTS_MAX,
    ZERO32,
    CardsGet,
    Env,
    Fork,
    Gone,
    Have,
    Head,
    Manifest,
    Retract,
    Scope,
    Standing,
    TableGet,
    Usage,
    WireError,
    decode_sync,
    encode,
)

A = keys("alice")
GONE = Retract(A.origin, 1, leaf(1), NOW_H, Scope.PUBLISH)


# Envelopes ----------------------------------------------------------------------------------------


def test_an_envelope_of_another_type_is_not_read_and_says_so() -> None:
    env = seal(GONE, A.op).env
    with pytest.raises(WireError) as refused:
        read(env, Head)
    assert refused.value.reason == "wrong type"


def test_an_envelope_with_a_wrong_signature_is_not_opened_and_says_so() -> None:
    env = seal(GONE, A.op).env
    with pytest.raises(WireError) as refused:
        open_(read(Env(env.type, env.payload, bytes(64)), Retract), A.doc.op)
    assert refused.value.reason == "bad signature"


def test_an_envelope_is_known_by_the_hash_of_its_encoding_before_and_after_it_is_opened() -> None:
    signed = seal(GONE, A.op)
    sealed = read(signed.env, Retract)
    opened = open_(sealed, A.doc.op)
    assert signed.id == sealed.id == opened.id == hashlib.sha256(encode(signed.env)).digest()
    assert signed.value == sealed.value == opened.value == GONE
    assert signed.env == sealed.env == opened.env


# Retractions --------------------------------------------------------------------------------------


def retract(n: int | None = 1, *, hour: int = NOW_H, epoch: int = 1, by: object = A.op) -> Env:
    what = Retract(A.origin, epoch, None if n is None else leaf(n), hour, Scope.PUBLISH)
    return seal(what, by).env  # type: ignore[arg-type]


def said(*envs: Env) -> Said:
    return Said(retracts=[read(env, Retract) for env in envs])


def base() -> Claims:
    return Claims(A.origin).with_key(A.doc)


class Verifications:
    """Counts the signatures that are checked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_a_retraction_is_verified_once_and_then_known() -> None:
    verifying = Verifications()
    claims = hearing.heard(base(), said(retract()), verifying)
    assert (verifying.count, list(claims.retracts)) == (1, [leaf(1)])
    assert hearing.heard(claims, said(retract()), verifying) is claims
    assert verifying.count == 1


def test_of_two_retractions_of_a_leaf_only_the_lower_is_worth_a_signature_check() -> None:
    low, high = sorted((retract(), retract(hour=NOW_H - 1)), key=id_of)
    verifying = Verifications()
    claims = hearing.heard(base(), said(high), verifying)
    claims = hearing.heard(claims, said(low), verifying)
    assert (verifying.count, claims.retracts[leaf(1)].env) == (2, low)
    assert hearing.heard(claims, said(high), verifying) is claims
    assert verifying.count == 2


def test_nothing_more_is_verified_of_a_dead_origin() -> None:
    verifying = Verifications()
    dead = base().with_key(keys("alice", op="other").doc)
    others = said(retract())
    others.keys.append(keys("alice", epoch=2).doc)
    assert hearing.heard(dead, others, verifying) is dead
    assert verifying.count == 0


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (retract(epoch=2), "record without its key"),
        (retract(epoch=0), "bad signature"),
        (retract(by=keys("bob").op), "bad signature"),
        (Env("retract/1", retract().payload, bytes(64)), "bad signature"),
    ],
    ids=["an unknown epoch", "not the root key", "another's key", "no signature"],
)
def test_a_retraction_that_its_key_did_not_sign_is_refused(env: Env, reason: str) -> None:
    with pytest.raises(WireError) as refused:
        hearing.heard(base(), said(env))
    assert refused.value.reason == reason
    effects = bob().handle(received(ALICE, Have((A.doc,), (), (env,), ())))
    assert Refused(ALICE, reason, blame=reason == "bad signature") in effects


def test_a_retraction_in_the_name_of_another_is_refused() -> None:
    with pytest.raises(WireError) as refused:
        hearing.open_retract(read(retract(), Retract), Claims(seed("other"), keys={1: A.doc}))
    assert refused.value.reason == "record without its key"


def test_the_root_key_retracts_whatever_the_epoch() -> None:
    root = private_key(seed("alice", "root"))
    claims = hearing.heard(base(), said(retract(epoch=0, by=root), retract(None, epoch=0, by=root)))
    assert set(claims.retracts) == {leaf(1), None}
    assert claims.is_retracted(leaf(7))


def test_an_origin_dies_of_one_retraction_more_than_may_be() -> None:
    claims = base()
    for n in range(RETRACTS_MAX):
        what = Retract(A.origin, 1, leaf(n), NOW_H, Scope.PUBLISH)
        claims = claims.with_retract(Signed(what, retract(), seed(n)))
    assert claims.standing is Standing.SOUND
    assert not claims.is_retracted(leaf(RETRACTS_MAX + 1))
    more = claims.with_retract(Signed(GONE, retract(), bytes(32)))  # of a leaf that is retracted
    assert more.standing is Standing.SOUND
    last = Retract(A.origin, 1, None, NOW_H, Scope.PUBLISH)
    assert claims.with_retract(Signed(last, retract(), seed("last"))).standing is Standing.DEAD


def test_only_the_cards_of_retracted_leaves_leave_a_table() -> None:
    whole = table.build([card(1), card(2), card(3)], (), ())
    claims = hearing.heard(base(), said(retract(1), retract(3)))
    left = allowed(whole, claims)
    assert list(left.live()) == [card(2)]
    assert left.index == whole.index
    assert allowed(whole, base()) is whole
    assert [c.leaf for c in whole.without([leaf(2)]).live()] == sorted([leaf(1), leaf(3)])


def test_what_is_retracted_is_not_missing_and_what_is_here_is_not_either() -> None:
    whole = table.build([card(1), card(2), card(3)], (), ())
    hashes = {row.leaf: row.card for row in whole.index.rows}
    assert table.missing(whole.index, (), ()) == [row.card for row in whole.index.rows]
    assert table.missing(whole.index, (), [leaf(1), leaf(2)]) == [hashes[leaf(3)]]
    assert table.missing(whole.index, [hashes[leaf(3)]], [leaf(1)]) == [hashes[leaf(2)]]


def test_a_retraction_takes_the_card_from_what_is_held_and_a_later_key_takes_the_table() -> None:
    env, whole = signed(card(1), card(2))
    head = hearing.open_head(read(env, Head), base())
    held = Held(base().with_head(head), whole)
    gone = held.with_claims(hearing.heard(held.claims, said(retract(1))))
    assert list(gone.table.live()) == [card(2)]
    assert gone.claims.head == head
    assert held.with_claims(held.claims) is held
    newer = gone.with_claims(gone.claims.with_key(keys("alice", epoch=2).doc))
    assert not newer.table.live() and list(newer.claims.retracts) == [leaf(1)]


def test_an_owners_retraction_is_signed_saved_and_told_to_all_at_once() -> None:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    effects = node.handle(RetractOwn(leaf(1), NOW_S + DAY_S, Scope.TRAIN))
    assert [type(e) for e in effects] == [Save, OriginChanged, LeafRetracted, Broadcast, Send]
    assert effects[0].durable  # type: ignore[union-attr]
    [broadcast] = [e for e in effects if isinstance(e, Broadcast)]
    told = decode_sync(broadcast.frame)
    assert isinstance(told, Have) and [told] == sent(effects)
    assert (told.keys, told.heads, told.forks) == ((A.doc,), (), ())
    [env] = told.retracts
    what = open_(read(env, Retract), A.doc.op).value
    assert what == Retract(A.origin, 1, leaf(1), NOW_H + 24, Scope.TRAIN)
    assert node.view(A.origin).retracted == (leaf(1),)
    assert node.handle(RetractOwn(leaf(1), NOW_S + DAY_S, Scope.TRAIN)) == []


def test_a_retraction_heard_is_saved_durably_said_here_and_told_on_but_not_back() -> None:
    node, _ = informed(card(1), card(2))
    effects = node.handle(received(ALICE, Have((A.doc,), (), (retract(1),), ())))
    assert [type(e) for e in effects] == [Save, OriginChanged, LeafRetracted, Send]
    [save] = only(effects, Save)
    assert save.durable  # type: ignore[attr-defined]
    assert only(effects, LeafRetracted) == [LeafRetracted(A.origin, leaf(1))]
    [send] = only(effects, Send)
    assert send.peer == CAROL  # type: ignore[attr-defined]
    [told] = sent(effects)
    assert isinstance(told, Have) and told.retracts == (retract(1),)
    again = Have((A.doc,), (), (retract(1), retract(2)), ())
    effects = node.handle(received(ALICE, again))
    assert only(effects, LeafRetracted) == [LeafRetracted(A.origin, leaf(2))]
    assert node.view(A.origin).cards == () and node.view(A.origin).retracted == tuple(
        sorted((leaf(1), leaf(2)))
    )


def test_a_retraction_of_all_leaves_takes_every_card_and_is_said_once() -> None:
    node, _ = informed(card(1), card(2))
    effects = node.handle(received(ALICE, Have((A.doc,), (), (retract(None),), ())))
    assert only(effects, LeafRetracted) == [LeafRetracted(A.origin, None)]
    assert node.view(A.origin).cards == ()
    assert node.handle(received(CAROL, Have((A.doc,), (), (retract(None),), ()))) == []


def test_before_a_table_or_its_cards_all_retractions_of_its_origin_are_sent() -> None:
    node, env = informed(card(1), card(2))
    node.handle(received(ALICE, Have((A.doc,), (), (retract(1), retract(9)), ())))
    hashes = table.card_hash(card(1)) + table.card_hash(card(2))
    for asked in (
        TableGet(A.origin, id_of(env), ZERO32),
        CardsGet(A.origin, id_of(env), hashes, 0),
    ):
        told, answer_ = sent(node.handle(received(CAROL, asked)))
        assert isinstance(told, Have)
        assert set(told.retracts) == {retract(1), retract(9)} and told.keys == (A.doc,)
        assert answer_.cards == (card(2),)  # type: ignore[union-attr]
    [gone] = sent(node.handle(received(CAROL, TableGet(seed("other"), id_of(env), ZERO32))))
    assert isinstance(gone, Gone)


def test_of_a_table_on_its_way_what_is_retracted_is_not_asked_for() -> None:
    node = bob()
    env, whole = signed(card(1), card(2), card(3))
    node.handle(received(ALICE, have(env)))
    node.handle(received(CAROL, Have((A.doc,), (), (retract(1),), ())))
    [asked] = sent(node.handle(received(ALICE, Manifest(env, whole.index, (), ()))))
    assert isinstance(asked, CardsGet)
    wanted = [row.card for row in whole.index.rows if row.leaf != leaf(1)]
    assert asked.cards == b"".join(wanted)
    node.handle(received(ALICE, Manifest(env, whole.index, (card(2), card(3)), ())))
    assert {c.leaf for c in node.view(A.origin).cards} == {leaf(2), leaf(3)}


def test_retractions_are_in_a_summary_and_given_to_who_lacks_them() -> None:
    mine = hearing.heard(base(), said(retract(1), retract(2)))
    theirs = hearing.heard(base(), said(retract(2)))
    assert origin.summary(mine) != origin.summary(theirs)
    given_ = origin.lacking(mine, origin.summary(theirs))
    assert (list(given_.retracts), dict(given_.keys)) == ([leaf(1)], {})
    assert origin.lacks(theirs, origin.summary(mine))
    assert not origin.lacks(mine, origin.summary(theirs))


def test_what_was_retracted_long_ago_is_not_told_unasked() -> None:
    node = bob()
    effects = node.handle(received(ALICE, Have((A.doc,), (), (retract(hour=NOW_H - 3),), ())))
    assert not only(effects, Send) and only(effects, LeafRetracted)
    effects = node.handle(received(ALICE, Have((A.doc,), (), (retract(2, hour=NOW_H - 2),), ())))
    assert only(effects, Send)


# Rules of one origin ------------------------------------------------------------------------------


def head(seq: int = 5, **changed: object) -> Signed[Head]:
    env, _ = signed(seq=seq, **changed)  # type: ignore[arg-type]
    return hearing.open_head(read(env, Head), base())


def test_a_head_may_be_signed_in_the_first_and_in_the_last_hour_of_its_key() -> None:
    for hour in (A.doc.not_before_h, A.doc.not_after_h):
        value = head(ts_h=hour, exp_h=hour).value
        assert origin.out_of_bounds(value, A.doc) is None


def test_two_heads_stand_for_the_same_table_if_root_number_and_usage_are_equal() -> None:
    value = head().value
    renewed = head(seq=9, ts_h=NOW_H + 1, exp_h=NOW_H + 2).value
    assert origin.same_table(value, renewed)
    for changed in ({"table_root": ZERO32}, {"n_live": 7}, {"usage": seed("usage")}):
        assert not origin.same_table(value, head(**changed).value)


def test_the_hour_of_claims_is_that_of_the_latest_and_what_is_proven_is_always_new() -> None:
    always = 0xFFFF_FFFF
    assert origin.newest_h(Claims(A.origin)) == 0
    assert origin.newest_h(base()) == 0
    old = hearing.heard(base(), said(retract(1, hour=7), retract(2, hour=9)))
    assert origin.newest_h(old) == 9
    assert origin.newest_h(old.with_head(head(ts_h=NOW_H))) == NOW_H
    assert origin.newest_h(base().with_head(head(ts_h=NOW_H))) == NOW_H
    assert origin.newest_h(base().with_key(keys("alice", op="other").doc)) == always
    assert origin.newest_h(base().with_head(head()).with_head(head(n_live=3))) == always
    assert origin.newest_h(base().with_key(keys("alice", epoch=2, revoked=(1,)).doc)) == always


def test_of_an_unknown_origin_the_summary_is_that_of_no_claims() -> None:
    assert origin.nothing_of(A.origin[:16]) == origin.summary(Claims(A.origin))
    assert origin.nothing_of(b"s" * 16).slot == b"s" * 16


def test_names_in_another_order_are_the_same_names() -> None:
    claims = base().with_key(keys("alice", epoch=2).doc).with_key(keys("alice", epoch=3).doc)
    brief = origin.summary(claims)
    names = [brief.ids[i : i + 16] for i in range(0, 48, 16)]
    assert names == sorted(names)
    turned = replace(brief, ids=b"".join(reversed(names)))
    assert not origin.lacks(claims, turned)
    assert origin.lacking(claims, turned).keys == {}
    fewer = replace(brief, ids=names[0] + names[2])
    assert [origin.key_id(d) for d in origin.lacking(claims, fewer).keys.values()] == [names[1]]
    straddling = replace(brief, ids=names[0][8:] + names[1] + names[2][:8])
    assert len(origin.lacking(claims, straddling).keys) == 3


def test_of_two_heads_of_one_sequence_number_each_is_given_to_who_holds_the_other() -> None:
    mine, theirs = base().with_head(head()), base().with_head(head(n_live=3))
    assert origin.lacking(mine, origin.summary(theirs)).head == mine.head
    assert origin.lacks(mine, origin.summary(theirs))
    assert origin.lacking(mine, origin.summary(mine)).head is None
    assert origin.lacking(mine, origin.summary(base().with_head(head(4)))).head == mine.head
    assert origin.lacking(mine, origin.summary(base().with_head(head(6)))).head is None
    assert not origin.lacks(mine, origin.summary(base().with_head(head(4))))
    assert origin.lacks(mine, origin.summary(base().with_head(head(6))))


def test_without_a_known_key_nothing_opens_not_even_for_the_root() -> None:
    nothing = Claims(A.origin)
    assert nothing.public_key(0) is None and nothing.public_key(1) is None
    assert base().public_key(0) == A.doc.root and base().public_key(1) == A.doc.op
    with pytest.raises(WireError) as refused:
        hearing.heard(nothing, said(retract(epoch=0)))
    assert refused.value.reason == "record without its key"


def test_a_burnt_origin_keeps_the_keys_it_had_and_the_two_that_prove_it() -> None:
    rival = keys("alice", op="other").doc
    dead = base().with_head(head()).with_key(rival)
    assert (dict(dead.keys), dead.burn) == ({1: A.doc}, (A.doc, rival))
    assert (dead.head, dead.fork, dict(dead.retracts)) == (None, None, {})


def test_what_is_known_already_changes_nothing_at_all() -> None:
    claims = hearing.heard(base(), said(retract())).with_head(head())
    assert claims.with_retract(claims.retracts[leaf(1)]) is claims
    assert claims.with_key(A.doc) is claims


def test_a_frozen_origin_that_dies_of_retractions_is_dead_and_no_more() -> None:
    claims = base().with_head(head()).with_head(head(n_live=3))
    assert claims.fork is not None
    for n in range(RETRACTS_MAX + 1):
        claims = claims.with_retract(Signed(replace(GONE, leaf=leaf(n)), retract(), seed(n)))
    assert claims.standing is Standing.DEAD
    assert (claims.fork, claims.head) == (None, None)


# What follows from a retraction -------------------------------------------------------------------


def test_a_retraction_of_all_is_stored_under_the_origin_and_one_of_a_leaf_under_both() -> None:
    node, _ = informed(card(1))
    [one] = only(node.handle(received(ALICE, Have((A.doc,), (), (retract(1),), ()))), Save)
    [all_] = only(node.handle(received(ALICE, Have((A.doc,), (), (retract(None),), ()))), Save)
    assert ("retract", A.origin + leaf(1)) in [(r.table, r.key) for r in one.puts]  # type: ignore[attr-defined]
    assert [(r.table, r.key) for r in all_.puts if r.table == "retract"] == [  # type: ignore[attr-defined]
        ("retract", A.origin)
    ]


def test_a_retraction_heard_by_broadcast_is_not_told_again_to_single_peers() -> None:
    frame = encode(Have((A.doc,), (), (retract(1),), ()))
    effects = bob().handle(Received(ALICE, frame, NOW_S, urgent=True))
    assert only(effects, LeafRetracted) and not only(effects, Send)
    assert not only(effects, Broadcast)
    told = only(bob().handle(Received(ALICE, frame, NOW_S)), Send)
    assert [effect.peer for effect in told] == [CAROL]  # type: ignore[attr-defined]


def test_an_owners_retraction_is_told_to_single_peers_whatever_came_by_broadcast_before() -> None:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    node.handle(Received(BOB, encode(Have((), (), (), ())), NOW_S, urgent=True))
    assert only(node.handle(RetractOwn(leaf(1), NOW_S)), Send)


def test_a_table_that_a_retraction_completes_is_told_to_others_than_who_retracted() -> None:
    node = bob()
    env, whole = signed(card(1), card(2))
    node.handle(received(ALICE, have(env)))
    node.handle(received(ALICE, Manifest(env, whole.index, (card(2),), ())))
    effects = node.handle(received(CAROL, Have((A.doc,), (), (retract(1),), ())))
    summaries = [e.peer for e in only(effects, Send) if b"compare/1" in e.frame]  # type: ignore[attr-defined]
    assert summaries == [ALICE]


def test_what_is_retracted_takes_no_usage_with_it() -> None:
    row = Usage(seed("other"), leaf(9), 3, 4, 2)
    whole = table.build([card(1), card(2)], (), [row])
    assert whole.without([leaf(1)]).usage == (row,)
    assert whole.without([leaf(1)]).index == whole.index


def test_what_a_node_said_and_has_no_record_of_is_counted_once_each() -> None:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    assert node.handle(received(BOB, Have((A.doc,), (), (), ()))) and node.rollbacks == 0
    for n, count in ((1, 1), (1, 1), (2, 2)):
        node.handle(received(BOB, Have((A.doc,), (), (retract(n),), ())))
        assert node.rollbacks == count
    node.handle(received(BOB, Have((keys("alice", epoch=2).doc,), (), (), ())))
    assert node.rollbacks == 3
    node.handle(received(BOB, Have((keys("alice", epoch=3).doc,), (), (), ())))
    assert node.rollbacks == 3  # known to be left behind already


def test_what_others_retract_or_sign_anew_is_no_sign_of_a_restored_backup() -> None:
    node = bob()
    node.handle(received(ALICE, Have((A.doc,), (), (retract(1),), ())))
    node.handle(received(ALICE, Have((keys("alice", epoch=2).doc,), (), (), ())))
    assert node.rollbacks == 0


def test_an_older_key_that_becomes_known_changes_neither_head_nor_table() -> None:
    second = keys("alice", epoch=2)
    env, whole = signed(card(1), by=second)
    claims = Claims(A.origin).with_key(second.doc)
    held = Held(claims.with_head(hearing.open_head(read(env, Head), claims)), whole)
    new = held.with_claims(held.claims.with_key(A.doc))
    assert (sorted(new.claims.keys), new.claims.head) == ([1, 2], held.claims.head)
    assert new.table is whole


def test_a_proof_of_nothing_or_of_an_older_epoch_is_not_worth_a_signature_check() -> None:
    verifying = Verifications()
    a, b = head(), head(n_live=3)
    nothing, old = Said(forks=[Fork(a.env, a.env)]), Said(forks=[Fork(a.env, b.env)])
    later = base().with_key(keys("alice", epoch=2).doc)
    assert hearing.heard(base(), nothing, verifying) == base()
    assert hearing.heard(later, old, verifying) is later
    assert verifying.count == 0
    assert hearing.heard(base(), old, verifying).fork is not None and verifying.count == 2


def test_what_a_message_says_is_sorted_by_who_says_it() -> None:
    message = Have((A.doc,), (head().env,), (retract(),), (Fork(head().env, head().env),))
    assert list(hearing.by_origin(message)) == [A.origin]
