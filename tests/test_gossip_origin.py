"""The join of what one origin has said: any order, any repetition, one outcome."""

from __future__ import annotations

from random import Random

import pytest
from gossip_kit import NOW_H, NOW_S, keys, leaf, seed
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import hearing, origin
from gossip.envelope import Signed, open_, read, seal
from gossip.keys import Keys, doc_is_signed, issue, private_key, public_bytes
from gossip.origin import Claims, Proof, conflict, item, join, lacking, lacks, summary
from gossip.wire import (
    RETRACTS_MAX,
    ZERO32,
    Fork,
    Head,
    KeyDoc,
    Retract,
    Scope,
    Standing,
    WireError,
    encode,
)

ALICE = keys("alice")
SECOND = keys("alice", epoch=2)
RIVAL = keys("alice", op="other")  # a second key for the first epoch
ORIGIN = ALICE.origin


def head(seq: int, after: Signed[Head] | None = None, by: Keys = ALICE, n: int = 0) -> Signed[Head]:
    """The head of this seq, next after another; `n` tells apart heads that are otherwise equal."""
    return seal(
        Head(
            *(by.origin, by.doc.epoch, seq, after.value.seq if after else 0),
            *(after.id if after else ZERO32, seed("table", seq, n), 0),
            *(NOW_H, NOW_H + 168, 0, bytes(8), ZERO32),
        ),
        by.op,
    )


def retract(n: int | None, by: Keys = ALICE, hour: int = NOW_H) -> Signed[Retract]:
    gone = None if n is None else leaf(n)
    return seal(Retract(by.origin, by.doc.epoch, gone, hour, Scope.PUBLISH), by.op)


def chain(length: int, by: Keys = ALICE) -> list[Signed[Head]]:
    heads: list[Signed[Head]] = []
    for seq in range(1, length + 1):
        heads.append(head(seq, heads[-1] if heads else None, by))
    return heads


def base(*docs: KeyDoc) -> Claims:
    claims = Claims(ORIGIN)
    for doc in docs or (ALICE.doc,):
        claims = claims.with_key(doc)
    return claims


# Signatures ---------------------------------------------------------------------------------------


def test_what_was_sealed_opens_with_its_key_alone() -> None:
    signed = head(1)
    sealed = read(signed.env, Head)
    assert open_(sealed, ALICE.doc.op) == signed
    with pytest.raises(WireError, match="bad signature"):
        open_(sealed, RIVAL.doc.op)


def test_a_signature_does_not_carry_over_to_another_type_or_payload() -> None:
    env = head(1).env
    with pytest.raises(WireError, match="wrong type"):
        read(env, Retract)
    renamed = type(env)("retract/1", encode(retract(1).value), env.sig)
    with pytest.raises(WireError, match="bad signature"):
        open_(read(renamed, Retract), ALICE.doc.op)


def test_a_key_document_is_signed_by_the_root_that_it_names() -> None:
    forged = KeyDoc(*[getattr(ALICE.doc, f) for f in KeyDoc.__struct_fields__[:-1]], sig=bytes(64))
    assert doc_is_signed(ALICE.doc)
    assert not doc_is_signed(forged)
    with pytest.raises(WireError, match="bad signature"):
        hearing.open_key(forged, ORIGIN)
    with pytest.raises(WireError, match="another origin"):
        hearing.open_key(keys("bob").doc, ORIGIN)


def test_keys_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="another key"):
        Keys(RIVAL.op, ALICE.doc)
    root, op = private_key(seed(1)), private_key(seed(2))
    doc = issue(root, public_bytes(op), epoch=1, not_before_h=0, not_after_h=9)
    other = KeyDoc(doc.root, 2, doc.op, 0, 9, (), 0, doc.sig)
    with pytest.raises(ValueError, match="not signed"):
        Keys(op, other)


def test_a_record_is_opened_only_with_a_key_of_its_own_origin() -> None:
    with pytest.raises(WireError, match="without its key"):
        hearing.open_head(read(head(1).env, Head), Claims(ORIGIN))
    with pytest.raises(WireError, match="without its key"):
        hearing.open_head(read(head(1, by=keys("bob")).env, Head), base())


def test_the_root_key_may_retract_in_the_place_of_epoch_zero() -> None:
    said = Retract(ORIGIN, 0, None, NOW_H, Scope.TRAIN)
    by_root = seal(said, private_key(seed("alice", "root")))
    assert hearing.open_retract(read(by_root.env, Retract), base()) == by_root


# Heads --------------------------------------------------------------------------------------------


def test_the_head_with_the_highest_sequence_number_stands() -> None:
    first, second, third = chain(3)
    assert base().with_head(first).with_head(third).with_head(second).head == third


def test_a_chain_with_gaps_is_no_conflict() -> None:
    heads = chain(6)
    assert not any(conflict(a, b) for a in heads for b in heads)


@pytest.mark.parametrize("case", ["same seq", "same parent skipped", "other parent"])
def test_two_histories_under_one_key_freeze_its_epoch(case: str) -> None:
    first, second, third = chain(3)
    rival = {
        "same seq": head(2, first, n=1),
        "same parent skipped": head(3, first, n=1),
        "other parent": head(3, head(2, first, n=1)),
    }[case]
    claims = base().with_head(second).with_head(rival)
    assert claims.standing is Standing.FROZEN
    assert claims.head is None
    assert claims.with_head(third).head is None
    assert claims.fork is not None and claims.fork.a.id < claims.fork.b.id


def test_heads_of_other_epochs_and_origins_never_conflict() -> None:
    assert not conflict(head(1), head(1, by=SECOND))
    assert not conflict(head(1), head(1, by=keys("bob")))
    assert not conflict(head(1), head(1))


def test_a_proof_that_proves_nothing_is_ignored() -> None:
    first, second = chain(2)
    claims = base().with_head(second)
    assert claims.with_fork(Proof(first, second)) is claims
    assert claims.with_fork(Proof(head(1, by=SECOND), head(1, by=SECOND, n=1))) is claims


def test_a_key_of_a_higher_epoch_makes_a_frozen_origin_sound() -> None:
    frozen = base().with_head(head(1)).with_head(head(1, n=1))
    healed = frozen.with_key(SECOND.doc)
    assert healed.standing is Standing.SOUND
    assert healed.with_head(head(9)).head is None
    assert healed.with_head(head(1, by=SECOND)).head == head(1, by=SECOND)
    assert healed.with_key(ALICE.doc) is healed


def test_two_keys_for_one_epoch_are_the_end_of_an_origin() -> None:
    dead = base().with_head(head(1)).with_key(RIVAL.doc)
    assert dead.standing is Standing.DEAD
    assert dead.head is None
    assert dead.is_retracted(leaf(1))
    for after in (
        dead.with_key(SECOND.doc),
        dead.with_retract(retract(1)),
        dead.with_head(head(2)),
    ):
        assert after is dead


def test_a_lower_epoch_may_become_known_later_and_changes_nothing_but_the_keys() -> None:
    claims = base(SECOND.doc).with_head(head(4, by=SECOND)).with_key(ALICE.doc)
    assert claims.head == head(4, by=SECOND)
    assert sorted(claims.keys) == [1, 2]


# Retractions --------------------------------------------------------------------------------------


def test_a_retraction_holds_for_ever_and_for_every_key() -> None:
    claims = base().with_retract(retract(1)).with_key(SECOND.doc)
    assert claims.is_retracted(leaf(1))
    assert not claims.is_retracted(leaf(2))
    assert claims.with_retract(retract(None)).is_retracted(leaf(2))


def test_of_two_retractions_of_one_leaf_all_keep_the_same() -> None:
    a, b = retract(1), retract(1, hour=NOW_H + 1)
    assert base().with_retract(a).with_retract(b) == base().with_retract(b).with_retract(a)


def test_retractions_without_measure_retract_the_whole_origin() -> None:
    claims = base().with_head(head(1))
    for n in range(RETRACTS_MAX + 1):
        gone = Retract(ORIGIN, 1, leaf(n), NOW_H, Scope.PUBLISH)
        claims = claims.with_retract(Signed(gone, head(1).env, seed(n)))
    assert claims.standing is Standing.DEAD
    assert claims.head is None
    assert summary(claims) == summary(base().with_key(RIVAL.doc))
    assert lacking(claims, summary(base())) is claims


# Bounds -------------------------------------------------------------------------------------------


def test_a_head_that_can_never_be_right_is_out_of_bounds() -> None:
    def bounds(**changed: int) -> str | None:
        fields = {f: getattr(head(5).value, f) for f in Head.__struct_fields__} | changed
        return origin.out_of_bounds(Head(**fields), ALICE.doc)

    assert bounds() is None
    assert bounds(exp_h=NOW_H + 169) == "head lives too long"
    assert bounds(exp_h=NOW_H - 1) == "head lives too long"
    assert bounds(prev_seq=5) == "head before itself"
    early, late = ALICE.doc.not_before_h - 1, ALICE.doc.not_after_h + 1
    assert bounds(ts_h=early, exp_h=early) == "head outside its key's time"
    assert bounds(ts_h=late, exp_h=late) == "head outside its key's time"


def test_a_head_from_the_future_is_too_early_at_its_boundary() -> None:
    def early(seq: int, ts_h: int) -> str | None:
        fields = {f: getattr(head(5).value, f) for f in Head.__struct_fields__}
        return origin.too_early(Head(**fields | {"seq": seq, "ts_h": ts_h}), NOW_S)

    assert early((NOW_H + 24) << 16 | 0xFFFF, NOW_H + 1) is None
    assert early((NOW_H + 25) << 16, NOW_H) == "sequence number from the future"
    assert early(1, NOW_H + 2) == "head from the future"


def test_a_head_is_stale_in_the_hour_after_its_last() -> None:
    value = head(1).value
    assert not origin.is_stale(value, value.exp_h * 3600 + 3599)
    assert origin.is_stale(value, (value.exp_h + 1) * 3600)


@given(st.integers(0, 2**48), st.integers(0, 2**33))
def test_a_sequence_number_rises_and_is_never_below_its_hour(last: int, now_s: int) -> None:
    following = origin.next_seq(last, now_s)
    assert following > last
    assert following >> 16 >= now_s // 3600


# The join -----------------------------------------------------------------------------------------


def _history(number: int) -> list[object]:
    """A history of many: honest chains, forks, key conflicts, retractions, two epochs."""
    chance = Random(number)
    pieces: list[object] = [ALICE.doc, *chain(chance.randint(1, 5))]
    if chance.random() < 0.5:
        pieces += [SECOND.doc, *chain(chance.randint(1, 4), SECOND)]
    if chance.random() < 0.5:
        pieces += [head(chance.randint(1, 4), n=1, by=chance.choice([ALICE, SECOND]))]
    if chance.random() < 0.15:
        pieces += [RIVAL.doc]
    pieces += [retract(n, by=chance.choice([ALICE, SECOND])) for n in range(chance.randint(0, 3))]
    if chance.random() < 0.2:
        pieces += [retract(None)]
    return pieces


def _told(claims: Claims, piece: object) -> Claims:
    """Add a piece as the core would: what its key cannot open yet is not heard."""
    match piece:
        case KeyDoc():
            return claims.with_key(piece)
        case Signed(value=Head(epoch=epoch)):
            return claims.with_head(piece) if claims.public_key(epoch) else claims
        case Signed(value=Retract(epoch=epoch)):
            return claims.with_retract(piece) if claims.public_key(epoch) else claims
    raise AssertionError(piece)


def _exchanged(nodes: list[Claims]) -> list[Claims]:
    """Let all give each other what the others lack, until nobody lacks anything."""
    for _ in range(len(nodes) + 2):
        for i, a in enumerate(nodes):
            for b in nodes:
                nodes[i] = a = join(a, lacking(b, summary(a)))
    return nodes


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_all_who_exchanged_what_they_heard_in_any_order_agree(number: int, order: int) -> None:
    chance = Random(order)
    nodes = []
    for _ in range(4):
        pieces = _history(number)
        heard = chance.choices(pieces, k=2 * len(pieces))  # in part, in any order, and twice
        claims = Claims(ORIGIN)
        for piece in heard:
            claims = _told(claims, piece)
        nodes.append(claims)
    agreed = _exchanged(nodes)
    assert len({item(claims) for claims in agreed}) == 1
    for a in agreed:
        for b in agreed:
            assert not lacks(a, summary(b))
            assert item(join(a, b)) == item(a)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_honest_origin_is_the_same_in_whatever_order_it_is_heard(
    number: int, order: int
) -> None:
    pieces = [ALICE.doc, *chain(4), retract(1), retract(number % 3)]
    shuffled = pieces[:1] + Random(order).sample(pieces, len(pieces))
    claims = Claims(ORIGIN)
    for piece in shuffled:
        claims = _told(claims, piece)
    assert claims.standing is Standing.SOUND
    assert claims.head == chain(4)[-1]
    assert set(claims.retracts) == {leaf(1), leaf(number % 3)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), st.integers(0, 10**6))
def test_the_join_is_commutative_associative_and_idempotent(orders: list[int], number: int) -> None:
    # Of honest histories: a fork is found out only where its branches meet, which is what the
    # exchange of proofs is for.
    pieces = [p for p in _history(number) if p in [ALICE.doc, *chain(5)] or _is_retract(p)]
    a, b, c = (_part(pieces, order) for order in orders)
    assert item(join(a, b)) == item(join(b, a))
    assert item(join(join(a, b), c)) == item(join(a, join(b, c)))
    assert item(join(a, a)) == item(a)


def _is_retract(piece: object) -> bool:
    return isinstance(piece, Signed) and isinstance(piece.value, Retract) and piece.value.epoch == 1


def _part(pieces: list[object], order: int) -> Claims:
    claims = base()
    for piece in Random(order).sample(pieces, len(pieces) // 2):
        claims = _told(claims, piece)
    return claims


def test_a_fork_proof_is_told_to_who_does_not_know_and_to_nobody_else() -> None:
    frozen = base().with_head(head(1)).with_head(head(1, n=1))
    one_branch = base().with_head(head(1))
    assert lacking(frozen, summary(one_branch)).fork == frozen.fork
    assert lacking(frozen, summary(frozen)) == Claims(ORIGIN)
    assert lacks(one_branch, summary(frozen))
    assert not lacks(frozen, summary(one_branch))
    assert lacking(one_branch, summary(frozen)).head is None


def test_nothing_is_told_of_or_to_an_origin_that_is_known_dead() -> None:
    dead = base().with_key(RIVAL.doc)
    assert lacking(base().with_head(head(1)), summary(dead)) == Claims(ORIGIN)
    assert lacking(dead, summary(base())).burn is not None
    assert lacks(base(), summary(dead))
    assert not lacks(dead, summary(base()))


def test_who_is_behind_an_epoch_gets_its_key_and_its_head() -> None:
    ahead = base(ALICE.doc, SECOND.doc).with_head(head(1, by=SECOND))
    behind = base().with_head(head(5))
    given_ = lacking(ahead, summary(behind))
    assert (list(given_.keys), given_.head) == ([2], head(1, by=SECOND))
    assert lacks(behind, summary(ahead))
    assert lacking(behind, summary(ahead)) == Claims(ORIGIN)
    assert not lacks(ahead, summary(behind))


def test_a_proof_is_verified_before_it_freezes() -> None:
    a, b = head(1), head(1, n=1)
    proof = hearing.open_fork(Fork(a.env, b.env), base())
    assert base().with_fork(proof).standing is Standing.FROZEN
    forged = type(b.env)("head/1", b.env.payload, bytes(64))
    with pytest.raises(WireError, match="bad signature"):
        hearing.open_fork(Fork(a.env, forged), base())
