"""Long histories without vectors of sessions: traffic in, observations built directly, rules held.

A topic is where sessions come from, and each day's clusters are the topics, with the errors that a
clusterer makes: one is missed, one is cut in two, two are one. Topics begin, burst, sleep and end;
some come in near pairs, and go on being found as two after they have merged; some fall into parts.
What must hold is checked after every round, independently of the rules that are meant to hold it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leaves.descent import Change, Descent, Share
from leaves.lifecycle import (
    Born,
    Merged,
    Outcome,
    Rules,
    Split,
    Transition,
    apply_all,
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
    Kind,
    Leaf,
    LeafId,
    Stage,
    Vector,
    Verdict,
    unit,
)
from leaves.observe import Observations, Seen

START = 20_000  # the first day, in days since 1970
KEPT_DAYS = 240  # then the owner's retention deletes a session
BRANCHES = 8
DIMENSIONS = 24
PAIRED, PARTED = 0.1, 0.15  # of topics: near another one; fallen into parts
FINAL = (Stage.DISSOLVED, Stage.MERGED)
WEEK = 7
TENFOLD = 10.0
GAIN, WORSE = Interval(0.2, 0.15, 0.25), Interval(-0.1, -0.15, -0.05)
ADAPTER = Adapter("b" * 64, "d" * 64, "c" * 64, "e" * 16, 8)


class BrokenError(AssertionError):
    """Something that must always hold does not."""


@dataclass
class Traffic:
    """How many sessions of each topic come on each day, and where the topics are."""

    seed: int
    topics: int
    days: int
    counts: NDArray[np.int64] = field(init=False)  # (topics, days)
    before: NDArray[np.int64] = field(init=False)  # (topics, days + 1): all of earlier days
    centres: NDArray[np.float32] = field(init=False)
    partner: dict[int, int] = field(init=False)  # of a near pair
    parted: frozenset[int] = field(init=False)
    sound: NDArray[np.bool_] = field(init=False)  # whether its leaf can win

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n, days = self.topics, self.days
        rates = rng.lognormal(0.4, 0.8, (n, 1)) * np.exp(rng.normal(0, 0.002, (n, 1)) * range(days))
        begins = np.where(rng.random(n) < 0.5, 0, rng.integers(0, days, n))
        self.centres = unit(rng.normal(0, 1, (n, DIMENSIONS)).astype(np.float32))
        for topic in range(n):
            rates[topic, : begins[topic]] = 0
            for _ in range(int(rng.poisson(days / 180))):
                at, long = int(rng.integers(days)), int(rng.integers(3, 12))
                rates[topic, at : at + long] *= rng.uniform(10, 40)  # a burst
            if rng.random() < 0.3:
                at, long = int(rng.integers(days)), int(rng.integers(40, 150))
                rates[topic, at : at + long] = 0  # asleep
        pairs = rng.permutation(n)[: 2 * int(PAIRED * n / 2)].reshape(-1, 2).tolist()
        self.partner = {}
        for one, other in pairs:
            self.partner |= {one: other, other: one}
            near = self.centres[one] + rng.uniform(0.15, 0.45) * self.centres[other]
            self.centres[other] = unit(near[None])[0]
            rates[one] = np.minimum(rates[one], 1.5)
            rates[other] = np.minimum(rates[other], 1.5)
        rest = [topic for topic in range(n) if topic not in self.partner]
        self.parted = frozenset(rest[: int(PARTED * n)])
        for topic in self.parted:
            rates[topic] *= 3
        self.counts = rng.poisson(rates).astype(np.int64)
        self.before = np.concatenate(
            [np.zeros((n, 1), np.int64), np.cumsum(self.counts, axis=1)], axis=1
        )
        self.sound = rng.random(n) < 0.85

    def there(self, day: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each topic: the numbers of the first session that is kept and of the next to come."""
        return self.before[:, max(day + 1 - KEPT_DAYS, 0)], self.before[:, day + 1]


@dataclass
class Cluster:
    """One cluster of a day: some sessions of a topic, or of two."""

    topics: tuple[int, ...]
    members: tuple[str, ...]
    leaf: LeafId | None
    came: tuple[Share, ...] = ()
    changes: tuple[Change, ...] = (Change.CONTINUED,)
    part: int | None = None  # of its first topic
    own: int = 0  # of its members, those of that topic; they come first

    def __post_init__(self) -> None:
        self.own = len(self.members)


@dataclass
class Lives:
    """A forest that is led through the days of some traffic."""

    traffic: Traffic
    rules: Rules = field(default_factory=Rules)
    error: float = 0.01  # of topics: missed, cut or joined on a day
    checked_days: int = 30  # every so many days the place of every session is looked at
    forest: Forest = field(default_factory=lambda: Forest({}, 0, b"\1" * 32))
    tally: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # in the lifecycle alone, processor time

    def __post_init__(self) -> None:
        self._holder: dict[tuple[int, int | None], LeafId] = {}  # (topic, part) -> its leaf
        self._branch: dict[int, LeafId] = {}
        self._changed: dict[LeafId, int] = {}  # the day of a leaf's last change of stage
        self._sizes: dict[LeafId, dict[int, int]] = defaultdict(dict)
        self._number: dict[LeafId, int] = {}
        self._axis = unit(np.eye(DIMENSIONS, dtype=np.float32))
        self._ids = [
            tuple(f"{topic:04d}-{number:06d}" for number in range(int(last)))
            for topic, last in enumerate(self.traffic.before[:, -1])
        ]

    def run(self) -> None:
        for day in range(self.traffic.days):
            self.live(day)

    def live(self, day: int) -> None:
        """One round, and whether all is well after it."""
        rng = np.random.default_rng([self.traffic.seed, 77, day])
        now = Instant((START + day) * DAY_S + 80_000)
        seen, places = self._look(day, rng, now)
        was = self.forest
        begun = time.process_time()
        changes = decide(was, seen, now, self.rules)
        forest = apply_all(was, changes, now)
        wanted = due(forest, now, self.rules)
        self.seconds += time.process_time() - begun
        outcomes = {each.id: self._outcome(forest.leaves[each.id], rng, now) for each in wanted}
        begun = time.process_time()
        learned = conclude(forest, outcomes, now, self.rules)
        self.forest = apply_all(forest, learned, now)
        self.seconds += time.process_time() - begun
        self.tally.update(type(each).__name__ for each in [*changes, *learned])
        self._follow(changes, places)
        self._check_stages(was, day)
        self._check_lines(was)
        if day % self.checked_days == self.checked_days - 1:
            self._check_sessions(seen, changes, forest, day)

    def _look(
        self, day: int, rng: np.random.Generator, now: Instant
    ) -> tuple[Observations, list[Cluster | int]]:
        """The day's observations; beside them, what each of its clusters is made of."""
        clusters, kept, lost = self._clusters(day, rng)
        seen: list[Seen] = []
        places: list[Cluster | int] = []
        descents: list[Descent] = []
        branches: dict[int, list[str]] = defaultdict(list)
        for cluster in clusters:
            branches[cluster.topics[0] % BRANCHES].extend(cluster.members)
        at: dict[int, LeafId | int] = {}
        for branch, members in sorted(branches.items()):
            if len(members) < self.rules.branch_sessions:
                continue
            leaf = self._branch.get(branch)
            at[branch] = leaf if leaf is not None else len(seen)
            places.append(branch)
            whole = Cluster((), tuple(members), leaf)
            seen.append(self._seen(whole, None, 1, self._axis[branch], day, now))
        parts: list[tuple[Cluster, LeafId | int]] = []
        for cluster in clusters:
            index = len(seen)
            parent = at.get(cluster.topics[0] % BRANCHES)
            places.append(cluster)
            centre = self._centre(cluster, day)
            seen.append(self._seen(cluster, parent, 2, centre, day, now))
            descents.append(self._descent(cluster, index))
            if cluster.topics[0] in self.traffic.parted and len(cluster.topics) == 1:
                above = cluster.leaf if cluster.leaf is not None else index
                parts += [(part, above) for part in self._parts(cluster)]
        for part, above in parts:
            places.append(part)
            descents.append(self._descent(part, len(seen)))
            centre = self._centre(part, day)
            seen.append(self._seen(part, above, 3, centre, day, now))
        found = {each.leaf for each in seen}
        for leaf in sorted(lost - found):
            descents.append(Descent(leaf, None, (Change.VANISHED,), held=1))
        total = sum(len(cluster.members) for cluster in clusters)
        close = self._close()
        return (
            Observations(
                tuple(seen), True, total + len(kept), len(kept), close, tuple(descents), kept
            ),
            places,
        )

    def _clusters(
        self, day: int, rng: np.random.Generator
    ) -> tuple[list[Cluster], dict[str, LeafId], set[LeafId]]:
        """The day's domains; what stays with leaves that were not found; and those leaves."""
        first, last = self.traffic.there(day)
        members = {
            topic: self._ids[topic][first[topic] : last[topic]]
            for topic in range(self.traffic.topics)
            if last[topic] - first[topic] >= self.rules.seed_sessions
        }
        fate = dict(zip(members, rng.random(len(members)), strict=True))
        out: list[Cluster] = []
        kept: dict[str, LeafId] = {}
        lost: set[LeafId] = set()
        claimed: set[LeafId] = set()
        rest: list[int] = []
        for topic in sorted(members, key=lambda t: (-len(members[t]), t)):
            leaf = self._holder.get((topic, None))
            alive = leaf is not None and self.forest.leaves[leaf].stage.live
            if fate[topic] < self.error and alive:  # not found today
                assert leaf is not None
                lost.add(leaf)
                rest.append(topic)
                continue
            came: tuple[Share, ...] = ()
            if leaf is not None and leaf in claimed:  # the smaller part of a leaf of two
                came, leaf = (Share(leaf, len(members[topic])),), None
            elif leaf is not None:
                claimed.add(leaf)
            whole = members[topic]
            if self.error < fate[topic] < 2 * self.error and alive and leaf is not None:
                cut = len(whole) // 2  # two of one today
                out.append(Cluster((topic,), whole[cut:], leaf, changes=(Change.SPLIT,)))
                share = (Share(leaf, cut),)
                out.append(Cluster((topic,), whole[:cut], None, share, (Change.NEW,)))
                continue
            changes = (Change.CONTINUED,) if leaf is not None else (Change.NEW,)
            out.append(Cluster((topic,), whole, leaf, came, changes))
        taken = {leaf for leaf in lost if leaf in claimed}
        for topic in rest:  # in nobody's cluster, or in that of another leaf
            leaf = self._holder[topic, None]
            if leaf in taken:
                continue
            kept.update(dict.fromkeys(members[topic], leaf))
            host = out[topic % len(out)] if out else None
            if host is not None and host.leaf is not None and topic % 2:
                host.members = (*host.members, *members[topic])
                host.came = (*host.came, Share(leaf, len(members[topic])))
        return out, kept, lost - taken

    def _parts(self, cluster: Cluster) -> list[Cluster]:
        """The two parts of a domain: every third of its sessions is of the second."""
        topic = cluster.topics[0]
        out = []
        own = cluster.members[: cluster.own]
        for part, members in enumerate((_but_third(own), own[::3])):
            leaf = self._holder.get((topic, part))
            if len(members) >= self.rules.child_sessions and cluster.leaf is not None:
                out.append(Cluster((topic,), members, leaf, part=part))
        return out

    def _descent(self, cluster: Cluster, index: int) -> Descent:
        return Descent(
            cluster.leaf,
            index,
            cluster.changes,
            held=len(cluster.members),
            common=len(cluster.members),
            levels=(2, 2),
            went=(Share(index + 1, 1),) if Change.SPLIT in cluster.changes else (),
            came=cluster.came,
        )

    def _centre(self, cluster: Cluster, day: int) -> Vector:
        centre = self.traffic.centres[cluster.topics[0]]
        if cluster.part is not None:
            away = self._axis[(cluster.topics[0] + cluster.part) % DIMENSIONS]
            return unit((centre + (0.8 if cluster.part else -0.8) * away)[None])[0]
        return unit((centre + 0.05 * np.sin(day / 60) * self._axis[day // 60])[None])[0]

    def _seen(
        self,
        cluster: Cluster,
        parent: LeafId | int | None,
        level: int,
        centre: Vector,
        day: int,
        now: Instant,
    ) -> Seen:
        topic = cluster.topics[0] if cluster.topics else None
        month, week = self._since(cluster, day - 29), self._since(cluster, day - WEEK + 1)
        counts = self.traffic.counts[topic if topic is not None else 0]
        came = np.flatnonzero(counts[: day + 1])
        newest = int(came[-1]) if len(came) else day
        leaf = cluster.leaf
        asleep = leaf is not None and not self.forest.leaves[leaf].stage.live
        days: tuple[int, ...] = ()
        if asleep:  # asked only of what may be revived
            first = max(day + 1 - KEPT_DAYS, 0)
            of_topic = np.repeat(np.arange(first, day + 1), counts[first : day + 1]) + START
            days = tuple(of_topic[-cluster.own :].tolist())
        return Seen(
            leaf,
            parent,
            level,
            cluster.members,
            centre,
            Kind.SKILL if topic is None or topic % 4 else Kind.REASONING,
            month / 30,
            f"topic-{'branch' if topic is None else topic}",
            Instant(min(now, (START + newest + 1) * DAY_S - 1)),
            days,
            week=week,
        )

    def _since(self, cluster: Cluster, day: int) -> int:
        """How many of a cluster's own members are of this day or later."""
        if not cluster.topics:
            return 0
        topic = cluster.topics[0]
        first = f"{topic:04d}-{int(self.traffic.before[topic, max(day, 0)]):06d}"
        return cluster.own - bisect_left(cluster.members, first, hi=cluster.own)

    def _close(self) -> tuple[tuple[LeafId, LeafId, float], ...]:
        pairs = set()
        for one, other in self.traffic.partner.items():
            leaves = self._holder.get((one, None)), self._holder.get((other, None))
            if one > other or None in leaves or leaves[0] == leaves[1]:
                continue
            cosine = float(self.traffic.centres[one] @ self.traffic.centres[other])
            first, second = sorted(leaf for leaf in leaves if leaf is not None)
            if cosine > self.rules.merge_cosine:
                pairs.add((first, second, cosine))
        live = {leaf.id for leaf in self.forest.live()}
        return tuple(sorted(pair for pair in pairs if pair[0] in live and pair[1] in live))

    def _outcome(self, leaf: Leaf, rng: np.random.Generator, now: Instant) -> Outcome:
        topic = int(leaf.name.split("-")[1])
        sound = bool(self.traffic.sound[topic]) and rng.random() < 0.9
        if leaf.adapter is None:
            verdict = Verdict.BETTER if sound else Verdict.NOT_BETTER
        elif sound:
            verdict = Verdict.IMPROVED if rng.random() < 0.6 else Verdict.HOLDS
        else:
            verdict = Verdict.REGRESSED if rng.random() < 0.8 else Verdict.TOO_FEW
        worse = WORSE if verdict is Verdict.REGRESSED else None
        evaluation = Evaluation(60, 2.0, GAIN, GAIN, worse, None, sound, verdict, now)
        return Outcome(evaluation, ADAPTER, "")

    def _follow(self, changes: list[Transition], places: list[Cluster | int]) -> None:
        """Which leaf the sessions of each topic are known by from now on."""
        for change in changes:
            match change:
                case Born(leaf, at):
                    place = places[at]
                    if isinstance(place, int):
                        self._branch[place] = leaf.id
                    else:
                        self._holder[place.topics[0], None] = leaf.id
                case Split(children=children, clusters=clusters):
                    for at, child in zip(clusters, children, strict=True):
                        part = places[at]
                        assert isinstance(part, Cluster)
                        self._holder[part.topics[0], part.part] = child.id
                case Merged(parts, leaf):
                    for key, holder in self._holder.items():
                        if holder in parts:
                            self._holder[key] = leaf.id
                case _:
                    pass

    def _check_stages(self, was: Forest, day: int) -> None:
        """One stage each, none out of an end, none left within a week of steady traffic."""
        if self.forest.births != len(self.forest.leaves):
            raise BrokenError(
                f"seed {self.traffic.seed}: {self.forest.births} births, other leaves"
            )
        for id_, leaf in self.forest.leaves.items():
            sizes = self._sizes[id_]
            sizes[day] = leaf.sessions
            before = was.leaves.get(id_)
            if id_ != leaf.id:
                raise BrokenError(f"seed {self.traffic.seed}: {id_} holds the leaf {leaf.id}")
            if before is None or before.stage is leaf.stage:
                continue
            if before.stage in FINAL:
                raise BrokenError(f"seed {self.traffic.seed}: {id_} came back from {before.stage}")
            last = self._changed.get(id_)
            self._changed[id_] = day
            if last is None or day - last >= WEEK or self._moved(leaf, last, day):
                continue
            raise BrokenError(
                f"seed {self.traffic.seed}, day {day}: {leaf.name} was {before.stage} for "
                f"{day - last} days and is {leaf.stage}; {sizes.get(day - WEEK)} sessions a week "
                f"ago, {leaf.sessions} now"
            )

    def _moved(self, leaf: Leaf, last: int, day: int) -> bool:
        """True if traffic moved tenfold: sessions since a week ago, or a week's since `last`."""
        counts = self.traffic.counts[int(leaf.name.split("-")[1])]
        weeks = [int(counts[max(end - WEEK + 1, 0) : end + 1].sum()) for end in (last, day)]
        sizes = [self._sizes[leaf.id].get(day - WEEK, 0), leaf.sessions]
        return any(max(pair) >= TENFOLD * min(pair) for pair in (weeks, sizes))

    def _check_lines(self, was: Forest) -> None:
        """No leaf comes from itself, and none stands below itself."""
        leaves = self.forest.leaves
        for id_ in leaves.keys() - was.leaves.keys():
            for part in leaves[id_].lineage:
                if part not in was.leaves:
                    raise BrokenError(
                        f"seed {self.traffic.seed}: {id_} comes from what came with it"
                    )
        for leaf in leaves.values():
            above, steps = leaf.parent, 0
            while above is not None:
                steps += 1
                if steps > 3 or above not in leaves:
                    raise BrokenError(f"seed {self.traffic.seed}: nothing is above {leaf.id}")
                if leaf.stage.live and not leaves[above].stage.live:
                    raise BrokenError(
                        f"seed {self.traffic.seed}: {leaf.id} stands below an ended leaf"
                    )
                above = leaves[above].parent

    def _check_sessions(
        self, seen: Observations, changes: list[Transition], forest: Forest, day: int
    ) -> None:
        """Every session has one place, and every leaf that was found counts just its own."""
        members = assignment(seen, changes, forest)
        there = {session for each in seen.seen for session in each.members} | seen.kept.keys()
        if not members.keys() <= there:
            raise BrokenError(f"seed {self.traffic.seed}, day {day}: sessions came from nowhere")
        held = Counter(members.values())
        for leaf in held:
            if not forest.leaves[leaf].stage.live:
                raise BrokenError(
                    f"seed {self.traffic.seed}, day {day}: an ended leaf has sessions"
                )
        for leaf in [each.leaf for each in seen.seen if each.leaf and each.level > 1]:
            now_is = forest.leaves[leaf]
            if not now_is.stage.live:
                continue
            below = [each.id for each in forest if each.parent == leaf]
            own = held[leaf] + sum(held[each] for each in below)
            if own != now_is.sessions:
                raise BrokenError(
                    f"seed {self.traffic.seed}, day {day}: {now_is.name} says {now_is.sessions} "
                    f"sessions and has {own}"
                )


def _but_third(members: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(member for at, member in enumerate(members) if at % 3)
