"""Time, as far as heads can tell it, and tables that are not kept: long expired, or unwanted."""

from __future__ import annotations

from collections.abc import Callable
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
    manifest,
    only,
    publish,
    received,
    replica,
    retraction,
    sent,
    signed,
)

from gossip.config import GossipConfig
from gossip.core import OriginView, Replica
from gossip.envelope import id_of
from gossip.events import OriginChanged, PeerUp, Refused, Save, SyncDue
from gossip.ports import Record
from gossip.records import RecordError
from gossip.wire import ZERO32, Digest, Env, Gone, Manifest, TableGet

HOUR_S = 3600


def told(node: Replica, who: object, hour: int, *, n: int = 1, life_h: int = 168) -> Env:
    """Have a node hold what an origin signs in a certain hour, and say that hour to it."""
    by = keys(who)
    env, whole = signed(card(n), by=by, seq=hour << 16, ts_h=hour, exp_h=hour + life_h)
    now_s = hour * HOUR_S
    node.handle(received(ALICE, have(env, by=by), now_s))
    node.handle(received(ALICE, manifest(env, whole), now_s))
    return env


def witnessed(node: Replica, hour: int, count: int = 5) -> None:
    """Have some origins sign in a certain hour."""
    for n in range(count):
        told(node, f"witness{n}", hour)


def sync(node: Replica, hour: int) -> list[object]:
    return list(node.handle(SyncDue(hour * HOUR_S, again=False)))


# The hour -----------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_does_not_make_expired_heads_fresh_again() -> None:
    node = bob()
    told(node, "old", NOW_H)
    later = NOW_H + 200
    witnessed(node, later)
    sync(node, later)
    assert node.view(keys("old").origin).stale
    sync(node, NOW_H)
    assert node.view(keys("old").origin).stale
    assert not node.view(keys("witness0").origin).stale


def test_the_hour_survives_a_restart() -> None:
    line = Line(bob=replica("bob"))
    line.give(BOB, PeerUp(ALICE, NOW_S))
    for n in range(5):
        by = keys(n)
        env, whole = signed(card(1), by=by)
        line.give(BOB, received(ALICE, have(env, by=by)))
        line.give(BOB, received(ALICE, manifest(env, whole)))
    line.give(BOB, SyncDue(NOW_S + 100 * HOUR_S, again=False))
    again = replica("bob", records=line.records("bob"))
    sync(again, NOW_H - 1000)
    env, whole = signed(card(1), by=keys("e"), ts_h=NOW_H - 20, exp_h=NOW_H + 99)
    again.handle(PeerUp(ALICE, (NOW_H - 1000) * HOUR_S))
    told_at = (NOW_H - 1000) * HOUR_S
    again.handle(received(ALICE, have(env, by=keys("e")), told_at))
    again.handle(received(ALICE, manifest(env, whole), told_at))
    assert again.view(keys("e").origin).stale
    with pytest.raises(RecordError, match="highest hour"):
        replica("bob", records=[Record("own", b"high", b"1")])


def test_a_clock_that_is_behind_follows_what_five_origins_say() -> None:
    node = bob()
    told(node, "old", NOW_H, life_h=1)
    for n in range(5):
        by = keys(f"ahead{n}")
        env, whole = signed(card(1), by=by, ts_h=NOW_H + 1)
        node.handle(received(ALICE, have(env, by=by)))
        node.handle(received(ALICE, manifest(env, whole)))
    sync(node, NOW_H - 500)
    late, _ = signed(card(2), by=keys("x"), ts_h=NOW_H + 1)
    assert not only(node.handle(received(ALICE, have(late, by=keys("x")))), Refused)


def test_a_clock_that_once_ran_ten_years_ahead_spoils_nothing_for_long() -> None:
    node = bob()
    witnessed(node, NOW_H, 6)
    changed = sync(node, NOW_H + 87_600)
    assert sum(isinstance(effect, OriginChanged) for effect in changed) == 6
    assert node.view(keys("witness0").origin).stale
    restored = sync(node, NOW_H + 1)
    assert sum(isinstance(effect, OriginChanged) for effect in restored) == 6
    for n in range(6):
        view = node.view(keys(f"witness{n}").origin)
        assert view.usable == (card(1),)


def test_liars_cannot_drive_the_hour_beyond_what_a_head_may_be_ahead() -> None:
    node = bob()
    for step in range(1, 40):
        for n in range(9):
            by = keys(f"liar{n}")
            env, whole = signed(by=by, seq=(NOW_H << 16) + step, ts_h=NOW_H + step)
            node.handle(received(ALICE, have(env, by=by), NOW_S))
            node.handle(received(ALICE, manifest(env, whole), NOW_S))
        sync(node, NOW_H)
    told(node, "honest", NOW_H, life_h=2)
    assert not node.view(keys("honest").origin).stale


# Tables that have long expired --------------------------------------------------------------------


def test_an_origin_stale_for_thirty_days_keeps_its_head_and_loses_its_table() -> None:
    node, env = informed(card(1), card(2))
    node.handle(received(ALICE, retraction(2)))
    much_later = NOW_H + 168 + 721
    witnessed(node, much_later)
    effects = sync(node, much_later)
    gone = [
        row for e in effects if isinstance(e, Save) for row in e.deletes if row[1][:32] == A.origin
    ]
    assert {table for table, _ in gone} == {"index", "usage", "card"}
    view = node.view(A.origin)
    assert (view.head, view.cards, view.retracted) == (None, (), (card(2).leaf,))
    answer = sent(node.handle(received(CAROL, TableGet(A.origin, id_of(env), ZERO32), NOW_S)))
    assert isinstance(answer[-1], Gone)
    assert not [e for e in sync(node, much_later) if isinstance(e, Save)]


def test_what_is_left_of_a_stale_origin_keeps_its_old_heads_out() -> None:
    node, env = informed(card(1), seq=(NOW_H << 16) + 7, prev_seq=(NOW_H << 16) + 6)
    much_later = NOW_H + 168 + 721
    witnessed(node, much_later)
    sync(node, much_later)
    older, _ = signed(card(2))
    for old in (env, older):
        assert node.handle(received(CAROL, have(old), much_later * HOUR_S)) == []
    follows = {"prev_seq": (NOW_H << 16) + 7, "prev": id_of(env), "ts_h": much_later}
    revived, whole = signed(
        card(3),
        seq=much_later << 16,
        exp_h=much_later + 168,
        **follows,  # type: ignore[arg-type]
    )
    (get,) = sent(node.handle(received(ALICE, have(revived), much_later * HOUR_S)))
    assert isinstance(get, TableGet) and get.base == ZERO32
    node.handle(received(ALICE, manifest(revived, whole), much_later * HOUR_S))
    assert node.view(A.origin).usable == (card(3),)


def test_replicas_that_have_and_have_not_dropped_a_table_hold_the_same() -> None:
    early, env = informed(card(1))
    late, _ = informed(card(1))
    newcomer = replica("dave")
    newcomer.handle(PeerUp(ALICE, NOW_S))
    much_later = NOW_H + 168 + 721
    for node in (early, newcomer):
        witnessed(node, much_later)
        sync(node, much_later)
    witnessed(late, much_later - 1 - 168)
    effects = newcomer.handle(received(ALICE, have(env), much_later * HOUR_S))
    assert not [m for m in sent(effects) if isinstance(m, TableGet)]  # of no use to anyone
    assert newcomer.view(A.origin).head is None
    opened = [sent(sync(node, much_later)) for node in (early, newcomer)]  # type: ignore[arg-type]
    first, second = ([m for m in each if isinstance(m, Digest)] for each in opened)
    assert first == second


def test_the_own_table_is_never_dropped() -> None:
    line = Line(bob=replica("bob"), alice=replica("alice"))
    line.connect()
    line.give(BOB, publish(card(1)))
    node = line.nodes[BOB]
    much_later = NOW_H + 168 + 721
    witnessed(node, much_later)
    sync(node, much_later)
    assert node.view(keys("bob").origin).cards == (card(1),)


def test_a_table_that_was_dropped_is_not_missed_after_a_restart() -> None:
    line = Line(bob=replica("bob"))
    line.give(BOB, PeerUp(ALICE, NOW_S))
    much_later = NOW_H + 168 + 721
    for who, hour in [("a", NOW_H), *((f"w{n}", much_later) for n in range(5))]:
        by = keys(who)
        env, whole = signed(card(1), by=by, seq=hour << 16, ts_h=hour, exp_h=hour + 168)
        line.now_s = hour * HOUR_S
        line.give(BOB, received(ALICE, have(env, by=by), line.now_s))
        line.give(BOB, received(ALICE, manifest(env, whole), line.now_s))
    line.give(BOB, SyncDue(line.now_s, again=False))
    again = replica("bob", records=line.records("bob"))
    for origin in line.nodes[BOB].origins():
        assert again.view(origin).cards == line.nodes[BOB].view(origin).cards


# Tables of interest -------------------------------------------------------------------------------


def choosy(wanted: Callable[[OriginView], bool], **config: int) -> Replica:
    settings = GossipConfig(origins_full_max=3, **config)  # type: ignore[arg-type]
    node = Replica(keys("bob"), settings, Random(1), interest=wanted)
    node.handle(PeerUp(ALICE, NOW_S))
    return node


def likes_even(view: OriginView) -> bool:
    return any(c.leaf == card(2).leaf for c in view.cards)


def test_above_a_number_of_origins_only_tables_of_interest_are_kept_and_all_heads() -> None:
    node = choosy(likes_even)
    for n in range(60):
        told(node, n, NOW_H, n=1 + n % 2)
    views = [node.view(keys(n).origin) for n in range(60)]
    assert len(node.origins()) == 60
    assert all(view.cards for view in views[1::2])
    unwanted = sum(bool(view.cards) for view in views[0::2])
    assert 2 <= unwanted <= 8  # what came first, and one in twenty


def test_a_table_of_no_interest_is_not_fetched_again_before_weeks_have_passed() -> None:
    node = choosy(lambda view: False)
    for n in range(30):
        told(node, n, NOW_H)
    (n, *_) = [n for n in range(30) if not node.view(keys(n).origin).cards]
    by = keys(n)

    def asked(hour: int) -> bool:
        number = hour << 16
        env, _ = signed(card(1), by=by, seq=number, prev_seq=number - 1, ts_h=hour, exp_h=hour + 9)
        effects = node.handle(received(ALICE, have(env, by=by), hour * HOUR_S))
        return any(isinstance(m, TableGet) for m in sent(effects))

    assert not asked(NOW_H + 24)
    assert asked(NOW_H + 28 * 24)


def test_no_more_unknown_tables_are_looked_at_in_a_day_than_the_budget_has() -> None:
    node = choosy(lambda view: False, looks_day_max=5)
    asked = 0
    for n in range(40):
        by = keys(n)
        env, whole = signed(card(1), by=by)
        effects = node.handle(received(ALICE, have(env, by=by)))
        asked += any(isinstance(m, TableGet) for m in sent(effects))
        node.handle(received(ALICE, manifest(env, whole)))
    assert asked <= 4 + 5


def test_who_holds_no_table_says_so_and_keeps_its_place_in_reconciliation() -> None:
    full, light = bob(), choosy(lambda view: False)
    envs = [told(node, n, NOW_H) for n in range(40) for node in (full, light)]
    assert envs[0] == envs[1]
    (n, *_) = [n for n in range(40) if not light.view(keys(n).origin).cards]
    question = TableGet(keys(n).origin, id_of(envs[2 * n]), ZERO32)
    assert [type(m) for m in sent(light.handle(received(ALICE, question)))] == [Gone]
    assert [type(m) for m in sent(full.handle(received(ALICE, question)))] == [Manifest]
    digests = [
        [m for m in sent(node.handle(SyncDue(NOW_S, again=False))) if isinstance(m, Digest)]
        for node in (full, light)
    ]
    assert digests[0] == digests[1]


# Room for tables ----------------------------------------------------------------------------------


def test_tables_of_unknown_origins_have_a_budget_and_what_is_over_it_comes_later() -> None:
    node = bob(new_tables_bytes_max=20_000, new_tables_bytes_h=20_000)
    for n in range(20):
        told(node, n, NOW_H)
    origins = [keys(n).origin for n in range(20)]
    first = sum(bool(node.view(origin).cards) for origin in origins)
    assert 5 <= first < 12 and len(node.origins()) == 20
    wanted = node.handle(SyncDue(NOW_S + 3600, again=False))
    more = [m for m in sent(wanted) if isinstance(m, TableGet)]
    assert len(more) >= 5
    for get in more:
        n = origins.index(get.origin)
        env, whole = signed(card(1), by=keys(n))
        for peer in (ALICE, CAROL):
            node.handle(received(peer, manifest(env, whole), NOW_S + 3600))
    assert sum(bool(node.view(origin).cards) for origin in origins) == first + len(more)
    assert not only(node.handle(SyncDue(NOW_S + 9 * DAY_S)), Refused)


def test_a_few_heads_of_a_wrong_hour_do_not_outweigh_the_many_that_they_make_expire() -> None:
    node = bob()
    for n in range(20):
        told(node, f"honest {n}", NOW_H)
    wrong_h = NOW_H + 200 * 24
    sync(node, wrong_h)  # this clock is ahead for a minute
    for n in range(5):
        told(node, f"sybil {n}", wrong_h)
    sync(node, wrong_h)
    sync(node, NOW_H + 1)  # and is set right
    assert not any(node.view(keys(f"honest {n}").origin).stale for n in range(20))
