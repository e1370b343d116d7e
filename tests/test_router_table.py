"""The routing table: which leaf a vector goes to, who answers for it, and why."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_steps import steps

from leaves.model import GrownFrom, Instant, Kind, Leaf, LeafId, Stage, Vector, unit
from router.table import DimensionError, Entry, Table, TableError, own_entry, unhubbed
from router.weights import BOUND

ENC8 = b"encoder1"
D = 8
AXES = np.eye(D, dtype=np.float32)
A, B, C, E = (LeafId(letter * 32) for letter in "abce")


def entry(
    leaf: LeafId,
    centroid: Vector,
    *,
    level: int = 2,
    stage: Stage = Stage.MATURE,
    parent: LeafId | None = None,
    gate: float = 0.0,
    servable: bool = True,
    origin: str = "",
    system: str = "",
    floor: float | None = None,
) -> Entry:
    return Entry(
        leaf, leaf[0], level, stage, centroid, parent=parent, gate=gate, servable=servable,
        origin=origin, system=system, floor=floor, bundle="00" * 32 if servable else None,
    )  # fmt: skip


def table(*entries: Entry) -> Table:
    return Table.build(ENC8, D, entries)


def toward(axis: int, cosine: float, rest: int = 7) -> Vector:
    """A unit vector with this cosine to one axis, the rest of it along another."""
    vector = cosine * AXES[axis] + (1 - cosine**2) ** 0.5 * AXES[rest]
    return vector.astype(np.float32)


def test_a_prompt_goes_to_the_nearest_leaf() -> None:
    route = table(entry(A, AXES[0]), entry(B, AXES[1])).route(toward(1, 0.8))
    assert route.leaf is not None and route.leaf.leaf == B
    assert route.served_by is route.leaf
    assert route.score == pytest.approx(0.8) and route.level == 2
    assert not route.fallback_used


def test_an_empty_table_routes_to_the_bare_chassis() -> None:
    route = table().route(AXES[0])
    assert (route.leaf, route.served_by, route.level, route.fallback_used) == (None, None, 0, False)


@pytest.mark.parametrize(
    ("level", "stage", "gate", "floor"),
    [
        (3, Stage.MATURE, 0.0, 0.25),
        (2, Stage.MATURE, 0.0, 0.20),
        (1, Stage.MATURE, 0.0, 0.20),
        (2, Stage.SPROUT, 0.0, 0.30),
        (3, Stage.SPROUT, 0.28, 0.30),
        (2, Stage.MATURE, 0.41, 0.41),
    ],
)
def test_a_leaf_asks_for_its_own_gate_and_never_less_than_the_floor(
    level: int, stage: Stage, gate: float, floor: float
) -> None:
    routes = table(entry(A, AXES[0], level=level, stage=stage, gate=gate))
    assert routes.route(toward(0, floor + 0.001)).leaf is not None
    refused = routes.route(toward(0, floor - 0.001))
    assert refused.leaf is None and refused.served_by is None and refused.fallback_used
    assert refused.gate == pytest.approx(floor)


def test_the_most_specific_leaf_that_fits_has_the_prompt() -> None:
    part = unit((AXES[0] + 0.5 * AXES[1])[None])[0]
    routes = table(entry(A, AXES[0]), entry(B, part, level=3, parent=A), entry(C, AXES[0], level=1))
    nearer_to_domain = routes.route(toward(0, 0.9, rest=2))
    assert nearer_to_domain.leaf is not None and nearer_to_domain.leaf.leaf == B
    assert nearer_to_domain.score < 0.9


def test_a_part_of_another_domain_does_not_take_the_prompt() -> None:
    """Its floor is 0.25, and most prompts of other domains pass that."""
    routes = table(
        entry(A, AXES[0]), entry(B, toward(1, 0.9, rest=2), level=3, parent=C), entry(C, AXES[1])
    )
    prompt = unit((AXES[0] + 0.5 * AXES[1])[None])[0]
    assert float(prompt @ toward(1, 0.9, rest=2)) > 0.25
    route = routes.route(prompt)
    assert route.leaf is not None and route.leaf.leaf == A and not route.fallback_used


def test_below_the_gate_of_a_part_its_domain_is_asked_then_its_branch() -> None:
    routes = table(
        entry(C, AXES[0], level=1),
        entry(A, toward(0, 0.9, rest=1), parent=C, gate=0.8),
        entry(B, toward(0, 0.8, rest=2), level=3, parent=A, gate=0.7),
    )
    to_domain = routes.route(toward(0, 0.5, rest=1))
    assert to_domain.leaf is not None and to_domain.leaf.leaf == A
    to_branch = routes.route(toward(0, 0.6, rest=5))
    assert to_branch.leaf is not None and to_branch.leaf.leaf == C
    assert to_branch.fallback_used and to_branch.level == 1
    assert [c.entry.leaf for c in routes.explain(toward(0, 0.6, rest=5))] == [B, A, C]
    assert [c.passed for c in routes.explain(toward(0, 0.6, rest=5))] == [False, False, True]


def test_a_seed_is_routed_to_and_its_parent_serves() -> None:
    routes = table(
        entry(A, AXES[1], level=1),
        entry(B, AXES[0], stage=Stage.SEED, parent=A, servable=False),
    )
    route = routes.route(AXES[0])
    assert route.leaf is not None and route.leaf.leaf == B
    assert route.served_by is not None and route.served_by.leaf == A
    assert route.fallback_used


def test_a_seed_without_a_trained_ancestor_is_served_by_the_chassis() -> None:
    routes = table(
        entry(A, AXES[1], level=1, servable=False),
        entry(B, AXES[0], stage=Stage.SEED, parent=A, servable=False),
    )
    route = routes.route(AXES[0])
    assert route.leaf is not None and route.served_by is None and route.fallback_used


def test_a_foreign_leaf_of_the_same_domain_serves_for_an_untrained_one() -> None:
    foreign = entry(E, toward(0, 0.95), origin="ff" * 32)
    seed = entry(B, AXES[0], stage=Stage.SEED, parent=A, servable=False)
    route = table(seed, foreign, entry(A, AXES[1])).route(AXES[0])
    assert route.leaf is not None and route.leaf.leaf == B
    assert route.served_by == foreign


def test_a_foreign_leaf_of_another_domain_does_not() -> None:
    foreign = entry(E, toward(0, 0.9), origin="ff" * 32)
    seed = entry(B, AXES[0], stage=Stage.SEED, servable=False)
    assert table(seed, foreign).route(AXES[0]).served_by is None


def test_a_foreign_leaf_competes_by_its_centroid() -> None:
    foreign = entry(E, AXES[1], origin="ff" * 32)
    route = table(entry(A, AXES[0]), foreign).route(toward(1, 0.7))
    assert route.leaf == foreign and route.served_by == foreign


def test_a_starter_answers_with_its_system_prompt_and_its_own_floor() -> None:
    starter = entry(
        A, AXES[0], level=1, stage=Stage.SPROUT, servable=False, system="You know.", floor=0.12
    )
    route = table(starter).route(toward(0, 0.13))
    assert route.served_by == starter and not route.fallback_used
    assert table(starter).route(toward(0, 0.11)).leaf is None


def test_leaves_that_name_each_other_as_parents_end_at_the_chassis() -> None:
    routes = table(
        entry(A, AXES[0], parent=B, servable=False), entry(B, AXES[1], parent=A, servable=False)
    )
    assert routes.route(AXES[0]).served_by is None


@given(st.permutations("0123456789abcdef"))
def test_of_equals_the_id_that_sorts_first_is_taken(order: list[str]) -> None:
    vector = unit(np.linspace(0.1, 1.0, D, dtype=np.float32)[None])[0]
    route = table(*(entry(LeafId(c * 32), vector) for c in order)).route(vector)
    assert route.leaf is not None and route.leaf.leaf == "0" * 32


def test_a_vector_of_another_encoder_is_refused() -> None:
    with pytest.raises(DimensionError, match=r"shape \(4,\), the table's have 8 dimensions"):
        table(entry(A, AXES[0])).route(np.zeros(4, np.float32))
    with pytest.raises(DimensionError, match=f"leaf {A}: centroid of shape"):
        table(entry(A, np.zeros(4, np.float32)))


def test_a_leaf_that_comes_twice_or_of_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="comes twice"):
        table(entry(A, AXES[0]), entry(A, AXES[1]))
    with pytest.raises(ValueError, match="level 4 is none of"):
        table(entry(A, AXES[0], level=4))
    assert len(table(entry(A, AXES[0]), entry(A, AXES[0], origin="ff" * 32))) == 2


def test_a_leaf_of_the_forest_becomes_an_entry() -> None:
    leaf = Leaf(
        id=A, name="networkx-graph", stage=Stage.SPROUT, stage_since=Instant(0), level=3,
        kind=Kind.SKILL, grown_from=GrownFrom.DATA, parent=B, lineage=(), created=Instant(0),
        sessions=500, growth_per_day=1.0, centroid=AXES[0], gate=0.44,
    )  # fmt: skip
    made = own_entry(leaf, servable=False)
    assert (made.name, made.level, made.parent, made.threshold) == ("networkx-graph", 3, B, 0.44)
    assert made.origin == "" and made.bundle is None


def many(count: int, dimensions: int = 32) -> Table:
    rng = np.random.default_rng(0)
    centroids = unit(rng.normal(size=(count, dimensions)).astype(np.float32))
    ids = [LeafId(f"{n:032x}") for n in range(count)]
    return Table.build(
        ENC8,
        dimensions,
        [
            Entry(
                ids[n],
                f"leaf-{n}",
                1 + n % 3,
                Stage.MATURE,
                centroids[n],
                parent=ids[n - 1] if n % 3 else None,
                servable=n % 2 == 0,
                gate=0.01 * (n % 50),
            )
            for n in range(count)
        ],
    )


def test_a_table_survives_being_written() -> None:
    before = many(60)
    after = Table.from_bytes(before.to_bytes())
    assert after.entries == before.entries and after.enc8 == ENC8
    assert after.to_bytes() == before.to_bytes()
    for vector in unit(np.random.default_rng(1).normal(size=(50, 32)).astype(np.float32)):
        assert after.route(vector) == before.route(vector)
    assert len(Table.from_bytes(table().to_bytes())) == 0


def test_a_table_of_the_first_form_is_still_read() -> None:
    """Its entries had neither weight nor hubness."""
    before = many(7)
    start = len(b"groove-table/2\n")
    data = before.to_bytes()
    (length,) = struct.unpack("<I", data[start : start + 4])
    header = msgspec.json.decode(data[start + 4 : start + 4 + length])
    header["entries"] = [row[:11] for row in header["entries"]]
    old = msgspec.json.encode(header)
    body = b"groove-table/1\n" + struct.pack("<I", len(old)) + old + data[start + 4 + length : -4]
    after = Table.from_bytes(body + struct.pack("<I", zlib.crc32(body)))
    assert after.entries == before.entries
    assert after.to_bytes() == data


def test_weight_and_hubness_survive_being_written() -> None:
    entries = [replace(entry(A, AXES[0]), weight=0.03, hubness=-0.1), entry(B, AXES[1])]
    after = Table.from_bytes(table(*entries).to_bytes())
    assert [(e.weight, e.hubness) for e in after.entries] == [(0.03, -0.1), (0.0, 0.0)]


@given(st.data())
def test_damaged_bytes_are_never_a_table(data: st.DataObject) -> None:
    whole = bytearray(many(5).to_bytes())
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(TableError):
        Table.from_bytes(bytes(whole[:cut]))
    whole[cut] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TableError):
        Table.from_bytes(bytes(whole))


def test_a_table_cannot_be_changed_through_its_centroids() -> None:
    centroid = AXES[0].copy()
    routes = table(entry(A, centroid))
    centroid[:] = AXES[1]
    assert routes.route(AXES[0]).score == pytest.approx(1.0)


def test_explain_ends_where_route_does() -> None:
    routes = many(60)
    for vector in unit(np.random.default_rng(2).normal(size=(100, 32)).astype(np.float32)):
        route, asked = routes.route(vector), routes.explain(vector)
        assert (asked[-1].entry if asked[-1].passed else None) == route.leaf
        assert asked[-1].score == route.score


def test_routing_costs_one_product_and_as_much_python_among_500_leaves_as_among_50() -> None:
    """A loop over the leaves would show here; tests/bench/routing.py measures the microseconds."""
    vector = unit(np.ones((1, 384), np.float32))[0]
    few, lots = (steps(partial(many(leaves, 384).route, vector)) for leaves in (50, 500))
    assert lots <= few + 10, "of the leaves that are asked, one may pass its gate later"
    assert lots < 150


def test_feedback_decides_between_leaves_that_are_nearly_as_near() -> None:
    vector = unit((AXES[0] + 1.05 * AXES[1])[None])[0]
    routes = table(
        replace(entry(A, AXES[0]), weight=0.05), replace(entry(B, AXES[1]), weight=-0.02)
    )
    plain, weighed = table(entry(A, AXES[0]), entry(B, AXES[1])).route(vector), routes.route(vector)
    assert plain.leaf is not None and plain.leaf.leaf == B
    assert weighed.leaf is not None and weighed.leaf.leaf == A
    assert weighed.score == pytest.approx(float(vector[0]) + 0.05)
    assert "with a weight of +0.050" in routes.explain(vector)[0].why


def test_a_weight_moves_what_is_held_against_the_gate_by_no_more_than_its_bound() -> None:
    raised = replace(entry(A, AXES[0], gate=0.5), weight=BOUND)
    assert table(raised).route(toward(0, 0.46)).leaf == raised
    assert table(raised).route(toward(0, 0.44)).leaf is None
    with pytest.raises(ValueError, match=r"weight 0\.06 is not within ±0\.05"):
        table(replace(raised, weight=0.06))
    with pytest.raises(ValueError, match="hubness nan not within"):
        table(replace(raised, hubness=float("nan")))


def test_a_hub_stands_back_when_the_nearest_is_chosen_and_its_gate_stays() -> None:
    vector = unit((AXES[0] + 0.95 * AXES[1])[None])[0]
    hub, other = unhubbed([entry(A, AXES[0]), entry(B, AXES[1])], 0.4 * AXES[0])
    assert hub.hubness == pytest.approx(0.1) and other.hubness == pytest.approx(-0.1)
    route = table(hub, other).route(vector)
    assert route.leaf == other and route.score == pytest.approx(float(vector[1]))
    assert table(hub).route(toward(0, 0.21)).leaf == hub


def test_a_starter_is_no_hub() -> None:
    starter = entry(A, AXES[0], level=1, system="You know.", floor=0.12, servable=False)
    assert unhubbed([starter], AXES[0]) == [starter]
    assert unhubbed([starter, entry(B, AXES[1])], AXES[0])[0].hubness == 0.0


@pytest.mark.parametrize(
    ("cosine", "why"),
    [
        (0.6, "its cosine is 0.600, and the gate is 0.500"),
        (0.4, "cosine 0.400 is below its gate of 0.500"),
    ],
)
def test_explain_says_in_plain_words_what_decided(cosine: float, why: str) -> None:
    (asked,) = table(entry(A, AXES[0], gate=0.5)).explain(toward(0, cosine))
    assert (asked.why, asked.votes) == (why, None)
    assert asked.cosine == pytest.approx(cosine) == asked.chosen_by


def test_explain_names_the_floor_where_there_is_no_other_gate() -> None:
    (asked,) = table(entry(A, AXES[0])).explain(toward(0, 0.1))
    assert asked.why == "cosine 0.100 is below the floor of its level, 0.200"


def test_entries_compare_without_their_centroids() -> None:
    assert entry(A, AXES[0]) == replace(entry(A, AXES[0]), centroid=AXES[1])
