"""Discovery: three levels from vectors, by either clusterer, in any order of the rows."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.discover import HdbscanClusterer, LeidenClusterer, default_clusterer
from leaves.grid import neighbours, to_grid
from leaves.model import Matrix, unit
from leaves.ports import Clusterer, Clustering, ClusterSizes, NoiseReason, Progress

BOTH = pytest.mark.parametrize("clusterer", [HdbscanClusterer(), LeidenClusterer()])
SIZES = ClusterSizes(branch=150, domain=50, specialisation=25)
DIMENSIONS = 64


def topics(
    counts: list[int], *, seed: int = 0, spread: float = 0.09, near: float = 0.0
) -> tuple[list[str], Matrix]:
    """Points around random centres; ids begin with the topic's number. near: cosine of centres."""
    rng = np.random.default_rng(seed)
    common = unit(rng.normal(size=(1, DIMENSIONS)))
    ids, rows = [], []
    for topic, count in enumerate(counts):
        own = unit(rng.normal(size=(1, DIMENSIONS)))
        centre = unit(near**0.5 * common + (1 - near) ** 0.5 * own)
        rows.append(centre + spread * rng.normal(size=(count, DIMENSIONS)))
        ids += [f"{topic}-{n:04d}" for n in range(count)]
    return ids, unit(np.concatenate(rows))


def scattered(count: int, seed: int = 9) -> Matrix:
    return unit(np.random.default_rng(seed).normal(size=(count, DIMENSIONS)))


def topic_of(members: tuple[str, ...]) -> tuple[str, float]:
    """The topic most members are of, and their share."""
    topic, count = Counter(member.split("-")[0] for member in members).most_common(1)[0]
    return topic, count / len(members)


def found(clustering: Clustering) -> list[str]:
    return sorted(topic_of(cluster.members)[0] for cluster in clustering.levels[1])


@BOTH
def test_each_topic_becomes_one_domain(clusterer: Clusterer) -> None:
    ids, vectors = topics([120, 80, 100, 90])
    clustering = clusterer.cluster(ids, vectors, SIZES)
    assert found(clustering) == ["0", "1", "2", "3"]
    assert all(topic_of(cluster.members)[1] == 1.0 for cluster in clustering.levels[1])
    assert len(clustering.noise) <= 0.2 * len(ids)


@BOTH
def test_every_session_is_in_one_domain_or_is_noise(clusterer: Clusterer) -> None:
    ids, vectors = topics([120, 80, 100])
    clustering = clusterer.cluster(ids, vectors, SIZES)
    placed = [member for cluster in clustering.levels[1] for member in cluster.members]
    assert sorted([*placed, *clustering.noise]) == sorted(ids)


@BOTH
def test_no_cluster_is_smaller_than_its_level_asks(clusterer: Clusterer) -> None:
    ids, vectors = topics([120, 49, 100, 30, 80])
    clustering = clusterer.cluster(ids, vectors, SIZES)
    for level, smallest in enumerate((SIZES.branch, SIZES.domain, SIZES.specialisation)):
        assert all(len(cluster.members) >= smallest for cluster in clustering.levels[level])


@BOTH
def test_the_order_of_rows_does_not_matter(clusterer: Clusterer) -> None:
    ids, vectors = topics([120, 80, 100, 90], spread=0.14, near=0.3)
    expected = clusterer.cluster(ids, vectors, SIZES)
    order = np.random.default_rng(1).permutation(len(ids))
    assert clusterer.cluster([ids[i] for i in order], vectors[order], SIZES) == expected


@BOTH
@pytest.mark.slow
def test_the_number_of_threads_does_not_matter(clusterer: Clusterer, tmp_path: Path) -> None:
    script = tmp_path / "cluster.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}\n"
        "import faiss\n"
        "faiss.omp_set_num_threads(int(sys.argv[1]))\n"
        "from test_discover import SIZES, topics, HdbscanClusterer, LeidenClusterer\n"
        "ids, vectors = topics([300, 200, 250, 220], spread=0.14, near=0.3)\n"
        f"print({type(clusterer).__name__}().cluster(ids, vectors, SIZES))\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, str(script), threads], capture_output=True, text=True, check=True
        ).stdout
        for threads in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert "Cluster(level=2" in runs[0]


@BOTH
def test_one_coherent_topic_is_one_domain(clusterer: Clusterer) -> None:
    ids, vectors = topics([260])
    (domain,) = clusterer.cluster(ids, vectors, SIZES).levels[1]
    assert len(domain.members) >= 0.8 * len(ids)


def test_a_heap_of_unrelated_prompts_is_no_domain() -> None:
    ids = [f"{n:04d}" for n in range(260)]
    assert HdbscanClusterer().cluster(ids, scattered(260), SIZES).levels[1] == ()


@BOTH
@pytest.mark.parametrize("count", [0, 1, 2, 3, 49])
def test_fewer_sessions_than_a_domain_are_all_noise(clusterer: Clusterer, count: int) -> None:
    ids, vectors = topics([count]) if count else ([], np.zeros((0, DIMENSIONS), np.float32))
    clustering = clusterer.cluster(ids, vectors, SIZES)
    assert clustering == Clustering(((), (), ()), tuple(sorted(ids)))


@BOTH
@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 10**6))
def test_tiny_sizes_never_crash(clusterer: Clusterer, count: int, least: int, seed: int) -> None:
    vectors = scattered(count, seed)
    ids = [f"{n:03d}" for n in range(count)]
    clustering = clusterer.cluster(ids, vectors, ClusterSizes(least, least, least))
    assert sum(len(c.members) for c in clustering.levels[1]) + len(clustering.noise) == count


@BOTH
def test_copies_of_one_prompt_do_no_harm(clusterer: Clusterer) -> None:
    ids, vectors = topics([120, 120])
    vectors = np.concatenate([vectors, np.repeat(vectors[:1], 40, axis=0)])
    ids = [*ids, *(f"0-copy{n}" for n in range(40))]
    assert found(clusterer.cluster(ids, vectors, SIZES)) == ["0", "1"]


def test_one_ask_repeated_is_no_domain_however_often_it_comes() -> None:
    vectors = np.repeat(scattered(1), 80, axis=0)
    clustering = default_clusterer().cluster([f"{n:02d}" for n in range(80)], vectors, SIZES)
    assert clustering.levels[1] == ()
    assert clustering.findings is not None
    assert clustering.findings.noise[NoiseReason.COPIES] == 79


def test_a_crowd_of_near_copies_neither_makes_a_domain_nor_hides_one() -> None:
    ids, vectors = topics([120, 100])
    rng = np.random.default_rng(4)
    template = unit(rng.normal(size=(1, DIMENSIONS)))
    crowd = unit(template + 0.015 * rng.normal(size=(300, DIMENSIONS)))
    like_topic_0 = unit(vectors[:1] + 0.015 * rng.normal(size=(200, DIMENSIONS)))
    ids = [*ids, *(f"9-{n:03d}" for n in range(300)), *(f"0-copy{n:03d}" for n in range(200))]
    clustering = default_clusterer().cluster(
        ids, np.concatenate([vectors, crowd, like_topic_0]), SIZES
    )
    assert found(clustering) == ["0", "1"]
    assert not any(member.startswith("9-") for c in clustering.levels[1] for member in c.members)
    assert clustering.findings is not None
    assert clustering.findings.noise[NoiseReason.COPIES] >= 299
    assert all(domain.distinct <= 121 for domain in clustering.findings.domains)


@BOTH
def test_branches_hold_whole_domains_and_are_large_enough(clusterer: Clusterer) -> None:
    near = topics([90, 90, 90, 90], seed=1, near=0.5)
    far = topics([90, 90, 90, 90], seed=2, near=0.5)
    ids = [f"a{id_}" for id_ in near[0]] + [f"b{id_}" for id_ in far[0]]
    clustering = clusterer.cluster(ids, np.concatenate([near[1], far[1]]), SIZES)
    branches, domains, _ = clustering.levels
    assert len(branches) >= 2
    for index, branch in enumerate(branches):
        inside = [c.members for c in domains if c.parent == index]
        assert branch.members == tuple(sorted(m for members in inside for m in members))
        assert len({member[0] for member in branch.members}) == 1


@BOTH
def test_a_single_branch_would_be_everything_so_there_is_none(clusterer: Clusterer) -> None:
    ids, vectors = topics([80, 80])
    clustering = clusterer.cluster(ids, vectors, ClusterSizes(1000, 50, 25))
    assert clustering.levels[0] == ()
    assert [domain.parent for domain in clustering.levels[1]] == [None, None]


@BOTH
def test_a_large_domain_is_divided_where_its_parts_are_distinct(clusterer: Clusterer) -> None:
    parts = topics([400, 400, 400], near=0.6, spread=0.06)
    others = topics([600], seed=5)
    ids = [f"x{id_}" for id_ in parts[0]] + [f"y{id_}" for id_ in others[0]]
    vectors = np.concatenate([parts[1], others[1]])
    sizes = ClusterSizes(branch=10_000, domain=500, specialisation=100)
    clustering = clusterer.cluster(ids, vectors, sizes)
    (domain,) = (c for c in clustering.levels[1] if c.members[0].startswith("x"))
    assert len(domain.members) >= 1000
    assert {topic_of(part.members)[0] for part in clustering.levels[2]} == {"x0", "x1", "x2"}
    assert all(set(part.members) <= set(domain.members) for part in clustering.levels[2])


@BOTH
def test_a_domain_below_a_thousand_sessions_is_not_divided(clusterer: Clusterer) -> None:
    parts = topics([300, 300], near=0.6, spread=0.06)
    assert clusterer.cluster(*parts, ClusterSizes(10_000, 250, 100)).levels[2] == ()


def test_inexact_search_finds_the_same_topics() -> None:
    ids, vectors = topics([300, 300, 300])
    clustering = HdbscanClusterer(exact_rows_max=500).cluster(ids, vectors, SIZES)
    assert found(clustering) == ["0", "1", "2"]


def test_a_row_is_its_own_first_neighbour_even_among_many_copies() -> None:
    grid = to_grid(np.repeat(scattered(2), 30, axis=0))
    graph = neighbours(grid, 10)
    assert (graph.rows[:, 0] == np.arange(60)).all()
    assert (graph.rows[:30, 1:] < 30).all() and (graph.rows[30:, 1:] >= 30).all()


def test_damaged_input_is_refused() -> None:
    ids, vectors = topics([60])
    clusterer = default_clusterer()
    with pytest.raises(ValueError, match="59 ids do not fit"):
        clusterer.cluster(ids[:-1], vectors, SIZES)
    with pytest.raises(ValueError, match="ids repeat"):
        clusterer.cluster([*ids[:-1], ids[0]], vectors, SIZES)
    with pytest.raises(ValueError, match="not finite"):
        clusterer.cluster(ids, np.where(vectors > 0.3, np.nan, vectors), SIZES)


def test_progress_is_reported_to_the_end() -> None:
    told: list[Progress] = []
    default_clusterer().cluster(*topics([60]), SIZES, told.append)
    assert all(0 <= p.done <= p.total for p in told)
    assert told[-1] == Progress("cluster: done", 1, 1)


def test_crowds_as_small_as_the_neighbours_of_a_row_are_copies_too() -> None:
    ids, vectors = topics([120, 100])
    template = unit(np.random.default_rng(4).normal(size=(3, DIMENSIONS)))
    crowds = np.repeat(template, 20, axis=0)
    ids = [*ids, *(f"9-{n:03d}" for n in range(60))]
    clustering = default_clusterer().cluster(ids, np.concatenate([vectors, crowds]), SIZES)
    assert found(clustering) == ["0", "1"]
    assert clustering.findings is not None
    assert clustering.findings.noise[NoiseReason.COPIES] == 57


def test_findings_say_how_sure_each_domain_is() -> None:
    clustering = default_clusterer().cluster(*topics([120, 80, 100, 90]), SIZES)
    findings = clustering.findings
    assert findings is not None
    assert len(findings.domains) == len(clustering.levels[1])
    assert all(found.stability is not None and found.stability > 0.9 for found in findings.domains)
    assert [found.distinct for found in findings.domains] == [
        len(cluster.members) for cluster in clustering.levels[1]
    ]
    assert findings.stability is not None and findings.stability > 0.9
    assert sum(findings.noise.values()) == len(clustering.noise)


def test_unrelated_prompts_are_no_domain_however_many() -> None:
    ids = [f"{n:04d}" for n in range(1500)]
    assert default_clusterer().cluster(ids, scattered(1500), SIZES).levels[1] == ()


def test_a_report_that_raises_ends_the_work() -> None:
    class StoppedError(Exception):
        pass

    calls = 0

    def report(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        default_clusterer().cluster(*topics([120, 80, 100]), SIZES, report)
    assert calls == 7
