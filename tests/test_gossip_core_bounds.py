"""What a hostile peer may make a node hold, and make honest ones think of each other."""

from __future__ import annotations

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
    sent,
    signed,
)
from msgspec.structs import replace

from gossip import table
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.envelope import id_of, seal
from gossip.events import PeerDown, PeerUp, PublishBlocked, Refused, Rekey, Save, Send
from gossip.ports import PeerId
from gossip.table import card_hash
from gossip.wire import (
    Cards,
    Echo,
    EchoGet,
    Env,
    Have,
    Index,
    Manifest,
    Retract,
    Row,
    Scope,
    TableGet,
    decode_sync,
)

ROOM = 1024 * 1024  # of what may be recorded at most, in these tests


def gone(n: int, by: object = "alice") -> Env:
    who = keys(by)
    return seal(Retract(who.origin, 1, leaf(n), NOW_H, Scope.PUBLISH), who.op).env


def retract(node: Replica, by: object, many: range, now_s: int = NOW_S) -> int:
    """How many retractions of an origin are held after it was told to have made these."""
    for n in many:
        message = Have((keys(by).doc,), (), (gone(n, by),), ())
        refused = only(node.handle(received(ALICE, message, now_s)), Refused)
        assert not any(one.blame for one in refused)  # type: ignore[attr-defined]
    return len(node.view(keys(by).origin).retracted)


# One card in two rows -----------------------------------------------------------------------------


def test_a_table_with_one_card_in_two_rows_is_refused_by_the_first_who_hears_of_it() -> None:
    low, high = sorted([leaf(1), leaf(2)])
    shared = replace(card(1), leaf=high)
    index = Index((Row(low, 1, card_hash(shared)), Row(high, 1, card_hash(shared))), ())
    env, _ = signed(table_root=table.root(index), n_live=2)
    node = bob()
    node.handle(received(ALICE, have(env)))
    effects = node.handle(received(ALICE, Manifest(env, index, (shared,), ())))
    assert effects[0] == Refused(ALICE, "one card in two rows", blame=True)
    assert node.view(A.origin).head is None


# Records that are never given up ------------------------------------------------------------------


def test_retractions_of_leaves_in_no_table_have_a_bound_in_all() -> None:
    node = bob(records_bytes_max=ROOM)
    held = [retract(node, f"sybil {n}", range(60)) for n in range(8)]
    assert sum(held) * 800 <= 0.75 * ROOM / 4
    later = NOW_S
    for hour in range(1, 12):
        later = NOW_S + 3600 * hour
        held = [retract(node, f"sybil {n}", range(400), later) for n in range(8)]
    assert sum(held) * 800 <= ROOM


def test_a_leaf_that_is_in_a_table_can_always_be_retracted() -> None:
    node = bob(records_bytes_max=1024)
    for n in range(4):
        retract(node, f"sybil {n}", range(4))
    env, whole = signed(card(1), card(2))
    node.handle(received(CAROL, have(env)))
    node.handle(received(CAROL, manifest(env, whole)))
    node.handle(received(CAROL, Have((A.doc,), (), (gone(1),), ())))
    assert node.view(A.origin).retracted == (leaf(1),)


def test_a_table_is_whole_though_its_retractions_were_put_off_before_it_was_known() -> None:
    node = bob(records_bytes_max=1024)
    env, whole = signed(card(1), card(2))
    index_only = Manifest(env, whole.index, (), ())
    told = Have((A.doc,), (), (gone(1),), ())
    node.handle(received(CAROL, have(env)))
    node.handle(received(CAROL, told))
    node.handle(received(CAROL, index_only))
    node.handle(received(CAROL, told))  # it is told again with each answer
    cards = tuple(one for one in whole.live() if one.leaf == leaf(2))
    node.handle(received(CAROL, Cards(A.origin, id_of(env), cards, ())))
    assert node.view(A.origin).cards == cards


def test_keys_of_many_epochs_have_a_bound() -> None:
    node = bob(records_bytes_max=ROOM)
    docs = [keys("mallory", epoch=n, revoked=tuple(range(1, n))).doc for n in range(1, 256)]
    told = [node.handle(received(ALICE, Have((doc,), (), (), ()))) for doc in docs]
    put_off = Refused(ALICE, "too many records of no table", blame=False)
    assert 100 < [put_off in effects for effects in told].index(True) < 200


def test_an_origin_with_a_table_gets_a_new_key_whatever_others_have_used_up() -> None:
    node, _ = informed(card(1))
    retract(node, "sybil", range(4))
    node.handle(received(CAROL, Have((keys("alice", epoch=2, revoked=(1,)).doc,), (), (), ())))
    assert node.view(A.origin).head is None


def test_what_is_held_counts_after_a_restart_too() -> None:
    line = Line(bob=replica("bob"))
    line.give(BOB, PeerUp(ALICE, NOW_S))
    retractions = tuple(gone(n) for n in range(100))
    line.give(BOB, received(ALICE, Have((A.doc,), (), retractions, ())))
    again = replica("bob", GossipConfig(records_bytes_max=81_000), line.records("bob"))
    again.handle(PeerUp(ALICE, NOW_S))
    assert retract(again, "sybil", range(20)) == 1


# Tables -------------------------------------------------------------------------------------------


def test_a_table_that_grows_is_counted_by_what_it_grows() -> None:
    node = bob(new_tables_bytes_max=100_000, new_tables_bytes_h=1)
    asked = 0
    for n in range(4):
        by = keys(f"sybil {n}")
        small, whole = signed(by=by)
        node.handle(received(ALICE, have(small, by=by)))
        node.handle(received(ALICE, manifest(small, whole)))
        after = {"seq": (NOW_H << 16) + 1, "prev_seq": NOW_H << 16, "prev": id_of(small)}
        large, _ = signed(by=by, n_live=100, **after)  # type: ignore[arg-type]
        effects = node.handle(received(ALICE, have(large, by=by)))
        asked += any(isinstance(m, TableGet) for m in sent(effects))
    assert asked == 1


# A stolen key -------------------------------------------------------------------------------------


def test_an_own_head_from_the_future_is_not_gone_on_from_and_the_owner_is_told() -> None:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    stolen, _ = signed(card(9), seq=2**63 - 1)
    node.handle(publish(card(1)))
    effects = node.handle(received(BOB, Echo(A.origin, A.doc, stolen)))
    assert only(effects, PublishBlocked) and node.own_head() is None
    assert not only(node.handle(publish(card(2))), Save)
    day = NOW_S + 86_400
    assert only(node.handle(publish(card(2), now_s=day)), PublishBlocked)
    node.handle(Rekey(keys("alice", epoch=2, revoked=(1,)), day))
    node.handle(publish(card(2), now_s=day))
    head = node.own_head()
    assert head is not None and (head.epoch, head.seq) == (2, NOW_H + 24 << 16)


def test_an_own_head_ahead_of_a_clock_that_is_behind_is_gone_on_from_when_that_is_right() -> None:
    node = replica("alice")
    behind = NOW_S - 5 * 86_400
    node.handle(PeerUp(BOB, behind))
    own, _ = signed(card(9))
    node.handle(publish(card(1), now_s=behind))
    node.handle(received(BOB, Echo(A.origin, A.doc, own), behind))
    assert node.own_head() is None
    node.handle(publish(card(1)))
    head = node.own_head()
    assert head is not None and head.prev_seq == NOW_H << 16


# Room for origins ---------------------------------------------------------------------------------


def test_origins_that_only_retract_do_not_take_the_room_of_honest_ones_for_ever() -> None:
    node = bob(origins_max=40, introductions_h_max=1000, introductions_all_h_max=1000)
    honest = [keys(f"honest {n}") for n in range(20)]
    node.handle(received(CAROL, Have(tuple(one.doc for one in honest), (), (), ())))
    for n in range(100):
        peer = PeerId(f"mallory {n}")
        node.handle(PeerUp(peer, NOW_S))
        sybil = Have((keys(f"sybil {n}").doc,), (), (gone(n, f"sybil {n}"),), ())
        node.handle(received(peer, sybil))
    assert {one.origin for one in honest} <= set(node.origins())
    newcomer = keys("newcomer")
    node.handle(received(CAROL, Have((newcomer.doc,), (), (), ())))
    assert newcomer.origin in node.origins()


def test_peers_that_cost_nothing_bring_no_more_unknown_origins_together() -> None:
    node = bob(origins_max=100, introductions_all_h_max=10)
    for n in range(100):
        peer = PeerId(f"mallory {n}")
        node.handle(PeerUp(peer, NOW_S))
        node.handle(received(peer, Have((keys(f"sybil {n}").doc,), (), (), ())))
    assert len(node.origins()) == 50 + 10


# The first publish --------------------------------------------------------------------------------


def test_a_peer_that_never_answers_and_connects_anew_does_not_hold_the_first_publish_back() -> None:
    node, mallory = replica("alice"), PeerId("mallory")
    honest = [PeerId(f"honest {n}") for n in range(4)]
    node.handle(PeerUp(mallory, NOW_S))
    node.handle(publish(card(1)))
    for now_s in range(NOW_S, NOW_S + 60, 5):
        due = node.handle(PeerDown(mallory, now_s)) + node.handle(PeerUp(mallory, now_s))
        for peer in honest:
            due += node.handle(PeerUp(peer, now_s))
        for effect in only(due, Send):
            assert isinstance(effect, Send)
            if effect.peer in honest and isinstance(decode_sync(effect.frame), EchoGet):
                node.handle(received(effect.peer, Echo(A.origin, None, None), now_s))
    assert node.own_head() is not None
