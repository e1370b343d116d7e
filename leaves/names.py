"""Names for clusters from their own words: class-based TF-IDF, no language model.

A name is a handle for people, such as `networkx-graph`. It is made of what a cluster says more
often than all sessions do, so the words of a common form of asking name nobody, and how the others
are cut does not change it.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import words
from .model import Vector, unit
from .ports import Cluster, Clustering

TERMS_MAX = 2  # in a name, and more only where siblings would share it
ASKS_MAX = 1000  # of a cluster that are read: a share of a tenth is then known to a hundredth
COPIES_MAX = 2  # of one ask that count: a thousand copies are not what a domain is about
SHARE_MIN = 0.02  # of a cluster's sessions that say a term, below which it names nothing
SESSIONS_MIN = 2  # and at least so many
SPREAD_MAX = 0.8  # of several siblings in which a term is usual: the form of asking, not a topic
USUAL = 0.1  # share of a cluster's sessions from which a term is usual there
SHARED_BY = 4  # other clusters that say a term as often: a language's grammar, not a topic
SHARED_FROM = 0.5  # of a cluster's share of a term in the last of those, from which it tells less

_STOP = """
a about after all also am an and any are as at be because been before being between both but
by can could did do does doing don down during each few for from further get give given go had
has have having he her here hers him his how i if in into is it its just know let like make me
more most my need no nor not now of off on once one only or other our out over own please same
see she should show so some such tell than that the their them then there these they this those
through to too two under until up use used using very want was way we were what when where which
while who whom why will with without would write you your yes can't don't i'm what's
"""
STOP_WORDS = frozenset(_STOP.split())

Usage = dict[str, float]  # of one cluster: term -> share of its asks that say it


@dataclass(frozen=True, slots=True)
class _Said:
    """What one cluster says: the share of each term, and of how many sessions."""

    usage: Usage
    sessions: int


def name_clusters(
    clustering: Clustering, prompts: Mapping[str, str], taken: Iterable[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """Return a name for each cluster, parallel to `clustering.levels`; no name comes twice.

    prompts: session -> its ask; a session without one adds nothing. taken: names not to be given.
    The same clusters get the same names, in whatever order the sessions are. Reads at most
    ASKS_MAX asks of each domain and specialisation.
    """
    given = set(taken)
    said = said_by(clustering, prompts)
    names: list[tuple[str, ...]] = [(), (), ()]
    # Domains choose first: they are what people see most, and a branch is named after them.
    for level in (1, 2, 0):
        clusters = clustering.levels[level]
        ranked = [ranked_terms(clustering, said, level, i) for i in range(len(clusters))]
        chosen = [""] * len(clusters)
        # The larger cluster has the first choice, as it would among people.
        for index in sorted(range(len(clusters)), key=lambda i: (-len(clusters[i].members), i)):
            chosen[index] = _unique(ranked[index], level + 1, given)
            given.add(chosen[index])
        names[level] = tuple(chosen)
    return tuple(names)


def medoids(clustering: Clustering, vectors: Mapping[str, Vector]) -> tuple[tuple[str, ...], ...]:
    """Return of each cluster the session nearest to its centroid, parallel to the levels.

    Its ask is the best single picture of a cluster, where words give no name. Of two equally near,
    the one whose id sorts first.
    """
    return tuple(tuple(medoid(c.members, vectors) for c in level) for level in clustering.levels)


def medoid(members: Sequence[str], vectors: Mapping[str, Vector]) -> str:
    """Return the member nearest to the centroid of all; members are sorted and not empty."""
    rows = np.stack([vectors[member] for member in members])
    centroid = unit(rows.mean(axis=0, dtype=np.float64)[None])[0]
    return members[int((rows @ centroid).argmax())]


def said_by(
    clustering: Clustering, prompts: Mapping[str, str]
) -> tuple[tuple[_Said, ...], tuple[_Said, ...], tuple[_Said, ...]]:
    """Return what each cluster says; a branch says what its domains say, by their sizes."""
    domains = tuple(_said(cluster, prompts) for cluster in clustering.levels[1])
    parts = tuple(_said(cluster, prompts) for cluster in clustering.levels[2])
    branches = tuple(
        _together([d for d, c in zip(domains, clustering.levels[1], strict=True) if c.parent == i])
        if any(c.parent == i for c in clustering.levels[1])
        else _said(branch, prompts)
        for i, branch in enumerate(clustering.levels[0])
    )
    return branches, domains, parts


def ranked_terms(
    clustering: Clustering, said: Sequence[Sequence[_Said]], level: int, index: int
) -> list[str]:
    """Return the terms of one cluster by how much they say about it; none shares a word with
    another. A specialisation is told from its domain, all else from all sessions."""
    cluster = clustering.levels[level][index]
    siblings = said[level]
    others = [each for i, each in enumerate(siblings) if i != index]
    ground = _together(said[1] or siblings)
    if ground.sessions == siblings[index].sessions:
        ground = _Said({}, 0)  # alone: whatever it says often is its own
    if level == 2 and cluster.parent is not None:
        ground = said[1][cluster.parent]
        others = [
            each
            for i, each in enumerate(siblings)
            if i != index and clustering.levels[2][i].parent == cluster.parent
        ]
    return _ranked(siblings[index].usage, ground.usage, [each.usage for each in others])


def _said(cluster: Cluster, prompts: Mapping[str, str]) -> _Said:
    """Count the terms of a cluster's asks; of one ask that comes often, two copies."""
    members: Collection[str] = [m for m in cluster.members if prompts.get(m)]
    if len(members) > ASKS_MAX:
        # By a hash of the id, so that much the same cluster is judged by much the same asks.
        members = heapq.nsmallest(ASKS_MAX, members, key=lambda m: (zlib.crc32(m.encode()), m))
    counts: Counter[str] = Counter()
    copies: Counter[tuple[str, ...]] = Counter()
    asks = 0
    for member in members:
        ask, said = words.terms(prompts[member], STOP_WORDS)
        copies[ask] += 1
        if copies[ask] <= COPIES_MAX:
            counts.update(said)
            asks += 1
    least = max(SESSIONS_MIN, SHARE_MIN * asks)
    usage = {term: n / asks for term, n in counts.items() if n >= least}
    return _Said(usage, len(cluster.members))


def _together(parts: Sequence[_Said]) -> _Said:
    total = sum(part.sessions for part in parts)
    usage: Counter[str] = Counter()
    for part in parts:
        for term, share in part.usage.items():
            usage[term] += share * part.sessions / total  # type: ignore[assignment]
    return _Said(dict(usage), total)


def _ranked(usage: Usage, ground: Usage, others: Sequence[Usage]) -> list[str]:
    scored = sorted(
        (-_score(term, usage, ground, others), term)
        for term in usage
        if not _formal(term, usage, others)
    )
    out: list[str] = []
    used: set[str] = set()
    for score, term in scored:
        stems = words.stems(term)
        if score < 0 and not used & stems:
            out.append(term)
            used |= stems
    # What is said most comes first: of two near scores, the order changes with every re-cluster.
    return [*sorted(out[:TERMS_MAX], key=lambda t: (-usage[t], t)), *out[TERMS_MAX:]]


def _score(term: str, usage: Usage, ground: Usage, others: Sequence[Usage]) -> float:
    """How much a term tells of a cluster.

    The difference to all sessions, not the ratio: a ratio hangs on how the rest happens to be cut.
    A term that several others say as often is of their language or their form of asking.
    """
    shared = max(_shared(word, usage, others) for word in _words(term))
    common = min(1.0, max(0.0, shared - SHARED_FROM) / (1 - SHARED_FROM))
    return (usage[term] - ground.get(term, 0.0)) * (1 - common) * _length(term)


def _formal(term: str, usage: Usage, others: Sequence[Usage]) -> bool:
    """True if the term, or a word of it, is usual in most of several siblings."""
    if len(others) < 2:
        return False
    siblings = [usage, *others]
    return any(
        sum(each.get(word, 0.0) >= USUAL for each in siblings) >= SPREAD_MAX * len(siblings)
        for word in _words(term)
    )


def _shared(word: str, usage: Usage, others: Sequence[Usage]) -> float:
    """How often SHARED_BY other clusters say a word, as a share of how often this one does."""
    shares = heapq.nlargest(SHARED_BY, (other.get(word, 0.0) for other in others))
    return shares[-1] / max(usage.get(word, 0.0), 1e-9) if len(shares) == SHARED_BY else 0.0


def _words(term: str) -> set[str]:
    """A term and, of a pair, its two words."""
    return {term} if words.unspaced(term) else {term, *term.split("-")}


def _length(term: str) -> float:
    """Of a pair and its word, or a run and its part, said alike often, the longer says more."""
    if words.unspaced(term):
        return 1.15 ** (len(term) - 2)
    return 1.1 if "-" in term else 1.0


def _unique(ranked: Sequence[str], level: int, taken: Collection[str]) -> str:
    base = "branch" if level == 1 else "topic"
    name = base
    terms: list[str] = []
    for term in ranked:
        longer = words.kebab([*terms, term])
        if len(longer) > words.NAME_CHARS_MAX or longer == words.kebab(terms):
            continue
        terms.append(term)
        if len(terms) <= TERMS_MAX:
            name = longer
        if len(terms) >= TERMS_MAX and longer not in taken:
            return longer
    return unused(name, taken)


def unused(name: str, taken: Collection[str]) -> str:
    """Return the name, or the first with a number after it that is not taken."""
    free, number = name, 2
    while free in taken:
        suffix = f"-{number}"
        free = name[: words.NAME_CHARS_MAX - len(suffix)].rstrip("-") + suffix
        number += 1
    return free


def below(parent: str, name: str) -> str:
    """Return the name of a part of a leaf that its owner has named: the owner's word first."""
    fresh = [piece for piece in name.split("-") if piece not in parent.split("-")]
    while fresh and len("-".join([parent, *fresh])) > words.NAME_CHARS_MAX:
        fresh.pop()
    return "-".join([parent, *fresh])
