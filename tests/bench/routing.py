"""How well prompts find their domain when nobody has named one, and what routing costs.

    python tests/bench/routing.py --data TRAIN TEST [--json FILE|-] [--source NAME] [--n N]
        [--size-min N] [--strangers DOMAIN...] [--no-probe]

TRAIN and TEST are JSON Lines, gzipped or not, with `id, text, source, group, domain, intent, oos`.
The way is the node's own: domains are found in TRAIN without labels, gates are calibrated on
sessions of TRAIN that are left out in turn, TEST is routed. Labels serve for scoring alone: a leaf
counts as the label that most of its sessions have. Rows with `oos` are in no domain: those of TEST
are what should be refused, those of TRAIN are not used. `--strangers` holds whole domains out
instead, for choosing settings on data that no final figure comes from.

accuracy.{group,domain,intent}  in-scope TEST prompts whose leaf has their label, before its gate
oos_auroc                how well what is held against the gates parts the strangers from the rest
oos_rejected_at_5pct     strangers refused where 5 % of in-scope TEST prompts are
p50_us, p99_us           one route by centroids among 500 leaves; encoding apart
refused.{in_scope,oos}   by the gates as calibrated, which ask for 5 % of in-scope
centroids.*              the same figures without the nearest sessions
probe.*, ratio.*         accuracy of logistic regression on the same vectors and labels; ours to it
leaves, size_min, noise  of level 2; smallest domain asked for; share of sessions in none
latency_us.*             p50 and p99 for 500 and 5,000 leaves, and with 50,000 sessions asked
hubness_skew.*           skewness of how often a leaf is nearest, before and after the correction
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from prompt_vectors import Row, encoded, read, say  # noqa: E402

from leaves.discover import default_clusterer  # noqa: E402
from leaves.model import LeafId, Matrix, Stage, unit  # noqa: E402
from leaves.ports import Clustering, ClusterSizes  # noqa: E402
from router.calibrate import calibrate_tree  # noqa: E402
from router.neighbours import Neighbours  # noqa: E402
from router.table import Entry, Table, unhubbed  # noqa: E402

LEVELS = ("group", "domain", "intent")
SIZE_MIN = 100  # the specification's smallest cluster, of level 3
SIZES_PER_DATA = 100  # of fewer sessions, a hundredth may be a domain
FALSE_REFUSALS = 0.05
ENC8 = b"routing."


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows and their vectors."""

    rows: list[Row]
    vectors: Matrix

    def labels(self, level: str) -> NDArray[np.str_]:
        return np.array([row[level] for row in self.rows])


@dataclass(frozen=True, slots=True)
class Grown:
    """What a node has after its first discovery. members: of each leaf, those below it too."""

    table: Table
    plain: Table  # without correction for hubs
    neighbours: Neighbours
    members: dict[LeafId, list[int]]
    domains: int
    noise: float


def texts(path: Path, source: str | None, cache: Path) -> Texts:
    rows = [row for row in read(path) if row["oos"] or source in (None, row["source"])]
    return Texts(rows, encoded(rows, cache))


def chosen(texts: Texts, keep: Sequence[bool]) -> Texts:
    at = np.flatnonzero(keep)
    return Texts([texts.rows[i] for i in at], texts.vectors[at])


def grown(train: Texts, size_min: int) -> Grown:
    """Find domains and build what a node routes by."""
    ids = [hashlib.sha256(row["id"].encode()).hexdigest() for row in train.rows]
    sizes = ClusterSizes(10 * size_min, size_min, size_min)
    found = default_clusterer().cluster(ids, train.vectors, sizes)
    say(f"{len(found.levels[1])} domains in {len(ids):,} sessions")
    if not found.levels[1]:
        raise SystemExit(f"no domain of {size_min} sessions in {len(ids):,}: nothing can be routed")
    level_of, parent_of, members = _named(found, ids)
    leaf_of = {ids[i]: leaf for leaf in sorted(level_of, key=level_of.__getitem__)
               for i in members[leaf]}  # fmt: skip
    gates = calibrate_tree(ids, train.vectors, leaf_of, level_of, parent_of)
    means = {leaf: train.vectors[at].mean(axis=0, dtype=np.float64) for leaf, at in members.items()}
    entries = [
        Entry(
            leaf, leaf, level_of[leaf], Stage.SEED, unit(means[leaf].astype(np.float32)[None])[0],
            parent=parent_of[leaf], gate=gates.get(leaf, 0.0),
        )
        for leaf in level_of
    ]  # fmt: skip
    dimensions = train.vectors.shape[1]
    mean = train.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Grown(
        Table.build(ENC8, dimensions, unhubbed(entries, mean)),
        Table.build(ENC8, dimensions, entries),
        Neighbours.build(ids, train.vectors, leaf_of, enc8=ENC8),
        members,
        len(found.levels[1]),
        len(found.noise) / len(ids),
    )


def _named(
    found: Clustering, ids: list[str]
) -> tuple[dict[LeafId, int], dict[LeafId, LeafId | None], dict[LeafId, list[int]]]:
    """Give each cluster an id; return level, parent and rows of each."""
    at = {id_: row for row, id_ in enumerate(ids)}
    level_of: dict[LeafId, int] = {}
    parent_of: dict[LeafId, LeafId | None] = {}
    members: dict[LeafId, list[int]] = {}
    for level, clusters in enumerate(found.levels, start=1):
        for index, cluster in enumerate(clusters):
            leaf = LeafId(f"{level}{index:031x}")
            level_of[leaf] = level
            up = cluster.parent
            parent_of[leaf] = None if up is None else LeafId(f"{level - 1}{up:031x}")
            members[leaf] = [at[id_] for id_ in cluster.members]
    return level_of, parent_of, members


def routed(
    table: Table, neighbours: Neighbours | None, vectors: Matrix
) -> tuple[list[LeafId], NDArray[np.float64]]:
    """Return, for each vector, the leaf first asked, and by how much the best one passed its gate.

    The second is negative for what is refused: no leaf's gate was passed.
    """
    leaves, margins = [], []
    for vector in vectors:
        asked = table.explain(vector, neighbours)
        leaves.append(asked[0].entry.leaf)
        margins.append(max(each.score - each.gate for each in asked))
    return leaves, np.array(margins)


def judged(
    made: Grown, table: Table, neighbours: Neighbours | None, train: Texts, test: Texts, oos: Texts
) -> dict[str, Any]:
    say(f"{len(test.rows):,} prompts are routed, {len(oos.rows):,} strangers")
    leaves, inside = routed(table, neighbours, test.vectors)
    _, outside = routed(table, neighbours, oos.vectors)
    accuracy = {}
    for level in LEVELS:
        labels = train.labels(level)
        label = {
            leaf: Counter(labels[at].tolist()).most_common(1)[0][0]
            for leaf, at in made.members.items()
        }
        right = [label[leaf] == want for leaf, want in zip(leaves, test.labels(level), strict=True)]
        accuracy[level] = round(float(np.mean(right)), 4)
    return {
        "accuracy": accuracy,
        "oos_auroc": round(auroc(inside, outside), 4),
        "oos_rejected_at_5pct": round(
            float((outside < np.quantile(inside, FALSE_REFUSALS)).mean()), 4
        ),
        "refused": {
            "in_scope": round(float((inside < 0).mean()), 4),
            "oos": round(float((outside < 0).mean()), 4),
        },
    }


def auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    least = len(inside) * (len(inside) + 1) / 2
    return float((ranks.sum() - least) / (len(inside) * len(outside)))


def probe(train: Texts, test: Texts, level: str) -> float:
    """The accuracy of a supervised linear probe."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(set(train.labels(level))) == 1:  # of one source there may be one group
        return float((test.labels(level) == train.labels(level)[0]).mean())
    labels = train.labels(level)
    say(f"probe of {len(set(labels))} labels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=10, max_iter=200, tol=1e-3).fit(train.vectors, labels)
    return float((model.predict(test.vectors) == test.labels(level)).mean())


def skewness(table: Table, vectors: Matrix) -> float:
    """Skewness of how many vectors each domain is put forward for; 0 if all are alike."""
    first = [table.explain(vector)[0].entry for vector in vectors]
    nearest = Counter(entry.parent if entry.level == 3 else entry.leaf for entry in first)
    counts = np.array([nearest.get(e.leaf, 0) for e in table.entries if e.level == 2], np.float64)
    centred = counts - counts.mean()
    return float((centred**3).mean() / max((centred**2).mean(), 1e-12) ** 1.5)


def latencies(dimensions: int = 384) -> dict[str, Any]:
    """Time single routes on made vectors: what is timed does not depend on what they mean."""
    rng = np.random.default_rng(0)
    asked = unit(rng.normal(size=(2_000, dimensions)).astype(np.float32))

    def many(count: int) -> tuple[Table, Matrix]:
        centroids = unit(rng.normal(size=(count, dimensions)).astype(np.float32))
        return Table.build(
            ENC8,
            dimensions,
            [
                Entry(LeafId(f"{i:032x}"), str(i), 2, Stage.MATURE, centroids[i], hubness=0.01)
                for i in range(count)
            ],
        ), centroids

    out: dict[str, Any] = {}
    for count in (500, 5_000):
        out[f"leaves_{count}"] = timed(many(count)[0], None, asked)
    table, centroids = many(500)
    of = rng.integers(500, size=50_000)
    sessions = unit(centroids[of] + 0.05 * rng.normal(size=(50_000, dimensions)).astype(np.float32))
    ids = [f"{i:08d}" for i in range(len(sessions))]
    leaf_of = {id_: LeafId(f"{leaf:032x}") for id_, leaf in zip(ids, of, strict=True)}
    began = time.process_time()
    neighbours = Neighbours.build(ids, sessions, leaf_of)
    out["build_50000_sessions_s"] = round(time.process_time() - began, 2)
    with tempfile.TemporaryDirectory() as folder:  # as the node does: from a memory-mapped file
        neighbours.save(Path(folder) / "neighbours.bin")
        mapped = Neighbours.open(Path(folder) / "neighbours.bin")
        near = unit(sessions[:2_000] + 0.02 * rng.normal(size=(2_000, dimensions)))
        out["sessions_50000"] = timed(table, mapped, near.astype(np.float32))
    return out


def timed(table: Table, neighbours: Neighbours | None, vectors: Matrix) -> dict[str, float]:
    """Median of five runs of p50 and p99, in µs."""
    runs = []
    for _ in range(5):
        taken = []
        for vector in vectors:
            began = time.perf_counter()
            table.route(vector, neighbours)
            taken.append((time.perf_counter() - began) * 1e6)
        runs.append(np.quantile(taken, (0.5, 0.99)))
    p50, p99 = (statistics.median(float(run[i]) for run in runs) for i in (0, 1))
    return {"p50": round(p50, 1), "p99": round(p99, 1)}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    train, test = (
        texts(Path(path), arguments.source, Path(arguments.cache)) for path in arguments.data
    )
    if arguments.n:
        drawn = np.random.default_rng(0).permutation(len(train.rows))[: arguments.n]
        train = Texts([train.rows[i] for i in drawn], train.vectors[drawn])
    strange = [row["domain"] in arguments.strangers or row["oos"] for row in test.rows]
    if arguments.strangers:
        strange = [row["domain"] in arguments.strangers for row in test.rows]
    oos = chosen(test, strange)
    test = chosen(test, [not (s or row["oos"]) for s, row in zip(strange, test.rows, strict=True)])
    train = chosen(
        train, [not row["oos"] and row["domain"] not in arguments.strangers for row in train.rows]
    )
    size_min = arguments.size_min or min(SIZE_MIN, max(10, len(train.rows) // SIZES_PER_DATA))
    made = grown(train, size_min)
    latency = latencies()
    out = {
        **judged(made, made.table, made.neighbours, train, test, oos),
        "p50_us": latency["leaves_500"]["p50"],
        "p99_us": latency["leaves_500"]["p99"],
        "centroids": judged(made, made.table, None, train, test, oos),
        "latency_us": latency,
        "hubness_skew": {
            "before": round(skewness(made.plain, test.vectors), 3),
            "after": round(skewness(made.table, test.vectors), 3),
        },
        "train": len(train.rows),
        "test": len(test.rows),
        "oos": len(oos.rows),
        "leaves": made.domains,
        "size_min": size_min,
        "noise": round(made.noise, 4),
    }
    if not arguments.no_probe:
        out["probe"] = {level: round(probe(train, test, level), 4) for level in LEVELS}
        out["ratio"] = {
            level: round(out["accuracy"][level] / out["probe"][level], 4) for level in LEVELS
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs=2, required=True, metavar=("TRAIN", "TEST"))
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--source", help="in-scope rows of this source alone")
    parser.add_argument("--n", type=int, help="use so many rows of TRAIN")
    parser.add_argument("--size-min", type=int, help="smallest domain")
    parser.add_argument("--strangers", nargs="+", default=[], metavar="DOMAIN")
    parser.add_argument("--no-probe", action="store_true")
    parser.add_argument(
        "--cache", default=str(Path(tempfile.gettempdir()) / "groove-bench"), help="of vectors"
    )
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments), indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
