"""The nearest own sessions: whom they vote for, what is familiar, and how a table heeds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.model import LeafId, Matrix, Stage, Vector, unit
from leaves.ports import Progress
from router.neighbours import CELL_ROWS, NEAREST, Near, Neighbours, NeighboursError
from router.table import BOUND, DimensionError, Entry, Table, unhubbed

A, B, C, E = (LeafId(letter * 32) for letter in "abce")
D = 16
ENC8 = b"encoder1"
AXES = np.eye(D, dtype=np.float32)


def around(axis: int, count: int, spread: float = 0.1, seed: int = 0) -> Matrix:
    rng = np.random.default_rng([seed, axis, count])
    return unit((AXES[axis] + spread * rng.normal(size=(count, D))).astype(np.float32))


def sessions(*groups: tuple[LeafId | None, Matrix]) -> tuple[list[str], Matrix, dict[str, LeafId]]:
    matrix = np.concatenate([rows for _, rows in groups])
    ids = [f"{(7919 * i) % 100_003:06d}" for i in range(len(matrix))]
    of = [leaf for leaf, rows in groups for _ in rows]
    return ids, matrix, {id_: leaf for id_, leaf in zip(ids, of, strict=True) if leaf is not None}


def entry(
    leaf: LeafId, centroid: Vector, *, level: int = 2, origin: str = "", **more: object
) -> Entry:
    made = Entry(leaf, leaf[0], level, Stage.MATURE, centroid, servable=True, origin=origin)
    return Entry(**{**{name: getattr(made, name) for name in Entry.__slots__}, **more})  # type: ignore[arg-type]


def test_sessions_vote_for_the_leaf_that_they_are_in() -> None:
    near = Neighbours.build(*sessions((A, around(0, 200)), (B, around(1, 200)))).near(AXES[1])
    assert near.votes == ((B, pytest.approx(1.0)),)
    assert 0.5 < near.cosine <= 1.0


def test_votes_are_shared_by_nearness_and_the_greater_share_comes_first() -> None:
    ids, matrix, leaf_of = sessions((A, around(0, 6, 0.02)), (B, around(1, 4, 0.02)))
    between = unit((AXES[0] + 0.9 * AXES[1])[None])[0]
    votes = Neighbours.build(ids, matrix, leaf_of).near(between).votes
    assert [leaf for leaf, _ in votes] == [A, B]
    assert sum(share for _, share in votes) == pytest.approx(1.0)


def test_a_stray_votes_for_the_leaf_that_it_is_nearest_to_and_a_distant_one_for_none() -> None:
    beside = unit(around(0, 30) + 0.6 * AXES[3])
    nowhere = around(5, 30, 0.01)
    neighbours = Neighbours.build(*sessions((A, around(0, 100)), (None, beside), (None, nowhere)))
    assert neighbours.near(unit((AXES[0] + 0.6 * AXES[3])[None])[0]).votes[0][0] == A
    assert neighbours.near(AXES[5]).votes == ()
    assert neighbours.near(AXES[5]).cosine == 0.0


def test_what_the_owner_never_asks_is_less_familiar_than_what_is_asked() -> None:
    neighbours = Neighbours.build(*sessions((A, around(0, 300)), (B, around(1, 300))))
    known = [neighbours.near(v).familiarity for v in around(0, 200, seed=3)]
    strange = [neighbours.near(v).familiarity for v in around(4, 200, seed=3)]
    assert np.quantile(known, 0.05) > max(strange)


def test_gates_refuse_the_share_of_new_prompts_that_they_are_asked_to() -> None:
    neighbours = Neighbours.build(*sessions((A, around(0, 800)), (B, around(1, 800, 0.2))))
    table = Table.build(ENC8, D, [entry(A, AXES[0]), entry(B, AXES[1])])
    fresh = np.concatenate([around(0, 1000, seed=9), around(1, 1000, 0.2, seed=9)])
    refused = np.mean([table.route(vector, neighbours).leaf is None for vector in fresh])
    assert 0.03 < refused < 0.07
    assert all(table.route(v, neighbours).leaf is None for v in around(9, 50, seed=9))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_sessions_does_not_matter(seed: int) -> None:
    ids, matrix, leaf_of = sessions((A, around(0, 600)), (B, around(1, 100)), (None, around(2, 40)))
    order = np.random.default_rng(seed).permutation(len(ids))
    first = Neighbours.build(ids, matrix, leaf_of)
    other = Neighbours.build([ids[i] for i in order], matrix[order], leaf_of)
    for vector in around(0, 20, 0.5, seed=4):
        assert first.near(vector) == other.near(vector)
    assert (first.gate(A), first.gate(B), first.gate(C)) == (
        other.gate(A), other.gate(B), other.gate(C),
    )  # fmt: skip


def test_of_sessions_equally_near_those_whose_ids_sort_first_are_asked() -> None:
    copies = np.repeat(AXES[:1], 2 * NEAREST, axis=0)
    ids = [f"{i:02d}" for i in range(2 * NEAREST)]
    leaf_of = {id_: A if i < NEAREST else B for i, id_ in enumerate(ids)}
    near = Neighbours.build(ids, copies, leaf_of).near(AXES[0])
    assert near.votes == ((A, pytest.approx(1.0)),)


def test_large_leaves_are_searched_by_cells_and_find_nearly_all_that_is_near() -> None:
    ids, matrix, leaf_of = sessions((A, around(0, 20 * CELL_ROWS, 0.3)))
    neighbours = Neighbours.build(ids, matrix, leaf_of)
    found = true = 0.0
    for vector in around(0, 50, 0.3, seed=5):
        true += float(np.sort(matrix @ vector)[-NEAREST:].mean())
        found += neighbours.near(vector).cosine
    assert found > 0.98 * true


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_sessions_are_enough_and_none_say_nothing(count: int) -> None:
    ids, matrix, leaf_of = sessions((A, around(0, count)))
    near = Neighbours.build(ids, matrix, leaf_of).near(AXES[0])
    assert near.votes == (((A, pytest.approx(1.0)),) if count else ())
    if not count:
        assert near == Near(-1.0, -1.0, ())
        route = Table.build(ENC8, D, [entry(A, AXES[0])]).route(
            AXES[0], Neighbours.build(ids, matrix, leaf_of)
        )
        assert route.leaf is not None and route.score == pytest.approx(1.0)


def test_neighbours_survive_being_written_and_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "neighbours.bin"
    before = Neighbours.build(*sessions((A, around(0, 700)), (B, around(1, 30))), enc8=ENC8)
    before.save(path)
    after = Neighbours.open(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["neighbours.bin"]
    assert (len(after), after.enc8, after.dimensions) == (730, ENC8, D)
    assert (after.gate(A), after.gate(B), after.gate(E)) == (
        before.gate(A), before.gate(B), before.gate(E),
    )  # fmt: skip
    for vector in around(0, 20, 0.5, seed=4):
        assert after.near(vector) == before.near(vector)


@pytest.mark.parametrize("cut", [0, 5, 23, 60, -1])
def test_a_file_that_is_cut_short_or_of_another_kind_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "neighbours.bin"
    Neighbours.build(*sessions((A, around(0, 50)))).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(NeighboursError):
        Neighbours.open(path)
    path.write_bytes(b"groove-table/2\n" + bytes(100))
    with pytest.raises(NeighboursError, match="not neighbours"):
        Neighbours.open(path)


def test_progress_is_told_and_can_end_the_work() -> None:
    def stop(progress: Progress) -> None:
        assert progress.total == 100
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Neighbours.build(*sessions((A, around(0, 100))), stop)


def test_ids_that_do_not_fit_the_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="1 ids do not fit"):
        Neighbours.build(["one"], around(0, 2), {})


def bent() -> tuple[Neighbours, Table]:
    """Leaf A lies in two places, so that its centroid is in neither; B lies near the second."""
    first, second = around(0, 200, 0.05), around(1, 200, 0.05)
    other = unit(around(1, 400, 0.05) + 0.9 * AXES[2])
    ids, matrix, leaf_of = sessions((A, first), (A, second), (B, other))
    middle = unit((AXES[0] + AXES[1])[None])[0]
    return Neighbours.build(ids, matrix, leaf_of), Table.build(
        ENC8, D, [entry(A, middle), entry(B, unit((AXES[1] + 0.9 * AXES[2])[None])[0])]
    )


def test_neighbours_know_the_shape_of_a_leaf_that_its_centroid_does_not() -> None:
    neighbours, table = bent()
    by_centroid, by_sessions = table.route(AXES[1]), table.route(AXES[1], neighbours)
    assert by_centroid.leaf is not None and by_centroid.leaf.leaf == B
    assert by_sessions.leaf is not None and by_sessions.leaf.leaf == A


@pytest.mark.parametrize("toward", [0.0, 0.12, 0.18])
def test_what_is_familiar_from_sessions_of_no_leaf_is_no_leafs(toward: float) -> None:
    """A thousand copies of one ask are in no leaf: an unrelated leaf must not take it for that."""
    copied = unit((toward * AXES[0] + AXES[5])[None])
    noise = np.repeat(copied, 1000, axis=0)
    neighbours = Neighbours.build(*sessions((A, around(0, 200, 0.4)), (None, noise)))
    table = Table.build(ENC8, D, [entry(A, AXES[0])])
    (asked,) = table.explain(copied[0], neighbours)
    assert (asked.passed, asked.votes) == (False, 0.0) and asked.score < asked.gate
    assert asked.why.startswith("cosine ")


def test_a_foreign_leaf_is_compared_by_centroids_with_the_one_that_has_the_votes() -> None:
    neighbours = Neighbours.build(*sessions((A, around(0, 200, 0.05)), (B, around(1, 200, 0.05))))
    foreign = entry(E, AXES[3], origin="ff" * 32)
    table = Table.build(ENC8, D, [entry(A, AXES[0]), entry(B, AXES[1]), foreign])
    toward = unit((0.6 * AXES[0] + AXES[3])[None])[0]
    assert table.route(toward, neighbours).leaf == foreign
    back = table.route(unit((AXES[0] + 0.6 * AXES[3])[None])[0], neighbours)
    assert back.leaf is None or back.leaf.leaf == A


def test_a_part_that_has_the_votes_is_asked_before_its_domain() -> None:
    part, rest = around(0, 300, 0.05), around(1, 300, 0.05)
    neighbours = Neighbours.build(*sessions((B, part), (A, rest)))
    middle = unit((AXES[0] + AXES[1])[None])[0]
    table = Table.build(
        ENC8, D, [entry(A, middle), entry(B, AXES[0], level=3, parent=A), entry(C, AXES[4])]
    )
    route = table.route(around(0, 1, 0.05, seed=2)[0], neighbours)
    assert route.leaf is not None and route.leaf.leaf == B
    asked = table.explain(AXES[0], neighbours)[0]
    assert asked.votes == pytest.approx(1.0)


def test_a_prompt_of_a_domain_and_of_none_of_its_parts_is_served_by_the_domain() -> None:
    part, rest, other = around(0, 300, 0.05), around(1, 300, 0.05), around(4, 300, 0.05)
    neighbours = Neighbours.build(*sessions((B, part), (A, rest), (C, other)))
    middle = unit((AXES[0] + AXES[1])[None])[0]
    table = Table.build(
        ENC8, D, [entry(A, middle), entry(B, AXES[0], level=3, parent=A), entry(C, AXES[4])]
    )
    served = 0
    for prompt in around(1, 100, 0.05, seed=2):
        asked = table.explain(prompt, neighbours)
        assert [each.entry.leaf for each in asked] == [B, A]
        assert (asked[0].passed, asked[0].votes, asked[1].votes) == (False, 0.0, pytest.approx(1.0))
        served += asked[1].passed
    assert served >= 90  # a gate is where one in twenty of a leaf's own sessions stays below


def test_an_unfamiliar_prompt_is_refused_by_all_own_leaves_and_the_reason_is_told() -> None:
    ids, matrix, leaf_of = sessions((A, around(0, 500)), (B, around(1, 500)))
    neighbours = Neighbours.build(ids, matrix, leaf_of)
    branch = unit((AXES[0] + AXES[1])[None])[0]
    table = Table.build(ENC8, D, [entry(A, AXES[0], parent=C), entry(B, AXES[1], parent=C),
                                  entry(C, branch, level=1)])  # fmt: skip
    strange = unit((0.5 * AXES[0] + AXES[8])[None])[0]
    assert table.route(strange).leaf is not None
    assert table.route(strange, neighbours).leaf is None
    asked = table.explain(strange, neighbours)
    assert [each.entry.leaf for each in asked] == [A, C]
    assert all("too unlike the owner's sessions" in each.why for each in asked)


def test_neighbours_of_another_encoder_are_refused() -> None:
    table = Table.build(ENC8, D, [entry(A, AXES[0])])
    other = Neighbours.build(*sessions((A, around(0, 20))), enc8=b"encoder2")
    with pytest.raises(DimensionError, match="of another encoder"):
        table.route(AXES[0], other)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_route_and_explain_agree_whatever_the_order_of_the_entries(seed: int, asked: bool) -> None:
    rng = np.random.default_rng(seed)
    ids = [LeafId(f"{i:032x}") for i in range(12)]
    centroids = unit(rng.normal(size=(12, D)).astype(np.float32))
    centroids[4] = centroids[3]
    entries = [
        entry(
            ids[i], centroids[i], level=int(rng.integers(1, 4)),
            origin="ff" * 32 if rng.random() < 0.2 else "",
            parent=ids[int(rng.integers(12))] if rng.random() < 0.5 else None,
            gate=float(rng.uniform(0, 0.6)), weight=float(rng.uniform(-BOUND, BOUND)),
        )
        for i in range(12)
    ]  # fmt: skip
    entries = unhubbed(entries, centroids.mean(axis=0))
    own = unit(np.repeat(centroids, 20, axis=0) + rng.normal(size=(240, D)).astype(np.float32) / 5)
    names = [f"{i:03d}" for i in range(240)]
    leaf_of = {name: ids[i // 20] for i, name in enumerate(names) if i % 7}
    neighbours = Neighbours.build(names, own, leaf_of) if asked else None
    table = Table.build(ENC8, D, entries)
    shuffled = Table.build(ENC8, D, [entries[i] for i in rng.permutation(12)])
    written = Table.from_bytes(table.to_bytes())
    for vector in unit(rng.normal(size=(20, D)).astype(np.float32)):
        route, path = table.route(vector, neighbours), table.explain(vector, neighbours)
        assert (path[-1].entry if path[-1].passed else None) == route.leaf
        assert (path[-1].score, path[-1].gate) == (route.score, route.gate)
        assert all((each.score >= each.gate) == each.passed and each.why for each in path)
        assert route == shuffled.route(vector, neighbours) == written.route(vector, neighbours)
