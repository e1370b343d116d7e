"""A year of traffic: topics that are born, drift, grow, fade, split and merge, day by day.

What each session is about is known, so a clusterer can be stood in for by the truth with errors:
on some days it joins two near topics, misses one, or cuts one in two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from leaves.lifecycle import (
    Outcome,
    Rules,
    Transition,
    apply,
    assignment,
    conclude,
    decide,
    due,
)
from leaves.model import (
    DAY_S,
    Adapter,
    Evaluation,
    Forest,
    Instant,
    Interval,
    LeafId,
    Stage,
    Vector,
    Verdict,
    unit,
)
from leaves.observe import Observations, observe
from leaves.ports import Cluster, Clustering

START = 20_000  # the first day, in days since 1970
KEPT_DAYS = 150  # then the owner's retention deletes a session
SHOWS_DAYS = 30  # from the beginning of a split until the data shows it
DIMENSIONS = 48
RULES = Rules(
    branch_sessions=200,
    seed_sessions=20,
    child_sessions=10,
    first_discovery_sessions=50,
    skill_sessions=40,
    reasoning_sessions=40,
    sprout_retrain_sessions=30,
    mature_sessions=60,
    mature_retrain_sessions=80,
    dormant_sessions_per_month=2,
    merge_sessions=80,
)
JOINED = 100  # added to the number of a topic that another has become one with
PARTED = 200  # and of one that another has split from
Labels = dict[str, int]  # session -> topic, or -1


@dataclass
class Topic:
    """A point that wanders on the sphere, and how many sessions a day come near it."""

    centre: Vector
    born: int
    ends: int
    per_day: float
    growth: float  # a day
    heir_of: int | None = None  # the topic that it splits from
    joins: tuple[int, int] | None = None  # (topic, day): from then on they are one

    def rate(self, day: int) -> float:
        if not self.born <= day < self.ends:
            return 0.0
        return max(0.6, self.per_day * (1 + self.growth * (day - self.born)))


@dataclass
class Year:
    """The sessions of a year, all drawn beforehand from one seed."""

    seed: int
    days: int = 365
    count: int = 18
    topics: list[Topic] = field(default_factory=list)
    truth: Labels = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)
    day_of: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        for number in range(self.count):
            born = 0 if number < self.count // 2 else int(rng.integers(10, 0.7 * self.days))
            fades = number % 5 == 4
            ends = born + int(rng.integers(60, 150)) if fades else self.days
            pace, growth = rng.uniform(0.6, 1.6), rng.uniform(-0.001, 0.004)
            self.topics.append(Topic(_random(rng), born, ends, pace, growth))
        middle = self.days // 2
        for parent in (0, 1):  # two topics split: their heirs begin where they are, and leave
            self.topics.append(
                replace(self.topics[parent], born=middle - 30 * parent, heir_of=parent)
            )
        self.topics[2].joins = (3, middle)  # and two become one
        for day in range(self.days):
            self._draw(day, rng)

    def _draw(self, day: int, rng: np.random.Generator) -> None:
        for number, topic in enumerate(self.topics):
            step, pull = _random(rng), 0.0
            if topic.joins and day >= topic.joins[1] - 40:
                step, pull = self.topics[topic.joins[0]].centre, 0.1
            elif topic.heir_of is not None and 0 <= day - topic.born < 40:
                step = unit((topic.centre - self.topics[topic.heir_of].centre + 0.3 * step)[None])[
                    0
                ]
                pull = 0.03
            topic.centre = unit((topic.centre + (pull or 0.006) * step)[None])[0]
            for _ in range(int(rng.poisson(topic.rate(day)))):
                near = topic.centre + rng.normal(0, 0.09, DIMENSIONS).astype(np.float32)
                self._add(day, number, unit(near[None])[0])
        for _ in range(int(rng.poisson(1.5))):
            self._add(day, -1, _random(rng))

    def _add(self, day: int, topic: int, vector: Vector) -> None:
        session = f"{day:03d}-{len(self.truth):06d}"
        self.truth[session], self.vectors[session] = topic, vector
        self.day_of[session] = START + day

    def known(self, day: int) -> list[str]:
        """Sessions that are there on a day."""
        return [s for s, at in self.day_of.items() if day - KEPT_DAYS < at - START <= day]

    def live(self, topic: int, day: int) -> bool:
        """True while sessions come, and for an heir once it shows in the data."""
        one = self.topics[topic % 100]
        return one.born + (SHOWS_DAYS if one.heir_of is not None else 0) <= day < one.ends

    def domain(self, topic: int, day: int) -> int:
        """What a topic is on a day: itself, or of two that became one, the one of them both.

        Of one that became two, each part is another domain than the whole: either may keep the id.
        """
        for one, other in enumerate(self.topics):
            if other.joins and day >= other.joins[1] and topic in (one, other.joins[0]):
                return JOINED + other.joins[0]
            if other.heir_of == topic and day >= other.born + SHOWS_DAYS:
                return PARTED + topic
        return topic

    def domains(self, day: int) -> dict[int, int]:
        """`domain` of each topic and of none: of as many sessions it is asked once."""
        return {topic: self.domain(topic, day) for topic in range(-1, len(self.topics))}


@dataclass
class Standing:
    """What is carried from one day to the next."""

    forest: Forest
    leaf_of: dict[str, LeafId] = field(default_factory=dict)
    journal: list[tuple[Instant, Transition]] = field(default_factory=list)


Discover = Callable[[int, list[str]], Clustering]


def live_through(
    year: Year, discover: Discover, every: int = 1
) -> tuple[Standing, dict[int, dict[int, LeafId]]]:
    """Re-cluster each day; return how it ended, and which leaf each domain was on each day."""
    standing = Standing(Forest({}, 0, b"\1" * 32))
    carried: dict[int, dict[int, LeafId]] = defaultdict(dict)
    for day in range(every - 1, year.days, every):
        ids = year.known(day)
        if len(ids) < RULES.first_discovery_sessions:
            continue
        now = Instant((START + day) * DAY_S + 80_000)
        seen = look(year, standing, discover(day, ids), ids, now)
        changes = decide(standing.forest, seen, now, RULES)
        carry_out(standing, changes, now)
        standing.leaf_of = assignment(seen, changes, standing.forest)
        wanted = [each.id for each in due(standing.forest, now, RULES)]
        carry_out(standing, _lessons(standing.forest, wanted, now), now)
        for domain, leaf in _carriers(year, standing.leaf_of, day).items():
            carried[domain][day] = leaf
    return standing, carried


def look(
    year: Year, standing: Standing, clustering: Clustering, ids: list[str], now: Instant
) -> Observations:
    names = [[f"{c.level}-{c.members[0]}" for c in level] for level in clustering.levels]
    vectors = {session: year.vectors[session] for session in ids}
    return observe(
        standing.forest, clustering, vectors, year.day_of, {}, names, now, leaf_of=standing.leaf_of
    )


def carry_out(standing: Standing, changes: list[Transition], now: Instant) -> None:
    for change in changes:
        standing.forest = apply(standing.forest, change, now)
        standing.journal.append((now, change))


def _lessons(forest: Forest, wanted: list[LeafId], now: Instant) -> list[Transition]:
    """Every training wins: this is about ids, not about adapters."""
    gain = Interval(0.2, 0.15, 0.25)
    outcomes = {}
    for id_ in wanted:
        verdict = Verdict.BETTER if forest.leaves[id_].trainings == 0 else Verdict.IMPROVED
        evaluation = Evaluation(60, 2.0, gain, gain, None, None, True, verdict, now)
        adapter = Adapter("b" * 64, "d" * 64, "c" * 64, "e" * 16, 8)
        outcomes[id_] = Outcome(evaluation, adapter, "")
    return conclude(forest, outcomes, now, RULES)


def _carriers(year: Year, leaf_of: dict[str, LeafId], day: int) -> dict[int, LeafId]:
    """The leaf that has most of each live domain's sessions, for domains of a leaf's size."""
    counts: dict[int, Counter[LeafId]] = defaultdict(Counter)
    sizes: Counter[int] = Counter()
    domains = year.domains(day)
    for session in year.known(day):
        domain = domains[year.truth[session]]
        if domain < 0:
            continue
        sizes[domain] += 1
        if session in leaf_of:
            counts[domain][leaf_of[session]] += 1
    return {
        domain: max(sorted(counts[domain]), key=lambda leaf: counts[domain][leaf])
        for domain, size in sizes.items()
        if size >= 1.5 * RULES.seed_sessions and counts[domain] and year.live(domain, day)
    }


class TruthWithErrors:
    """A clusterer that knows the topics, and is wrong on some days about some of them."""

    def __init__(self, year: Year, error: float = 0.1) -> None:
        self._year = year
        self._error = error

    def __call__(self, day: int, ids: list[str]) -> Clustering:
        rng = np.random.default_rng([self._year.seed, day])
        year = self._year
        settled = {topic: self._settled(at, day) for topic, at in year.domains(day).items()}
        labels = {s: settled[year.truth[s]] for s in ids}
        for session in ids:  # a tenth is noise, a fiftieth goes astray
            chance = rng.random()
            if chance < 0.1:
                labels[session] = -1
            elif chance < 0.12:
                labels[session] = int(rng.integers(len(year.topics)))
        live = sorted({label for label in labels.values() if label >= 0})
        if rng.random() < self._error:  # two near topics are one today
            one = int(rng.choice(live))
            centre = year.topics[one % 100].centre
            far = {x: float(year.topics[x % 100].centre @ centre) for x in live}
            other = max((x for x in live if x != one), key=far.__getitem__)
            labels = {s: one if label == other else label for s, label in labels.items()}
        if rng.random() < self._error:  # one is not found today
            gone = int(rng.choice(live))
            labels = {s: -1 if label == gone else label for s, label in labels.items()}
        if rng.random() < self._error:  # one is two today
            cut, axis = int(rng.choice(live)), _random(rng)
            labels = {
                s: 1000 if label == cut and year.vectors[s] @ axis > 0 else label
                for s, label in labels.items()
            }
        parts = rng.random() < 0.5  # of the largest domain: a level 3 that comes and goes
        return _clustering(labels, year, parts)

    def _settled(self, domain: int, day: int) -> int:
        """A split shows in the data some weeks after it began; older sessions stay as they were."""
        topic = self._year.topics[domain % 100] if domain >= 0 else None
        if topic and topic.heir_of is not None and day - topic.born < SHOWS_DAYS:
            return topic.heir_of
        return domain


def _clustering(labels: Labels, year: Year, parts: bool) -> Clustering:
    groups: dict[int, list[str]] = defaultdict(list)
    for session, label in labels.items():
        groups[label].append(session)
    noise = groups.pop(-1, [])
    for label in [x for x, group in groups.items() if len(group) < RULES.seed_sessions // 2]:
        noise += groups.pop(label)
    kept = sorted((sorted(group) for group in groups.values()), key=lambda group: group[0])
    domains = tuple(Cluster(2, tuple(group), None) for group in kept)
    fine: list[Cluster] = []
    if parts and kept:
        largest = max(range(len(kept)), key=lambda i: len(kept[i]))
        side = [s for s in kept[largest] if year.vectors[s][0] > 0]
        rest = [s for s in kept[largest] if year.vectors[s][0] <= 0]
        fine = [Cluster(3, tuple(part), largest) for part in (side, rest) if len(part) >= 10]
    return Clustering(((), domains, tuple(fine)), tuple(sorted(noise)))


def _random(rng: np.random.Generator) -> Vector:
    vector: Vector = unit(rng.normal(0, 1, (1, DIMENSIONS)).astype(np.float32))[0]
    return vector


def constancy(carried: dict[int, dict[int, LeafId]]) -> dict[int, tuple[float, int]]:
    """Of each domain: the share of its days on which it had its commonest leaf, and how many."""
    return {
        domain: (Counter(days.values()).most_common(1)[0][1] / len(days), len(days))
        for domain, days in carried.items()
    }


def ended(standing: Standing) -> Counter[Stage]:
    return Counter(leaf.stage for leaf in standing.forest)
