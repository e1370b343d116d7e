"""How well domains are found in prompts that nobody has labelled, beside four other ways.

    python tests/bench/domains.py --data FILE... [--n N] [--level domain|intent] [--json FILE|-]
        [--source NAME...] [--quick] [--no-peers] [--scale N...]

FILE: JSON Lines, gzipped or not, with `id, text, source, domain, intent, oos`; rows with `oos` are
left out. Labels serve for scoring alone. All rows together come first, then each source.

The smallest cluster is the specification's: 200 of 20,000 sessions where domains are scored, 100
where intents are; of fewer sessions, proportionally fewer. It is the same for all. Every run has a
process of its own, with two threads, and a small run before it that is not timed.

n, size_min, clusters, noise   rows; smallest cluster; clusters found; share of rows in none
purity                   share of the clustered rows that have the commonest label of their cluster
ari_clustered            adjusted Rand index of the clustered rows with their labels
ari_nearest, ami_nearest that of all rows, each given to its nearest centroid: what a router does
stability_ari            of runs on 80 % of the rows, in pairs, by nearest centroid over all rows
stability_ari_all        of their common rows, noise as a label; stability_ari_clustered: without
shuffle_ari              of the run with one of shuffled rows on one thread, noise as a label
ids_kept                 of the leaves found in 80 % of the rows, those that keep their id in all
seconds, peak_mb         median of the runs on all rows; the largest resident size of the process
best_peer.*              the best figure of any peer; purity_at_noise: ours, where as many rows are
                         left out as the purest peer leaves out
peers: hdbscan_raw       the specification's parameters on unit vectors; up to 10,000 rows
       umap_hdbscan      UMAP to 5 dimensions, then HDBSCAN with 10 samples
       evoc              its finest layer; evoc_default: the layer that it chooses
       leiden            modularity on the graph of 15 neighbours, by leidenalg
scale.N                  N rows: those at hand and jittered copies of them, cosine about 0.89
incremental_s            10,000 new sessions given to 500 leaves

--quick leaves out stability, shuffling and ids of the peers. Peers run up to 20,000 rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from prompt_vectors import encoded, read, say  # noqa: E402

from leaves.model import Matrix, unit  # noqa: E402

Labels = NDArray[np.int64]

SIZES = {"domain": 200, "intent": 100}  # of SESSIONS; the specification's §4
SESSIONS = 20_000
SIZE_LEAST = 10
SUBSAMPLES = 3
SUBSAMPLE_SHARE = 0.8
JITTER = 0.51 / 384**0.5  # of each component: cosine to the original about 0.89
PEERS = ("hdbscan_raw", "umap_hdbscan", "evoc", "evoc_default", "leiden")
ROWS_MAX = {"hdbscan_raw": 10_000}
PEER_ROWS_MAX = 20_000
TIMEOUT_S = 3_600


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows to find domains in. ids: in the order of the vectors; labels: numbers from 0."""

    ids: list[str]
    vectors: Matrix
    labels: Labels
    size_min: int


@dataclass(frozen=True, slots=True)
class Run:
    labels: Labels
    seconds: float
    peak_mb: float


# What runs in a process of its own.


def ours(ids: list[str], vectors: Matrix, size_min: int) -> Labels:
    from leaves.discover import default_clusterer
    from leaves.ports import ClusterSizes

    sizes = ClusterSizes(5 * size_min, size_min, max(2, size_min // 2))
    found = default_clusterer().cluster(ids, vectors, sizes)
    at = {id_: row for row, id_ in enumerate(ids)}
    labels = np.full(len(ids), -1, np.int64)
    for label, cluster in enumerate(found.levels[1]):
        labels[[at[member] for member in cluster.members]] = label
    return labels


def hdbscan_raw(ids: list[str], vectors: Matrix, size_min: int) -> Labels:
    import hdbscan

    return _numbers(hdbscan.HDBSCAN(min_cluster_size=size_min, min_samples=50).fit_predict(vectors))


def umap_hdbscan(ids: list[str], vectors: Matrix, size_min: int) -> Labels:
    import hdbscan
    import umap

    flat = umap.UMAP(
        n_neighbors=15, n_components=5, min_dist=0.0, metric="cosine", random_state=0, n_jobs=1
    ).fit_transform(vectors)
    return _numbers(hdbscan.HDBSCAN(min_cluster_size=size_min, min_samples=10).fit_predict(flat))


def evoc(ids: list[str], vectors: Matrix, size_min: int) -> Labels:
    return _numbers(_evoc(vectors, size_min).cluster_layers_[0])


def evoc_default(ids: list[str], vectors: Matrix, size_min: int) -> Labels:
    return _numbers(_evoc(vectors, size_min).labels_)


def _evoc(vectors: Matrix, size_min: int) -> Any:
    import evoc

    found = evoc.EVoC(base_min_cluster_size=size_min, random_state=0)
    found.fit_predict(vectors)
    return found


def leiden(ids: list[str], vectors: Matrix, size_min: int) -> Labels:
    import faiss
    import igraph
    import leidenalg

    _, rows = faiss.knn(vectors, vectors, 16, metric=faiss.METRIC_INNER_PRODUCT)
    one = np.repeat(np.arange(len(rows)), 15)
    graph = igraph.Graph(n=len(rows), edges=np.column_stack([one, rows[:, 1:].ravel()]))
    graph.simplify()
    found = leidenalg.find_partition(graph, leidenalg.ModularityVertexPartition, seed=0)
    labels = np.array(found.membership)
    small = np.bincount(labels) < size_min
    return _numbers(np.where(small[labels], -1, labels))


WAYS: dict[str, Callable[[list[str], Matrix, int], Labels]] = {
    "ours": ours,
    "hdbscan_raw": hdbscan_raw,
    "umap_hdbscan": umap_hdbscan,
    "evoc": evoc,
    "evoc_default": evoc_default,
    "leiden": leiden,
}


def _numbers(labels: Any) -> Labels:
    """Labels from 0 without gaps; -1 stays."""
    found = np.asarray(labels, np.int64)
    numbers = np.full(len(found), -1, np.int64)
    numbers[found >= 0] = np.unique(found[found >= 0], return_inverse=True)[1]
    return numbers


def child(way: str, work: Path, size_min: int) -> None:
    """Run one way on `work`/vectors.npy; write labels and what it cost."""
    import resource
    import warnings

    warnings.simplefilter("ignore")
    vectors: Matrix = np.load(work / "vectors.npy", mmap_mode="r")
    ids = json.loads((work / "ids.json").read_text())
    first = min(len(ids), 1_500)
    WAYS[way](ids[:first], np.asarray(vectors[:first]), max(SIZE_LEAST, first // 50))
    began = time.perf_counter()
    labels = WAYS[way](ids, vectors if way == "ours" else np.asarray(vectors), size_min)
    seconds = time.perf_counter() - began
    np.save(work / "labels.npy", labels)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (work / "cost.json").write_text(json.dumps([seconds, peak_mb]))


def run(way: str, ids: list[str], vectors: Matrix, size_min: int, threads: int = 2) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "vectors.npy", vectors)
        (work / "ids.json").write_text(json.dumps(ids))
        count = str(threads)
        subprocess.run(
            [sys.executable, __file__, "--child", way, str(work), str(size_min)],
            env={**os.environ, "OMP_NUM_THREADS": count, "NUMBA_NUM_THREADS": count},
            check=True,
            timeout=TIMEOUT_S,
        )
        seconds, peak_mb = json.loads((work / "cost.json").read_text())
        return Run(np.load(work / "labels.npy"), seconds, peak_mb)


# What is made of it here.


def nearest(corpus: Corpus, labels: Labels, rows: Labels | None = None) -> Labels:
    """Give every row of the corpus to the nearest centroid of `labels`, which are of `rows`."""
    part = corpus.vectors if rows is None else corpus.vectors[rows]
    groups = range(int(labels.max()) + 1)
    means = np.stack([part[labels == g].mean(axis=0, dtype=np.float64) for g in groups])
    centroids = unit(means.astype(np.float32))
    out = np.empty(len(corpus.ids), np.int64)
    for start in range(0, len(out), 50_000):
        out[start : start + 50_000] = (corpus.vectors[start : start + 50_000] @ centroids.T).argmax(
            axis=1
        )
    return out


def purity(truth: Labels, labels: Labels) -> float:
    found = Counter(zip(labels[labels >= 0].tolist(), truth[labels >= 0].tolist(), strict=True))
    most: Counter[int] = Counter()
    for (label, _), count in found.items():
        most[label] = max(most[label], count)
    return sum(most.values()) / max(int((labels >= 0).sum()), 1)


def scored(corpus: Corpus, found: Run) -> dict[str, Any]:
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    labels, truth = found.labels, corpus.labels
    inside = labels >= 0
    out: dict[str, Any] = {
        "n": len(truth),
        "size_min": corpus.size_min,
        "clusters": int(labels.max()) + 1,
        "noise": 1 - inside.mean(),
        "seconds": found.seconds,
        "peak_mb": found.peak_mb,
    }
    if inside.any():
        near = nearest(corpus, labels)
        out |= {
            "purity": purity(truth, labels),
            "ari_clustered": adjusted_rand_score(truth[inside], labels[inside]),
            "ari_nearest": adjusted_rand_score(truth, near),
            "ami_nearest": adjusted_mutual_info_score(truth, near),
        }
    return rounded(out)


def steadiness(way: str, corpus: Corpus, found: Run) -> dict[str, float]:
    """Run on subsamples and on shuffled rows; compare."""
    from identity_of import ids_kept
    from sklearn.metrics import adjusted_rand_score

    from leaves.ports import ClusterSizes

    rng = np.random.default_rng(1)
    count = len(corpus.ids)
    parts = []
    for _ in range(SUBSAMPLES):
        rows = np.sort(rng.permutation(count)[: int(SUBSAMPLE_SHARE * count)])
        size = max(SIZE_LEAST, round(SUBSAMPLE_SHARE * corpus.size_min))
        labels = run(way, [corpus.ids[i] for i in rows], corpus.vectors[rows], size).labels
        if labels.max() < 0:
            return {}
        wide = np.full(count, -2, np.int64)
        wide[rows] = labels
        parts.append((nearest(corpus, labels, rows), wide))
    everywhere, clustered = [], []
    for (_, one), (_, other) in combinations(parts, 2):
        both = (one > -2) & (other > -2)
        everywhere.append(adjusted_rand_score(one[both], other[both]))
        both = (one >= 0) & (other >= 0)
        clustered.append(adjusted_rand_score(one[both], other[both]))
    near = [adjusted_rand_score(a[0], b[0]) for a, b in combinations(parts, 2)]
    order = rng.permutation(count)
    shuffled = run(
        way, [corpus.ids[i] for i in order], corpus.vectors[order], corpus.size_min, threads=1
    )
    sizes = ClusterSizes(10 * count, corpus.size_min, corpus.size_min)
    first = clustering(corpus, np.where(parts[0][1] == -2, -1, parts[0][1]))
    then = clustering(corpus, found.labels)
    kept = ids_kept(first, then, corpus.ids, corpus.vectors, sizes)
    return rounded(
        {
            "stability_ari": float(np.mean(near)),
            "stability_ari_all": float(np.mean(everywhere)),
            "stability_ari_clustered": float(np.mean(clustered)),
            "shuffle_ari": adjusted_rand_score(found.labels[order], shuffled.labels),
            "ids_kept": kept,
        }
    )


def clustering(corpus: Corpus, labels: Labels) -> Any:
    """Labels as what a clusterer returns, at level 2 alone."""
    from leaves.ports import Cluster, Clustering

    groups = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    level2 = [
        Cluster(2, tuple(sorted(corpus.ids[i] for i in rows)), None)
        for rows in groups
        if len(rows) >= SUBSAMPLE_SHARE * corpus.size_min
    ]
    return Clustering(((), tuple(level2), ()), ())


def without_most_doubtful(corpus: Corpus, labels: Labels, noise: float) -> Labels:
    """Our labels with as many rows left out as another way leaves out: those whose two nearest
    centroids are nearest to each other."""
    groups = range(int(labels.max()) + 1)
    means = np.stack([corpus.vectors[labels == g].mean(axis=0, dtype=np.float64) for g in groups])
    if len(means) < 2:
        return labels
    near = np.sort(corpus.vectors @ unit(means.astype(np.float32)).T, axis=1)
    margin = np.where(labels >= 0, near[:, -1] - near[:, -2], -1.0)
    out = labels.copy()
    out[np.argsort(margin, kind="stable")[: int(noise * len(labels))]] = -1
    return out


def measured(corpus: Corpus, arguments: argparse.Namespace, what: str) -> dict[str, Any]:
    """All figures of one corpus: ours, and the peers'."""
    say(f"{what}: {len(corpus.ids):,} rows, ours")
    runs = [run("ours", corpus.ids, corpus.vectors, corpus.size_min) for _ in range(3)]
    found = runs[0]
    out = scored(corpus, found)
    out["seconds"] = round(statistics.median(each.seconds for each in runs), 3)
    out["peak_mb"] = round(max(each.peak_mb for each in runs), 1)
    out |= steadiness("ours", corpus, found)
    if arguments.no_peers:
        return out
    peers: dict[str, Any] = {}
    for way in PEERS:
        if len(corpus.ids) > ROWS_MAX.get(way, PEER_ROWS_MAX):
            continue
        say(f"{what}: {way}")
        other = run(way, corpus.ids, corpus.vectors, corpus.size_min)
        peers[way] = scored(corpus, other)
        if not arguments.quick and other.labels.max() >= 0:
            peers[way] |= steadiness(way, corpus, other)
    able = [name for name in peers if "purity" in peers[name]]
    if able and "purity" in out:
        purest = max(able, key=lambda name: float(peers[name]["purity"]))
        noise = max(float(peers[purest]["noise"]), float(out["noise"]))
        same = without_most_doubtful(corpus, found.labels, noise)
        keys = ("purity", "ari_nearest", "ami_nearest")
        out["best_peer"] = {key: max(float(peers[name][key]) for name in able) for key in keys}
        out["best_peer"]["purest"] = purest
        out["best_peer"]["purity_at_noise"] = round(purity(corpus.labels, same), 4)
    return out | {"peers": peers}


def scale(corpus: Corpus, count: int) -> dict[str, Any]:
    """Our figures on `count` rows: those at hand, and jittered copies of them."""
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        vectors: Any = np.lib.format.open_memmap(path, "w+", np.float32, (count, 384))
        labels = np.empty(count, np.int64)
        for start in range(0, count, 50_000):
            at = np.arange(start, min(start + 50_000, count))
            rows = at % len(corpus.ids)
            noise = JITTER * rng.normal(size=(len(at), 384))
            noise[at < len(corpus.ids)] = 0.0
            vectors[at] = unit((corpus.vectors[rows] + noise).astype(np.float32))
            labels[at] = corpus.labels[rows]
        ids = [f"{i:08d}" for i in rng.permutation(count)]
        whole = Corpus(ids, vectors, labels, SIZES["domain"])
        found = run("ours", ids, vectors, whole.size_min)
        out = scored(whole, found)
        if count <= 200_000:
            from sklearn.metrics import adjusted_rand_score

            order = rng.permutation(count)
            other = run("ours", [ids[i] for i in order], vectors[order], whole.size_min, threads=1)
            out["shuffle_ari"] = round(adjusted_rand_score(found.labels[order], other.labels), 4)
    return out


def incremental_s() -> float:
    from leaves.incremental import place

    rng = np.random.default_rng(3)
    new = unit(rng.normal(size=(10_000, 384)).astype(np.float32))
    centroids = unit(rng.normal(size=(500, 384)).astype(np.float32))
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        place(new, centroids, np.full(500, 0.25, np.float32))
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken), 4)


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: round(float(v), 4) if isinstance(v, float) else v for k, v in figures.items()}


def corpus_of(rows: list[dict[str, Any]], vectors: Matrix, level: str) -> Corpus:
    size = max(SIZE_LEAST, round(SIZES[level] * min(1.0, len(rows) / SESSIONS)))
    labels = np.unique([row[level] for row in rows], return_inverse=True)[1].astype(np.int64)
    return Corpus([row["id"] for row in rows], vectors, labels, size)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--n", type=int, default=20_000, help="use so many rows, drawn by seed 0")
    parser.add_argument("--level", choices=sorted(SIZES), default="domain")
    parser.add_argument("--source", nargs="+", default=[], help="these sources, each alone")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--scale", nargs="+", type=int, default=[], metavar="N")
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument(
        "--cache", default=str(Path(tempfile.gettempdir()) / "groove-bench"), help="of vectors"
    )
    arguments = parser.parse_args()
    rows = [row for path in arguments.data for row in read(Path(path)) if not row["oos"]]
    vectors = encoded(rows, Path(arguments.cache))
    order = np.random.default_rng(0).permutation(len(rows))

    def part(source: str | None) -> Corpus:
        at = [i for i in order if source in (None, rows[i]["source"])][: arguments.n]
        return corpus_of([rows[i] for i in at], vectors[at], arguments.level)

    counts = Counter(row["source"] for row in rows)
    sources = arguments.source or sorted(counts)
    usable = [s for s in sources if counts[s] >= 1_000 and part(s).labels.max() > 0]
    whole = not arguments.source and len(counts) > 1
    out: dict[str, Any] = measured(part(None), arguments, "all") if whole else {}
    out["level"] = arguments.level
    out["sources"] = {s: measured(part(s), arguments, s) for s in usable}
    out["scale"] = {str(count): scale(part(None), count) for count in arguments.scale}
    out["incremental_s"] = incremental_s()
    if not whole and len(usable) == 1:
        out |= out["sources"][usable[0]]
    text = json.dumps(out, indent=1)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
