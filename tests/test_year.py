"""A year of daily re-clusters: every id's history is explained, none is lost or used again."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from support_year import Standing, TruthWithErrors, Year, constancy, live_through

from leaves.descent import named
from leaves.lifecycle import Born, Merged, Split, apply, ids_of
from leaves.model import DAY_S, Forest, LeafId, Stage
from leaves.ports import Clustering, ClusterSizes

CONSTANT = 0.95  # of a domain's days it is one leaf


@pytest.fixture(scope="module", params=[1])
def lived(request: pytest.FixtureRequest) -> tuple[Year, Standing, dict[int, dict[int, LeafId]]]:
    year = Year(request.param)
    return year, *live_through(year, TruthWithErrors(year))


def test_every_live_domain_is_one_leaf_for_nearly_all_of_its_days(
    lived: tuple[Year, Standing, dict[int, dict[int, LeafId]]],
) -> None:
    year, _, carried = lived
    known = {d: share for d, (share, days) in constancy(carried).items() if days >= 20}
    assert len(known) >= 16
    changed = {domain: share for domain, share in known.items() if share < CONSTANT}
    assert not changed, f"seed {year.seed}: {changed}"


def test_no_id_is_given_twice_and_none_goes_without_a_word(
    lived: tuple[Year, Standing, dict[int, dict[int, LeafId]]],
) -> None:
    year, standing, _ = lived
    births = Counter(_born(standing))
    assert set(births.values()) == {1} and births.keys() == standing.forest.leaves.keys()
    told = defaultdict(set)
    for now, change in standing.journal:
        assert change.reason
        for id_ in ids_of(change):
            told[id_].add(now // DAY_S)
    last = max(now for now, _ in standing.journal)
    for leaf in standing.forest:
        end = last if leaf.stage.live else leaf.stage_since
        days = range(leaf.created // DAY_S, end // DAY_S + 1)
        silent = [day for day in days if day not in told[leaf.id]]
        if not leaf.stage.live or Stage.ARCHIVED.value in _said(standing, leaf.id):
            continue  # an archived leaf is not looked for, so days without a word are its own
        assert not silent, f"seed {year.seed}: nothing said of {leaf.id} on {silent[:3]}"


def test_the_journal_replays_to_the_same_forest(
    lived: tuple[Year, Standing, dict[int, dict[int, LeafId]]],
) -> None:
    _, standing, _ = lived
    forest = Forest({}, 0, b"\1" * 32)
    for now, change in standing.journal:
        forest = apply(forest, change, now)
    assert forest == standing.forest


def test_what_is_said_of_a_leaf_names_leaves_by_their_names_of_today(
    lived: tuple[Year, Standing, dict[int, dict[int, LeafId]]],
) -> None:
    _, standing, _ = lived
    for _, change in standing.journal:
        assert not re.search(r"[0-9a-f]{32}", named(change.reason, standing.forest))


def test_the_same_year_comes_to_the_same_leaves() -> None:
    def ended() -> tuple[Forest, dict[int, dict[int, LeafId]]]:
        year = Year(5, days=80)
        standing, carried = live_through(year, TruthWithErrors(year))
        return standing.forest, carried

    assert ended() == ended()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_other_years_keep_their_ids_too(seed: int) -> None:
    year = Year(seed)
    _, carried = live_through(year, TruthWithErrors(year))
    known = [share for share, days in constancy(carried).values() if days >= 20]
    assert np.mean([share >= CONSTANT for share in known]) >= CONSTANT, f"seed {seed}: {known}"


@pytest.mark.slow
def test_the_real_clusterer_keeps_ids_over_a_season() -> None:
    from leaves.discover import default_clusterer

    year = Year(7, days=120)
    clusterer = default_clusterer()

    def discover(day: int, ids: list[str]) -> Clustering:
        vectors = np.stack([year.vectors[session] for session in ids])
        return clusterer.cluster(ids, vectors, ClusterSizes(200, 20, 10))

    _, carried = live_through(year, discover, every=3)
    known = [share for share, days in constancy(carried).values() if days >= 7]
    assert np.mean(known) >= CONSTANT, f"seed {year.seed}: {known}"


def _born(standing: Standing) -> list[LeafId]:
    out: list[LeafId] = []
    for _, change in standing.journal:
        match change:
            case Born(leaf) | Merged(_, leaf):
                out.append(leaf.id)
            case Split(_, children):
                out += [child.id for child in children]
            case _:
                pass
    return out


def _said(standing: Standing, leaf: LeafId) -> set[str]:
    return {type(c).__name__.lower() for _, c in standing.journal if leaf in ids_of(c)}
