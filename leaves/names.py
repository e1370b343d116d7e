"""Names for clusters from their own words: class-based TF-IDF, no language model.

A name is a handle for people, such as `networkx-graph`. It is made of what a cluster says more
often than its siblings, so the words of a common form of asking name nobody.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from .ports import Cluster, Clustering

WORD = re.compile(r"[a-z][a-z0-9+#]*(?:[.-][a-z0-9+#]+)*")
WORDS_MAX = 24  # of a prompt: a name comes from how it begins, not from a pasted log
LETTERS_MAX = 24  # of a term: longer ones are hashes and paths
TERMS_MAX = 2  # in a name, and more only where siblings would share it
SHARE_MIN = 0.02  # of a cluster's sessions that say a term, below which it names nothing
SPREAD_MAX = 0.8  # of several siblings in which a term is usual: the form of asking, not a topic
USUAL = 0.1  # share of a cluster's sessions from which a term is usual there

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


def name_clusters(
    clustering: Clustering, prompts: Mapping[str, str], taken: Iterable[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """Return a name for each cluster, parallel to `clustering.levels`; no name comes twice.

    prompts: session -> its ask; a session without one adds nothing. taken: names not to be given.
    The same clusters get the same names, in whatever order the sessions are. Costs one pass over
    the words of each level.
    """
    given = set(taken)
    # Domains choose first: they are what people see most, and a branch is named after them.
    named = {level: _name_level(clustering.levels[level], prompts, given) for level in (1, 2, 0)}
    return named[0], named[1], named[2]


def _name_level(
    clusters: Sequence[Cluster], prompts: Mapping[str, str], taken: set[str]
) -> tuple[str, ...]:
    usage = [_usage(cluster, prompts) for cluster in clusters]
    form = _form(usage)
    ranked = [_ranked(counts, usage, form) for counts in usage]
    names = [""] * len(clusters)
    # The larger cluster has the first choice, as it would among people.
    for index in sorted(range(len(clusters)), key=lambda i: (-len(clusters[i].members), i)):
        names[index] = _unique(ranked[index], clusters[index].level, taken)
        taken.add(names[index])
    return tuple(names)


def _usage(cluster: Cluster, prompts: Mapping[str, str]) -> dict[str, float]:
    """Return the share of a cluster's sessions that say each term."""
    counts: Counter[str] = Counter()
    for member in cluster.members:
        counts.update(_terms(prompts.get(member, "")))
    least = max(2.0, SHARE_MIN * len(cluster.members))
    return {term: n / len(cluster.members) for term, n in counts.items() if n >= least}


def _terms(prompt: str) -> set[str]:
    words = WORD.findall(prompt.lower())[:WORDS_MAX]
    kept = [w if _means(w) else "" for w in words]
    pairs = {f"{a}-{b}" for a, b in pairwise(kept) if a and b and a != b}
    return {w for w in kept if w} | pairs


def _means(word: str) -> bool:
    return 2 < len(word) <= LETTERS_MAX and word not in STOP_WORDS


def _form(usage: Sequence[Mapping[str, float]]) -> set[str]:
    """Return the terms that most of several clusters use: the template of the asks."""
    if len(usage) < 3:
        return set()
    spread = Counter(term for counts in usage for term, share in counts.items() if share >= USUAL)
    return {term for term, n in spread.items() if n >= SPREAD_MAX * len(usage)}


def _ranked(
    counts: Mapping[str, float], usage: Sequence[Mapping[str, float]], form: set[str]
) -> list[str]:
    """Return terms by how much they say about this cluster; none shares a word with another."""
    scored = sorted(
        (-share * math.log1p(len(usage) * share / _sum(term, usage)) * _length(term), term)
        for term, share in counts.items()
        if term not in form and not form.intersection(term.split("-"))
    )
    out: list[str] = []
    words: set[str] = set()
    for _, term in scored:
        parts = _stems(term)
        if not words & parts:
            out.append(term)
            words |= parts
    return out


def _sum(term: str, usage: Sequence[Mapping[str, float]]) -> float:
    return sum(counts.get(term, 0.0) for counts in usage)


def _length(term: str) -> float:
    return 1.1 if "-" in term else 1.0  # of a pair and its word, said alike often, the pair


def _stems(term: str) -> set[str]:
    """A singular and its plural are one word, and so are a dotted name and its parts."""
    return {part.removesuffix("s") for part in re.split(r"[.-]", term)}


def _unique(ranked: Sequence[str], level: int, taken: set[str]) -> str:
    base = "branch" if level == 1 else "topic"
    for count in range(min(TERMS_MAX, len(ranked)), len(ranked) + 1):
        name = _kebab(ranked[:count]) or base
        if name not in taken:
            return name
    number = 2
    name = _kebab(ranked[:TERMS_MAX]) or base
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def _kebab(terms: Sequence[str]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(terms)).strip("-")
