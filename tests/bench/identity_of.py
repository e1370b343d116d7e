"""Whether leaves keep their ids when more sessions come: `ids_kept`, for the bench of domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from leaves.lifecycle import Rules, apply, assignment, decide
from leaves.model import DAY_S, Forest, Instant, LeafId, Matrix
from leaves.observe import Observations, observe
from leaves.ports import Clustering, ClusterSizes

DAY = 20_000


def ids_kept(
    first: Clustering,
    then: Clustering,
    ids: Sequence[str],
    vectors: Matrix,
    sizes: ClusterSizes,
) -> float:
    """Share of the first leaves whose id is carried by the cluster with most of their sessions.

    first: of a part of the rows; its clusters become leaves of level 2. then: of all rows, matched
    to them. A leaf whose sessions are now mostly in a cluster that carries another id has lost
    its own, and so has one whose sessions are in no cluster.
    """
    rules = Rules(
        branch_sessions=sizes.branch,
        seed_sessions=sizes.domain,
        child_sessions=min(sizes.specialisation, sizes.domain),
    )
    of = dict(zip(ids, vectors, strict=True))
    forest = Forest({}, 0, b"\1" * 32)
    now = Instant(DAY * DAY_S)
    seen = _look(forest, first, of, {}, now)
    changes = decide(forest, seen, now, rules)
    for change in changes:
        forest = apply(forest, change, now)
    leaf_of = assignment(seen, changes, forest)
    held = {s.members: x.id for x in forest for s in seen.seen if x.name == s.name and s.level == 2}
    again = _look(forest, then, of, leaf_of, Instant(now + DAY_S))
    domains = [cluster for cluster in again.seen if cluster.level == 2]
    where = {member: index for index, each in enumerate(domains) for member in each.members}
    kept = 0
    for members, leaf in held.items():
        counts = Counter(where[member] for member in members if member in where)
        kept += bool(counts) and domains[counts.most_common(1)[0][0]].leaf == leaf
    return kept / len(held) if held else 0.0


def _look(
    forest: Forest,
    clustering: Clustering,
    vectors: dict[str, Matrix],
    leaf_of: dict[str, LeafId],
    now: Instant,
) -> Observations:
    names = [[f"{now}-{c.level}-{c.members[0]}" for c in level] for level in clustering.levels]
    days = dict.fromkeys(vectors, DAY)
    return observe(forest, clustering, vectors, days, {}, names, now, leaf_of=leaf_of)
