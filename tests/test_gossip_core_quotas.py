"""What one peer and one origin may cost: what is over it waits, and nobody honest is blamed."""

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
    seed,
    sent,
    signed,
)
from msgspec.structs import replace

from gossip.admission import BUCKETS_MAX, Admission, Buckets
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.envelope import Signed, id_of
from gossip.events import PeerUp, Protect, Received, Refused, SyncDue
from gossip.keys import origin_of
from gossip.ports import PeerId
from gossip.recent import HEADS_MAX, Recent
from gossip.wire import Compare, Env, Fork, Have, Head, Standing, TableGet, decode, encode


def chain(length: int) -> list[Env]:
    """Heads of one origin, each after the one before, over the same empty table."""
    heads: list[Env] = []
    for n in range(length):
        follows = {"prev_seq": (NOW_H << 16) + n - 1, "prev": id_of(heads[-1])} if heads else {}
        heads.append(signed(seq=(NOW_H << 16) + n, **follows)[0])  # type: ignore[arg-type]
    return heads


def taken(node: Replica, heads: list[Env], now_s: int = NOW_S) -> int:
    """How many of these heads a node that is told each alone lets stand or wants."""
    before = len(heads)
    for head in heads:
        effects = node.handle(received(ALICE, have(head), now_s))
        before -= any(isinstance(e, Refused) for e in effects)
        assert not any(e.blame for e in only(effects, Refused))  # type: ignore[attr-defined]
    return before


# Heads of one origin ------------------------------------------------------------------------------


def test_an_origin_gets_four_heads_at_once_and_its_next_waits_without_blame() -> None:
    node, heads = bob(), chain(6)
    assert taken(node, heads[:4]) == 4
    effects = node.handle(received(ALICE, have(heads[4])))
    assert effects == [Refused(ALICE, "too many heads of one origin", blame=False)]
    later = NOW_S + 300
    assert taken(node, [heads[5]], later) == 1


def test_an_origin_gets_no_more_heads_in_a_day_than_a_day_may_have() -> None:
    node, heads = bob(), chain(200)
    hours = [taken(node, [head], NOW_S + 600 * n) for n, head in enumerate(heads[:143])]
    assert 24 <= sum(hours) <= 48


def test_a_head_that_waits_is_not_asked_for_and_is_taken_later() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    for version in range(1, 8):
        line.give(ALICE, publish(card(1, version=version)))
    held = line.nodes[BOB].view(A.origin).cards
    assert held == (card(1, version=4),)
    line.now_s += 300
    line.give(BOB, SyncDue(line.now_s))
    assert line.nodes[BOB].view(A.origin).cards == (card(1, version=7),)


def test_a_second_history_is_found_out_though_the_origin_is_over_its_quota() -> None:
    node, heads = bob(), chain(4)
    taken(node, heads)
    rival, _ = signed(card(9), seq=(NOW_H << 16) + 3)
    node.handle(received(CAROL, have(rival)))
    assert node.view(A.origin).standing is Standing.FROZEN


def test_a_node_has_no_quota_for_its_own_heads() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    for version in range(1, 40):
        line.give(ALICE, publish(card(1, version=version)))
    assert line.nodes[ALICE].view(A.origin).cards == (card(1, version=39),)


# Signatures ---------------------------------------------------------------------------------------


def test_what_needs_more_signatures_than_a_peer_may_cost_is_put_off_without_blame() -> None:
    node = bob(signatures_s_max=10, signatures_burst=10)
    many = Have(tuple(keys(n).doc for n in range(25)), (), (), ())
    effects = node.handle(received(ALICE, many))
    assert effects[-1] == Refused(ALICE, "too many signatures at once", blame=False)
    assert len(node.origins()) == 10
    assert len(node.handle(received(CAROL, many, NOW_S))) > 1  # each peer has its own
    node.handle(received(ALICE, many, NOW_S + 1))
    assert len(node.origins()) == 25


def test_forged_signatures_use_up_the_quota_of_who_sends_them() -> None:
    node = bob(signatures_s_max=1, signatures_burst=5)
    env, _ = signed(card(1))
    forged = replace(env, sig=bytes(64))
    reasons = [
        effect.reason
        for _ in range(8)
        for effect in only(node.handle(received(ALICE, have(forged))), Refused)
        if isinstance(effect, Refused)
    ]
    assert reasons == ["bad signature"] * 4 + ["too many signatures at once"] * 4
    assert not only(node.handle(received(CAROL, have(env))), Refused)


def test_strangers_share_one_quota() -> None:
    node = bob(signatures_s_max=1, signatures_burst=4)
    effects = [
        node.handle(Received(PeerId(f"s{n}"), encode(Have((keys(n).doc,), (), (), ())), NOW_S))
        for n in range(6)
    ]
    assert [bool(only(each, Refused)) for each in effects] == [False] * 4 + [True] * 2


def test_what_is_known_costs_no_signature() -> None:
    node, env = informed(card(1), seq=NOW_H << 16)
    node.handle(received(ALICE, retraction(1)))
    for _ in range(20_000):
        assert node.handle(received(ALICE, have(env))) == []
    assert node.handle(received(ALICE, retraction(1))) == []


# Room for origins ---------------------------------------------------------------------------------


def introduced(node: Replica, by: PeerId, names: range | list[str], now_s: int = NOW_S) -> None:
    for name in names:
        node.handle(received(by, Have((keys(name).doc,), (), (), ()), now_s))


def test_until_the_half_is_full_origins_come_in_freely_and_then_by_the_hour() -> None:
    node = bob(origins_max=100, introductions_h_max=8)
    introduced(node, ALICE, range(90))
    assert len(node.origins()) == 50 + 8
    introduced(node, CAROL, range(90, 95))
    assert len(node.origins()) == 50 + 8 + 5
    introduced(node, ALICE, range(95, 110), NOW_S + 1800)
    assert len(node.origins()) == 50 + 8 + 5 + 4


def test_who_brought_the_most_makes_room_with_the_last_that_it_brought() -> None:
    node = bob(origins_max=10)
    introduced(node, ALICE, range(7))
    introduced(node, CAROL, range(7, 11))
    held = node.origins()
    assert len(held) == 10
    assert keys(6).origin not in held and keys(10).origin in held
    introduced(node, ALICE, [*range(20, 23)])  # crowds out its own
    assert sum(keys(n).origin in node.origins() for n in range(7, 11)) == 4


def test_an_origin_that_made_room_leaves_nothing_on_disk() -> None:
    line = Line(bob=replica("bob", GossipConfig(origins_max=2)))
    line.give(BOB, PeerUp(ALICE, NOW_S))
    for n in range(3):
        line.give(BOB, received(ALICE, Have((keys(n).doc,), (), (), ())))
    assert {r.key[:32] for r in line.records("bob")} == set(line.nodes[BOB].origins())


def test_what_is_proven_retracted_or_used_never_makes_room() -> None:
    node = bob(origins_max=12)
    proof = Fork(signed(card(8))[0], signed(card(9))[0])
    node.handle(received(ALICE, Have((A.doc,), (), (), (proof,))))
    node.handle(received(ALICE, retraction(1, by=keys("dave"))))
    introduced(node, ALICE, ["used"])
    node.handle(Protect(frozenset([keys("used").origin]), NOW_S))
    introduced(node, ALICE, range(40))
    kept = {A.origin, keys("dave").origin, keys("used").origin}
    assert kept <= set(node.origins()) and len(node.origins()) == 12


def test_when_nothing_may_go_no_more_come_in() -> None:
    node = bob(origins_max=2)
    for by in (keys("dave"), keys("erin")):
        env, whole = signed(card(1), by=by)
        node.handle(received(ALICE, have(env, by=by)))
        node.handle(received(ALICE, manifest(env, whole)))
        node.handle(received(ALICE, retraction(1, by=by)))
    effects = node.handle(received(CAROL, Have((keys("f").doc,), (), (), ())))
    assert effects == [Refused(CAROL, "too many origins", blame=False)]
    assert len(node.origins()) == 2


def test_a_peer_that_is_over_its_quota_is_not_asked_for_unknown_origins() -> None:
    node = bob(origins_max=4, introductions_h_max=1)
    introduced(node, ALICE, range(3))
    other = replica("x")
    other.handle(PeerUp(BOB, NOW_S))
    introduced(other, BOB, range(10, 30))
    (told,) = (
        m for m in sent(other.handle(received(BOB, _digest_of(node)))) if isinstance(m, Compare)
    )
    assert not [m for m in sent(node.handle(received(ALICE, told))) if isinstance(m, Compare)]
    assert [m for m in sent(node.handle(received(CAROL, told))) if isinstance(m, Compare)]


def _digest_of(node: Replica):  # type: ignore[no-untyped-def]
    return sent(node.handle(SyncDue(NOW_S, again=False)))[0]


@pytest.mark.parametrize("hours", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_hundred_sybils_an_hour_crowd_out_none_of_a_hundred_honest_origins(hours: int) -> None:
    node = replica("bob", GossipConfig(origins_max=400, introductions_h_max=32))
    honest_peers = [PeerId(f"h{n}") for n in range(4)]
    for peer in (*honest_peers, ALICE):
        node.handle(PeerUp(peer, NOW_S))
    honest = [keys(f"honest{n}").doc for n in range(100)]
    for hour in range(hours):
        now_s = NOW_S + 3600 * hour
        sybils = tuple(keys(f"sybil{n}").doc for n in range(100 * hour, 100 * hour + 100))
        node.handle(received(ALICE, Have(sybils, (), (), ()), now_s))
        for i, peer in enumerate(honest_peers):
            node.handle(received(peer, Have(tuple(honest[i::4]), (), (), ()), now_s))
    held = set(node.origins())
    assert all(origin_of(doc) in held for doc in honest)
    assert len(held) <= 400


# Buckets ------------------------------------------------------------------------------------------


def test_a_bucket_fills_at_its_rate_and_a_clock_set_back_gives_nothing() -> None:
    buckets = Buckets(rate_s=0.5, capacity=2)
    assert [buckets.take("a", 100) for _ in range(3)] == [True, True, False]
    assert not buckets.take("a", 50)
    assert [buckets.take("a", 52), buckets.take("a", 52)] == [True, False]
    assert buckets.has("b", 0) and not buckets.has("b", 0, tokens=3)


def test_buckets_are_bounded() -> None:
    buckets = Buckets(rate_s=1, capacity=1)
    for n in range(40_000):
        buckets.take(seed(n), 0)
    assert len(buckets._left) <= 32_768


# What is remembered ------------------------------------------------------------------------------


def name_of(n: int) -> bytes:
    return n.to_bytes(32, "big")


def test_quotas_remember_no_more_origins_than_may_be_held() -> None:
    room = BUCKETS_MAX + 1  # for one peer, who gets three quarters
    admission = Admission(GossipConfig(new_tables_bytes_max=-(-4 * room // 3)))
    for n in range(BUCKETS_MAX + 1):
        admission.take_head(name_of(n), bytes(32), NOW_S)
        assert admission.take_table(name_of(n), ALICE, 1, NOW_S)
    assert admission.take_table(name_of(1), ALICE, 1, NOW_S), "counted already"
    assert not admission.take_table(name_of(0), ALICE, 1, NOW_S), "forgotten, and there is no room"
    assert admission.has_room_for_head(name_of(0), bytes(32), NOW_S)


def test_only_who_brings_less_than_the_most_makes_others_give_up_theirs() -> None:
    admission = Admission(GossipConfig())
    assert admission.to_evict(ALICE, lambda name: True) is None
    admission.loaded(map(name_of, range(3)), ALICE)
    admission.loaded([name_of(9)], BOB)
    assert admission.to_evict(CAROL, lambda name: True) == name_of(2)
    assert admission.to_evict(BOB, lambda name: name != name_of(2)) == name_of(1)
    admission.protected = frozenset(map(name_of, range(3)))
    assert admission.to_evict(BOB, lambda name: True) is None
    admission.loaded(map(name_of, (10, 11, 12)), BOB)
    assert admission.to_evict(ALICE, lambda name: True) == name_of(12), "he has brought more now"
    for n in (9, 10, 11, 12):
        admission.forget(name_of(n))
    assert admission.to_evict(BOB, lambda name: True) is None, "all that is left is protected"


def test_of_the_heads_that_stood_before_those_of_the_latest_origins_are_kept() -> None:
    recent, forgotten = Recent(), 3
    (env,) = chain(1)
    head = decode(env.payload, Head)
    for n in range(HEADS_MAX + forgotten):
        recent.add(Signed(replace(head, origin=name_of(n)), env, id_of(env)))
    assert not recent.of(name_of(forgotten - 1), 1)
    assert recent.of(name_of(forgotten), 1)
    recent.forget(name_of(forgotten))
    assert not recent.of(name_of(forgotten), 1)


def test_old_heads_played_again_do_not_take_the_room_that_a_newer_one_waits_for() -> None:
    node, heads = bob(), chain(40)
    taken(node, heads[:4])
    assert taken(node, [heads[-1]]) == 0
    later = NOW_S + 300
    for head in heads[4:-1]:
        assert node.handle(received(CAROL, have(head), later)) == []
    effects = node.handle(received(ALICE, have(heads[-1]), later))
    assert [m.head for m in sent(effects) if isinstance(m, TableGet)] == [id_of(heads[-1])]
