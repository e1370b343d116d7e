"""Seeded streams of sessions: what the owners of a world ask about, night by night.

A topic is a direction. Some topics come in near pairs, which are one domain for who asks little of
both; some fall into two parts on a certain night; some sleep for weeks and come back; some end.
Each owner is interested in a few, so that what one node learns serves others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

import numpy as np

from leaves.model import Vector, unit

from .fakes import direction, seeded

DIMENSIONS = 384
PAIRED = 0.2  # how far the second of a near pair is from the first: at a cosine of 0.98
FIRST_OF_PAIR = 45  # sessions of each in the first night: of one that came later no leaf would grow
PARTED = 0.7  # how far a part is from the middle of its topic: two are at a cosine of 0.67
GOOD_WITH_LEAF, GOOD_WITHOUT = 0.9, 0.6  # how often an answer is taken


@dataclass(frozen=True, slots=True)
class Topic:
    """What some sessions are about, and when. Nights count from 0."""

    name: str
    near: str | None = None  # the topic that it is nearly the same as
    parts_from: int | None = None
    sleeps: tuple[int, int] | None = None  # from the first night to before the second
    ends: int | None = None

    def asked(self, night: int) -> bool:
        """True if anybody asks about it in that night."""
        asleep = self.sleeps is not None and self.sleeps[0] <= night < self.sleeps[1]
        return not asleep and (self.ends is None or night < self.ends)


@dataclass(frozen=True, slots=True)
class Visit:
    """One session to come: a made-up ask that names its topic, part and number."""

    session: str
    prompt: str
    completion: str
    luck: float  # in [0, 1): below how often answers are taken, this one is


@dataclass
class Traffic:
    """All sessions of a world. The same seed gives the same, asked in any order."""

    seed: int
    nights: int
    topics: int = 8
    interests: int = 4  # of one owner
    per_night: int = 20  # sessions about one topic of one owner, in the mean

    all: dict[str, Topic] = field(init=False)

    def __post_init__(self) -> None:
        third = max(3, self.nights // 3)
        made = []
        for number in range(self.topics):
            name = f"topic{number}"
            match number % 8:
                case 2:
                    made.append(Topic(name, sleeps=(third, self.nights - third)))
                case 3:
                    made.append(Topic(name, parts_from=third // 2))
                case 5:
                    made.append(Topic(name, near=f"topic{number - 1}"))
                case 6:
                    made.append(Topic(name, ends=third))
                case _:
                    made.append(Topic(name))
        self.all = {topic.name: topic for topic in made}

    def interests_of(self, node: int) -> list[str]:
        """The topics of one owner; neighbours share some."""
        names = list(self.all)
        first = node * max(1, self.interests // 2)
        chosen = [names[(first + at) % len(names)] for at in range(self.interests)]
        return list(dict.fromkeys(chosen))

    def night(self, node: int, night: int) -> Iterator[Visit]:
        """The sessions of one owner in one night."""
        for name in self.interests_of(node):
            topic = self.all[name]
            if not topic.asked(night):
                continue
            rng = Random(f"{self.seed}/{node}/{name}/{night}")
            count = rng.randint(self.per_night // 2, self.per_night * 3 // 2)
            if name in self._paired:  # two leaves from the first night on, that stay small
                count = FIRST_OF_PAIR if night == 0 else count // 4
            for number in range(count):
                parted = topic.parts_from is not None and night >= topic.parts_from
                part = "ab"[number % 2] if parted else "x"
                session = f"{name}-{part}-{node}-{night}-{number}"
                words = " ".join(f"word{seeded(self.seed, session, at) % 4000}" for at in range(12))
                yield Visit(
                    session,
                    f"{name} part{part} question {node} {night} {number} {words[:60]}",
                    f"answer {words[60:]} about {name} number {number} of {night} for {node}",
                    rng.random(),
                )

    @cached_property
    def _paired(self) -> frozenset[str]:
        seconds = [topic for topic in self.all.values() if topic.near is not None]
        return frozenset(name for topic in seconds for name in (topic.name, topic.near or ""))

    @cached_property
    def _directions(self) -> dict[tuple[str, str], Vector]:
        found = {}
        for topic in self.all.values():
            middle = direction(topic.near or topic.name, DIMENSIONS)
            if topic.near is not None:
                middle = middle + PAIRED * direction(topic.name, DIMENSIONS)
            for part in "xab":
                aside = 0.0 if part == "x" else PARTED
                away = aside * direction(f"{topic.name}/{part}", DIMENSIONS)
                found[topic.name, part] = unit((middle + away)[None])[0]
        return found

    def centre(self, text: str) -> Vector:
        """Where a text is: of one that names no topic of the world, by its first word alone."""
        words = text.split(maxsplit=2)
        name = words[0] if words else ""
        part = words[1].removeprefix("part") if len(words) > 1 else "x"
        found = self._directions.get((name, part))
        return found if found is not None else np.asarray(direction(name, DIMENSIONS))

    def label(self, session: str) -> tuple[str, str]:
        """The topic and the part that a session's id tells; no part is told before there are."""
        name, part, *_ = session.split("-")
        return name, "" if part == "x" else part


def outcome(visit: Visit, *, by_leaf: bool) -> str:
    """What becomes of an answer: a leaf's is taken more often."""
    return "accepted" if visit.luck < (GOOD_WITH_LEAF if by_leaf else GOOD_WITHOUT) else "rejected"
