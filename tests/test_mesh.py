"""What of a forest leaves the machine, and what a peer's cards become here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_capture import HandClock

from gossip import wire
from gossip.table import build
from gossip.view import OriginView
from leaves.model import (
    DAY_S,
    Adapter,
    Forest,
    GrownFrom,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Stage,
    Vector,
    leaf_id,
    unit,
)
from leaves.rules import Rules
from node.app import App
from node.consent import Scope
from node.daemon import Daemon
from node.foreign import LOOKS, Foreign, Known, State
from node.mailbox import Dial, Mailbox, Retract
from node.mesh import (
    ENDED_DAYS,
    HEIRS_MAX,
    REPUBLISH_SESSIONS,
    ForeignLeaf,
    Past,
    Shown,
    Table,
    cards,
    centres,
    foreign,
    interest,
    quantised,
)
from node.routing import entries, region
from node.told import Told
from simnet.fakes import LabelClusterer, Medium, Simulated, TopicEncoder, peer_named

ORIGIN = b"\1" * 32
ENC8 = b"encoder8"
NOW = Instant(1_800_000_000)
ADAPTER = Adapter("a" * 64, "b" * 64, "c" * 64, "d" * 16, 8)


def vector(seed: int) -> Vector:
    drawn = np.random.default_rng(seed).normal(size=(1, 384)).astype(np.float32)
    row: Vector = unit(drawn)[0]
    return row


def leaf(number: int, **changes: object) -> Leaf:
    base = Leaf(
        id=leaf_id(ORIGIN, number),
        name=f"leaf-{number}",
        stage=Stage.SEED,
        stage_since=NOW,
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=NOW,
        sessions=250,
        growth_per_day=5.0,
        centroid=vector(number),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def forest(*leaves: Leaf) -> Forest:
    return Forest({x.id: x for x in leaves}, len(leaves), ORIGIN)


def table(*leaves: Leaf, shown: dict[LeafId, Shown] | None = None, size: int = 1000):  # type: ignore[no-untyped-def]
    return cards(forest(*leaves), shown or {}, ENC8, lambda root: size, frozenset())


def test_a_card_holds_a_direction_and_buckets_and_no_name() -> None:
    [card] = table(leaf(0)).cards
    assert card.sessions_log2 == 8 and card.growth_q == 0
    assert b"leaf-0" not in wire.encode(card)


def test_an_int8_centroid_keeps_its_direction() -> None:
    for seed in range(20):
        restored = np.frombuffer(quantised(vector(seed)), np.int8).astype(np.float32)
        assert float(unit(restored[None])[0] @ vector(seed)) >= 0.9995


def test_a_changed_centroid_is_shown_only_after_fifty_new_sessions() -> None:
    first = table(leaf(0))
    soon = leaf(0, sessions=250 + REPUBLISH_SESSIONS - 1, centroid=vector(7))
    assert table(soon, shown=first.shown).cards[0].centroid == first.cards[0].centroid
    later = leaf(0, sessions=250 + REPUBLISH_SESSIONS, centroid=vector(7))
    assert table(later, shown=first.shown).cards[0].centroid == quantised(vector(7))


@pytest.mark.parametrize("stage", [Stage.SEED, Stage.SPROUT])
def test_only_a_mature_leaf_offers_its_bundle(stage: Stage) -> None:
    assert table(leaf(0, stage=stage, adapter=ADAPTER)).cards[0].bundle is None
    offered = table(leaf(0, stage=Stage.MATURE, adapter=ADAPTER)).cards[0].bundle
    assert offered is not None and offered.root.hex() == ADAPTER.bundle


def test_a_bundle_that_is_not_here_is_not_offered() -> None:
    assert table(leaf(0, stage=Stage.MATURE, adapter=ADAPTER), size=0).cards[0].bundle is None


def test_branches_starters_and_retracted_leaves_are_never_shown() -> None:
    hidden = [leaf(0, level=1), leaf(1, grown_from=GrownFrom.STARTER), leaf(2)]
    made = cards(forest(*hidden), {}, ENC8, lambda root: 0, frozenset({hidden[2].id}))
    assert made.cards == () and made.ended == ()


def lived(*leaves: Leaf, past: Past) -> Table:
    return cards(forest(*leaves), {}, ENC8, lambda root: 1000, frozenset(), past=past)


def raw(number: int) -> bytes:
    return bytes.fromhex(leaf_id(ORIGIN, number))


@pytest.mark.parametrize(
    ("stage", "changes", "reason"),
    [
        (Stage.ARCHIVED, {}, wire.Reason.DORMANT),
        (Stage.ARCHIVED, {"regressions": 3}, wire.Reason.REGRESSED),
        (Stage.DISSOLVED, {}, wire.Reason.DISSOLVED),
        (Stage.MERGED, {}, wire.Reason.MERGED),
    ],
)
def test_what_ended_is_told_with_its_reason(
    stage: Stage, changes: dict[str, int], reason: wire.Reason
) -> None:
    [ended] = table(leaf(0, stage=stage, **changes)).ended
    assert ended.reason is reason and ended.into == ()


def test_a_split_shows_its_children_beside_their_parent_in_one_table() -> None:
    parent = leaf(0, stage=Stage.MATURE)
    born = [leaf(n, stage=Stage.SPROUT, lineage=(parent.id,)) for n in (1, 2)]
    by_leaf = {card.leaf: card for card in table(parent, *born).cards}
    assert by_leaf.keys() == {raw(0), raw(1), raw(2)}
    assert by_leaf[raw(0)].op is wire.Op.BIRTH
    assert {(by_leaf[raw(n)].op, by_leaf[raw(n)].parents) for n in (1, 2)} == {
        (wire.Op.SPLIT, (raw(0),))
    }


def test_a_parent_that_rests_after_its_split_was_superseded_by_its_children() -> None:
    parent = leaf(0, stage=Stage.ARCHIVED)
    [ended] = table(parent, leaf(1, lineage=(parent.id,)), leaf(2, lineage=(parent.id,))).ended
    assert ended.reason is wire.Reason.SUPERSEDED and set(ended.into) == {raw(1), raw(2)}


def test_a_merge_ends_both_leaves_in_the_table_that_shows_the_one() -> None:
    parts = [leaf(n, stage=Stage.MERGED) for n in (0, 1)]
    made = table(*parts, leaf(2, lineage=(parts[0].id, parts[1].id)))
    [card] = made.cards
    assert card.op is wire.Op.MERGE and set(card.parents) == {raw(0), raw(1)}
    assert [end.into for end in made.ended] == [(raw(2),), (raw(2),)]


def test_a_leaf_that_came_back_from_the_archive_says_so() -> None:
    [card] = lived(leaf(0, stage=Stage.SPROUT), past=Past({leaf(0).id})).cards
    assert card.op is wire.Op.REVIVE


def test_what_a_table_does_not_show_is_not_named_in_it() -> None:
    parent, child = leaf(0), leaf(1, lineage=(leaf(0).id,))
    made = cards(forest(parent, child), {}, ENC8, lambda root: 0, frozenset({parent.id}))
    assert [card.parents for card in made.cards] == [()]
    merged = leaf(0, stage=Stage.MERGED)
    hidden = cards(forest(merged, child), {}, ENC8, lambda root: 0, frozenset(), {child.id})
    assert [end.into for end in hidden.ended] == [()]


def test_what_ended_long_ago_is_told_no_more_but_of_parents_that_live_on_in_others() -> None:
    later = Instant(NOW + (ENDED_DAYS + 1) * DAY_S)
    parts = [leaf(n, stage=Stage.MERGED) for n in (0, 1)]
    child = leaf(2, lineage=(parts[0].id, parts[1].id))
    made = lived(*parts, child, leaf(3, stage=Stage.DISSOLVED), past=Past(now=later))
    assert {end.leaf for end in made.ended} == {raw(0), raw(1)}


def test_a_table_never_outgrows_its_head_and_keeps_what_counts_most() -> None:
    seeds = [leaf(n, sessions=200 + n) for n in range(wire.TABLE_ROWS_MAX + 5)]
    mature = leaf(5000, stage=Stage.MATURE, sessions=1)
    ended = [leaf(n, stage=Stage.ARCHIVED) for n in range(6000, 6050)]
    made = table(mature, *seeds, *ended)
    built = build(made.cards, made.ended, ())
    assert len(built.index.rows) + len(built.index.ended) <= wire.TABLE_ROWS_MAX
    assert raw(5000) in {card.leaf for card in made.cards}
    assert made.left_out == len(seeds) + 1 - len(made.cards) > 0


def test_of_too_many_that_ended_the_latest_are_told_with_as_many_heirs_as_the_wire_names() -> None:
    over = [leaf(n, stage=Stage.ARCHIVED, stage_since=Instant(n)) for n in range(1500)]
    heirs = [leaf(n, lineage=(over[1499].id,)) for n in range(2000, 2012)]
    made = table(*over, *heirs)
    index = build(made.cards, made.ended, ()).index
    assert wire.decode(wire.encode(index), wire.Index) == index and made.left_out == 0
    by_leaf = {end.leaf: end for end in made.ended}
    assert raw(1499) in by_leaf and raw(0) not in by_leaf
    assert len(by_leaf[raw(1499)].into) == HEIRS_MAX


@given(st.lists(st.sampled_from(list(Stage)), max_size=8))
def test_every_forest_makes_a_table_that_the_wire_accepts(stages: list[Stage]) -> None:
    made = table(*(leaf(n, stage=stage) for n, stage in enumerate(stages)))
    for card in made.cards:
        assert wire.decode(wire.encode(card), wire.Card) == card
    assert len(made.cards) + len(made.ended) == len(stages)


def test_a_peers_card_comes_back_as_the_leaf_it_shows() -> None:
    made = table(leaf(0, stage=Stage.MATURE, adapter=ADAPTER))
    [seen] = foreign(b"\2" * 32, made.cards, ENC8)
    assert (seen.stage, seen.root, seen.label) == (Stage.MATURE, "a" * 64, "b" * 64)
    assert float(seen.centroid @ vector(0)) > 0.999


def test_cards_of_another_encoder_or_without_direction_are_left_alone() -> None:
    [card] = table(leaf(0)).cards
    assert foreign(b"\2" * 32, [card], b"another8") == []
    flat = wire.Card(
        **{f: getattr(card, f) for f in card.__struct_fields__} | {"centroid": bytes(384)}
    )
    assert foreign(b"\2" * 32, [flat], ENC8) == []


def test_a_region_is_what_stands_nearest_to_the_leaf_and_near_enough() -> None:
    axes = np.eye(3, dtype=np.float32)
    near_first = unit(np.array([[0.9, 0.1, 0.0]], np.float32))
    vectors = np.concatenate([axes, near_first])
    ids = ["a", "b", "c", "d"]
    assert region(ids, vectors, axes[0], [axes[1]], 0.5) == ["a", "d"]
    assert region(ids, vectors, axes[0], [], 0.999) == ["a"]
    assert region([], vectors[:0], axes[0], [], 0.0) == []


def shown(*cards: wire.Card) -> OriginView:
    return OriginView(b"\2" * 32, wire.Standing.SOUND, False, None, cards, (), (), ())


def test_an_origin_is_of_interest_by_a_mature_leaf_near_one_of_ours_and_by_nothing_else() -> None:
    near, far = centres(forest(leaf(0))), centres(forest(leaf(1)))
    assert abs(float(near[0] @ far[0])) < 0.4, "two leaves at random are far apart"
    [mature] = table(leaf(0, stage=Stage.MATURE)).cards
    [sprout] = table(leaf(0, stage=Stage.SPROUT)).cards
    assert interest(shown(sprout, mature), [*far, *near], ENC8)
    assert not interest(shown(mature), far, ENC8)
    assert not interest(shown(sprout), near, ENC8)
    assert not interest(shown(), near, ENC8)
    assert not interest(shown(mature), near, b"another8")
    assert not interest(shown(mature), [near[0][:8]], ENC8), "of another length"


def test_who_has_no_leaf_yet_is_interested_in_all_and_an_archived_one_counts_no_more() -> None:
    assert centres(forest(leaf(0, stage=Stage.ARCHIVED))) == []
    assert interest(shown(), [], ENC8)


def test_origins_are_in_use_whose_leaves_were_more_than_heard_of(known: Foreign) -> None:
    known.replace_origin("02" * 32, [other()])
    assert known.used_origins() == frozenset()
    known.settle(known.all()[0], State.ACCEPTED, {LOOKS: 1}, "graphs")
    assert known.used_origins() == {b"\2" * 32}
    known.replace_origin("02" * 32, [])
    assert known.used_origins() == {b"\2" * 32}, "it was judged, and may come again"


async def test_a_node_names_the_origins_it_uses_and_looks_for_what_is_near_its_leaves(
    tmp_path: Path,
) -> None:
    app = App(_home(tmp_path, 'novel = "auto"'), HandClock(), _alone())
    daemon = Daemon(app, None, lambda each: None)
    app.forests.change(leaf(0), "born", "by a test", NOW)
    app.foreign.replace_origin("02" * 32, [other()])
    app.foreign.settle(app.foreign.all()[0], State.REFUSED, {}, "graphs")
    await daemon._look_for_interests()
    assert daemon.replica.protected == {b"\2" * 32}
    made = cards(forest(leaf(1, stage=Stage.MATURE)), {}, app.enc8, lambda root: 0, frozenset())
    assert not daemon._interest.wants(shown(*made.cards))
    app.forests.change(leaf(1), "born", "by a test", NOW)
    await daemon._look_for_interests()
    assert daemon._interest.wants(shown(*made.cards))


@pytest.fixture
def known(tmp_path: Path) -> Foreign:
    return Foreign(tmp_path)


def other(number: int = 0, root: str | None = "e" * 64, version: int = 1) -> ForeignLeaf:
    id_ = leaf_id(b"\2" * 32, number)
    return ForeignLeaf(
        "02" * 32, id_, version, Stage.MATURE, 9, root, "f" * 64, 10, "d" * 16, vector(number)
    )


def test_a_leaf_absent_under_a_newer_head_is_gone(known: Foreign) -> None:
    known.replace_origin("02" * 32, [other(0), other(1)])
    gone = known.replace_origin("02" * 32, [other(1)])
    assert [k.leaf.leaf for k in gone] == [other(0).leaf]
    assert [k.leaf.leaf for k in known.all()] == [other(1).leaf]


def test_a_new_bundle_starts_its_way_again_and_a_new_version_alone_does_not(
    known: Foreign,
) -> None:
    known.replace_origin("02" * 32, [other()])
    known.settle(known.all()[0], State.ACCEPTED, {"bytes": 1}, "graphs")
    known.replace_origin("02" * 32, [other(version=2)])
    assert known.all()[0].state is State.ACCEPTED
    known.replace_origin("02" * 32, [other(root="9" * 64, version=3)])
    assert (known.all()[0].state, known.all()[0].name) == (State.HEARD, "graphs")


def test_how_often_a_peers_leaf_was_judged_here_outlives_its_versions(known: Foreign) -> None:
    known.replace_origin("02" * 32, [other()])
    known.settle(known.all()[0], State.REFUSED, {LOOKS: 2, "gate": 0.4})
    known.replace_origin("02" * 32, [other(root="9" * 64, version=3), other(1)])
    details = {each.leaf.leaf: each.detail for each in known.all()}
    assert details == {other().leaf: {LOOKS: 2}, other(1).leaf: {}}


def test_a_leaf_that_went_and_comes_again_does_not_begin_afresh(known: Foreign) -> None:
    origin = "02" * 32
    known.replace_origin(origin, [other()])
    known.settle(known.all()[0], State.REFUSED, {LOOKS: 3})
    known.retract(origin, other().leaf)
    known.replace_origin(origin, [other(root="9" * 64, version=7), other(1)])
    details = {each.leaf.leaf: each.detail for each in known.all()}
    assert details == {other().leaf: {LOOKS: 3}, other(1).leaf: {}}
    known.replace_origin(origin, [])
    known.replace_origin(origin, [other(root="8" * 64, version=9)])
    assert known.all()[0].detail == {LOOKS: 3}, "absent under a newer head is gone as well"


def test_looks_of_leaves_that_went_are_kept_of_the_latest(
    known: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.foreign.GONE_MAX", 2)
    for number in range(3):
        known.replace_origin("02" * 32, [other(number)])
        known.settle(known.all()[0], State.REFUSED, {LOOKS: 1})
        known.retract("02" * 32, None)
    known.replace_origin("02" * 32, [other(number) for number in range(3)])
    assert {each.leaf.leaf for each in known.all() if LOOKS in each.detail} == {
        other(1).leaf,
        other(2).leaf,
    }


def test_a_peers_leaf_of_another_chassis_is_not_routed_to() -> None:
    accepted = Known(other(), State.ACCEPTED, "graphs", {"gate": 0.4})
    for chassis, routed in ((None, 1), ("d" * 16, 1), ("e" * 16, 0)):
        assert len(entries(Forest({}), [accepted], chassis)) == routed


def test_a_leaf_dropped_while_it_was_judged_stays_dropped(known: Foreign) -> None:
    known.replace_origin("02" * 32, [other()])
    being_judged = known.all()[0]
    known.retract("02" * 32, None)
    known.settle(being_judged, State.ACCEPTED, {})
    assert known.all() == []


def test_an_order_survives_a_restart_and_is_carried_out_once(tmp_path: Path) -> None:
    box = Mailbox(tmp_path)
    first = box.post(Dial("/ip4/127.0.0.1/tcp/1/p2p/x"), 1.0)
    box.post(Retract(None), 2.0)
    box.close()
    again = Mailbox(tmp_path)
    assert [letter.order for letter in again.waiting()][1] == Retract(None)
    again.answer(first, {"dialing": "x"}, 3.0)
    assert len(again.waiting()) == 1 and again.answer_to(first) == {"dialing": "x"}


async def test_a_round_that_begins_while_the_forest_is_read_is_not_told_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(_home(tmp_path, 'novel = "auto"'), HandClock(), _alone())
    app.consent.record_consent(app.user_id, True, "1.0", scopes=set(Scope))
    app.forests.change(leaf(0), "born", "by a test", NOW)
    told: list[str] = []
    daemon = Daemon(app, None, lambda each: told.append(each.event))
    read = app.forests.changed_since

    def begun_meanwhile(at: Instant, kind: str) -> set[LeafId]:
        """Between the look for an open round and the end of the reading, one begins."""
        app.forests.begin_round(NOW, "embed", {}, Rules())
        return read(at, kind)

    monkeypatch.setattr(app.forests, "changed_since", begun_meanwhile)
    await daemon._publisher.publish()
    assert "published" not in told
    monkeypatch.setattr(app.forests, "changed_since", read)
    await daemon._publisher.publish()
    assert "published" not in told, "the round is open"
    row = app.forests.open_round()
    assert row is not None
    app.forests.finish_round(row.id, NOW)
    await daemon._publisher.publish()
    assert told.count("published") == 1


async def test_leaves_that_one_head_has_no_room_for_are_told_to_the_owner(
    tmp_path: Path,
) -> None:
    app = App(_home(tmp_path, 'novel = "auto"'), HandClock(), _alone())
    app.consent.record_consent(app.user_id, True, "1.0", scopes=set(Scope))
    many = {leaf(n).id: (leaf(n), "by a test") for n in range(wire.TABLE_ROWS_MAX + 3)}
    app.forests.restore(many, {}, NOW)
    told: list[Told] = []
    daemon = Daemon(app, None, told.append)
    await daemon._publisher.publish()
    events = {each.event: each for each in told}
    assert events["table full"].data["leaves"] == 3 and "published" in events


def _home(folder: Path, publish: str) -> Path:
    home = folder / "home"
    home.mkdir(mode=0o700)
    (home / "groove.toml").write_text(f"[publish]\n{publish}\n")
    return home


def _alone() -> Simulated:
    """The adapters of a node that nobody is linked to."""
    encoder = TopicEncoder(lambda text: vector(0))
    labels = LabelClusterer(lambda session: (session, ""))
    return Simulated("0", peer_named(0), Medium(0), encoder, labels, lambda command: 0)
