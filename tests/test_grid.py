"""The integer grid: exact whatever the blocks, the order of rows and the width of a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves import grid as grids
from leaves.cells import pack, unpack
from leaves.coarsen import coarsen, communities, contract, polish
from leaves.grid import RADIUS, Graph, centred, diffuse, nearest, neighbours, sums, to_grid
from leaves.model import Matrix, unit
from leaves.ports import Progress

NOISE = 0.03


def topics(count: int, *, groups: int = 30, width: int = 48, seed: int = 0) -> Matrix:
    """Points around some centres."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(groups, width)).astype(np.float32))
    near = rng.normal(0, NOISE * 4, (count, width)).astype(np.float32)
    return unit(centres[rng.integers(0, groups, count)] + near)


def recall(found: Graph, true: Graph) -> float:
    pairs = zip(found.rows, true.rows, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in pairs]))


def test_sixteen_bits_hold_the_same_grid() -> None:
    vectors = topics(500)
    wide, narrow = to_grid(vectors), to_grid(vectors, dtype=np.int16)
    assert narrow.dtype == np.int16
    for one, other in (
        (wide, narrow),
        (centred(wide), centred(narrow)),
        (diffuse(wide, neighbours(wide, 5), 2), diffuse(narrow, neighbours(narrow, 5), 2)),
        (neighbours(wide, 9).rows, neighbours(narrow, 9).rows),
    ):
        assert np.array_equal(one, other)


def test_rows_may_be_taken_in_another_order_without_a_copy_of_all() -> None:
    vectors, order = topics(300), np.random.default_rng(1).permutation(300)
    assert np.array_equal(to_grid(vectors, rows=order), to_grid(vectors[order]))


@pytest.mark.parametrize("exact_rows_max", [10_000, 0])
def test_blocks_do_not_change_a_result(
    monkeypatch: pytest.MonkeyPatch, exact_rows_max: int
) -> None:
    grid = to_grid(topics(700))
    whole = neighbours(grid, 8, exact_rows_max=exact_rows_max)
    monkeypatch.setattr(grids, "_SECOND", 50_000)
    monkeypatch.setattr("leaves.cells.QUERIES", 37)
    monkeypatch.setattr("leaves.cells.FOUND_MAX", 500)
    parts = neighbours(grid, 8, exact_rows_max=exact_rows_max)
    assert np.array_equal(whole.rows, parts.rows)
    assert np.array_equal(whole.cosines, parts.cosines)


@pytest.mark.parametrize("exact_rows_max", [10_000, 0])
def test_a_row_is_its_own_first_neighbour_even_among_many_copies(exact_rows_max: int) -> None:
    vectors = np.concatenate([topics(200), np.repeat(topics(1, seed=9), 40, axis=0)])
    graph = neighbours(to_grid(vectors), 10, exact_rows_max=exact_rows_max)
    assert np.array_equal(graph.rows[:, 0], np.arange(240))
    assert np.all(np.diff(graph.cosines[:, 1:], axis=1) <= 0)


def test_cells_find_most_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaves.cells.PROBES", 24)
    grid = to_grid(topics(4000))
    found = neighbours(grid, 15, exact_rows_max=0)
    assert recall(found, neighbours(grid, 15)) >= 0.95


def test_cells_do_not_depend_on_the_order_of_rows() -> None:
    grid = to_grid(topics(3000))
    order = np.random.default_rng(3).permutation(3000)
    plain = neighbours(grid, 10, exact_rows_max=0)
    shuffled = neighbours(grid[order], 10, exact_rows_max=0)
    assert np.array_equal(order[shuffled.rows], plain.rows[order])


def test_what_raises_in_a_report_ends_the_search() -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    grid = to_grid(topics(300))
    for exact_rows_max in (1000, 0):
        with pytest.raises(KeyboardInterrupt):
            neighbours(grid, 5, exact_rows_max=exact_rows_max, report=stop)


def test_progress_never_goes_back_and_ends_at_its_total() -> None:
    told: list[Progress] = []
    neighbours(to_grid(topics(2000)), 5, exact_rows_max=0, report=told.append)
    done = [progress.done for progress in told]
    assert done == sorted(done) and told[-1].done == told[-1].total


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-(2**24), 2**24), st.integers(0, 2**31)), min_size=1, max_size=9)
)
def test_a_key_sorts_by_score_then_row_and_gives_both_back(pairs: list[tuple[int, int]]) -> None:
    scores = np.array([score for score, _ in pairs], np.float32)
    rows = np.array([row for _, row in pairs], np.int64)
    keys = np.sort(pack(scores, rows))[::-1]
    back = list(zip(*(part.tolist() for part in unpack(keys)), strict=True))
    assert back == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


def test_sums_leave_out_noise_and_nearest_takes_the_first_of_equals() -> None:
    grid = to_grid(topics(100))
    labels = np.arange(100) % 3 - 1
    assert np.array_equal(sums(grid, labels, 2)[1], grid[labels == 1].sum(axis=0))
    twice = np.concatenate([grid[:5], grid[:5]])
    assert np.array_equal(nearest(grid[:5], twice), np.arange(5))


def test_a_row_of_nothing_stays_nothing() -> None:
    grid = to_grid(np.zeros((3, 8), np.float32))
    assert not grid.any() and neighbours(grid, 2).rows.shape == (3, 3)
    assert np.abs(to_grid(topics(3))).max() <= RADIUS


# The graph of parts


def _graph(count: int) -> tuple[Any, np.ndarray]:
    import igraph

    near = neighbours(to_grid(topics(count, groups=12)), 8)
    pairs = np.column_stack([np.repeat(np.arange(count), 8), near.rows[:, 1:].ravel()])
    edges = np.unique(np.sort(pairs, axis=1), axis=0)
    return igraph.Graph(n=count, edges=edges), edges


def test_modularity_of_parts_is_that_of_their_rows() -> None:
    graph, edges = _graph(600)
    coarse = coarsen(graph, edges)
    labels = communities(coarse, 1.0, seed=0)
    of_parts = labels[np.unique(coarse.parts, return_index=True)[1]]
    ends = np.array(coarse.graph.get_edgelist())
    crossing = np.array(coarse.weights)[of_parts[ends[:, 0]] != of_parts[ends[:, 1]]].sum()
    of_labels = np.bincount(of_parts, coarse.strengths)
    modularity = 1 - crossing / len(edges) - ((of_labels / (2 * len(edges))) ** 2).sum()
    assert modularity == pytest.approx(graph.modularity(labels.tolist()), abs=1e-12)


def test_a_pass_over_the_rows_never_makes_a_division_worse() -> None:
    graph, edges = _graph(600)
    labels = communities(coarsen(graph, edges), 1.0, seed=0)
    before, after = (graph.modularity(x.tolist()) for x in (labels, polish(graph, labels, 1.0)))
    assert after >= before - 1e-12


def test_edges_within_parts_count_for_their_strength_alone() -> None:
    _, edges = _graph(300)
    coarse = contract(edges, np.arange(300) // 10)
    assert sum(coarse.strengths) == 2 * len(edges)
    within = (edges[:, 0] // 10 == edges[:, 1] // 10).sum()
    assert sum(coarse.weights) == len(edges) - within
