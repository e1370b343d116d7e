"""Long lives: what must hold after every round, in seeded histories and in hostile ones."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support_lives import ADAPTER, FINAL, GAIN, Lives, Traffic

from leaves.incremental import observe_placed
from leaves.lifecycle import (
    Answer,
    Approvals,
    ChangeKey,
    Outcome,
    Proposed,
    Rules,
    TrainingDue,
    Transition,
    Withdrawn,
    apply_all,
    assignment,
    conclude,
    decide,
    due,
    key_of,
    size_of,
)
from leaves.model import DAY_S, Evaluation, Forest, Instant, LeafId, Stage, Vector, Verdict, unit
from leaves.observe import Observations, observe
from leaves.ports import Cluster, Clustering
from leaves.rules import Approve

ROWS = {
    "Archived",
    "Born",
    "Dissolved",
    "Drifted",
    "Merged",
    "Missed",
    "Promoted",
    "Revived",
    "Split",
    "Trained",
}


@pytest.mark.parametrize("seed", range(2, 6))
def test_a_year_of_traffic_breaks_nothing(seed: int) -> None:
    lives = Lives(Traffic(seed, topics=30, days=365), error=0.03)
    lives.run()
    assert lives.forest.births == len(lives.forest.leaves) > 20, f"seed {seed}"


def test_a_history_passes_every_row_of_the_table() -> None:
    lives = Lives(Traffic(1, topics=30, days=365), error=0.03)
    lives.run()
    assert lives.tally.keys() >= ROWS, lives.tally


SMALL = Rules(
    branch_sessions=10_000,
    seed_sessions=20,
    child_sessions=10,
    first_discovery_sessions=10,
    skill_sessions=40,
    reasoning_sessions=40,
    sprout_retrain_sessions=10,
    mature_sessions=40,
    mature_retrain_sessions=60,
    merge_sessions=90,
)
TOPICS = 4
AXES = unit(np.eye(8, dtype=np.float32))
CENTRES: list[Vector] = [
    AXES[0],
    unit((AXES[0] + 0.3 * AXES[1])[None])[0],  # 0.958 to the first: the two may merge
    AXES[2],
    AXES[3],
]
FATES = ("found", "found", "missed", "cut", "joined", "parts")
VERDICTS = [
    (Verdict.BETTER, True),
    (Verdict.NOT_BETTER, False),
    (Verdict.TOO_FEW, False),
    (Verdict.IMPROVED, True),
    (Verdict.HOLDS, True),
    (Verdict.HOLDS, False),
    (Verdict.REGRESSED, True),
]


class LeafLives(RuleBasedStateMachine):
    """Sessions come and go, looks err, trainings end anyhow, the owner says anything."""

    def __init__(self) -> None:
        super().__init__()
        self.forest = Forest({}, 0, b"\1" * 32)
        self.now = Instant(20_000 * DAY_S + 1)
        self.topic: dict[str, int] = {}
        self.days: dict[str, int] = {}
        self.leaf_of: dict[str, LeafId] = {}
        self.wanted: list[TrainingDue] = []
        self.proposed: dict[ChangeKey, Answer] = {}
        self.approvals: Approvals = {}
        self.stages: dict[LeafId, list[Stage]] = {}
        self.rules = SMALL

    @initialize(
        approve=st.sampled_from(["auto", "ask"]),
        sizes=st.lists(st.sampled_from([0, 25, 40, 60]), min_size=TOPICS, max_size=TOPICS),
    )
    def begin(self, approve: Approve, sizes: list[int]) -> None:
        self.rules = msgspec.structs.replace(SMALL, approve=approve)
        for topic, sessions in enumerate(sizes):
            self.grow(topic, sessions)

    @rule(topic=st.integers(0, TOPICS - 1), sessions=st.integers(5, 80))
    def grow(self, topic: int, sessions: int) -> None:
        for _ in range(sessions):
            session = f"{len(self.days):06d}"
            self.topic[session], self.days[session] = topic, self.now // DAY_S

    @rule(days=st.integers(1, 8), fates=st.lists(st.sampled_from(("found", "parts")), min_size=4))
    def live(self, days: int, fates: list[str]) -> None:
        """Some days on which all goes well: sessions come, leaves are found, trainings win."""
        for _ in range(days):
            self.wait(1)
            for topic in range(2, TOPICS):
                self.grow(topic, 12)
            self.look(fates[:TOPICS])
            if self.wanted:
                self.teach([(Verdict.IMPROVED, True)])

    @rule(days=st.integers(1, 40))
    def wait(self, days: int) -> None:
        self.now = Instant(self.now + days * DAY_S)

    @precondition(lambda self: len(self.days) >= SMALL.seed_sessions)
    @rule(fates=st.lists(st.sampled_from(FATES), min_size=TOPICS, max_size=TOPICS))
    def look(self, fates: list[str]) -> None:
        """A full look; each topic is found, missed, cut, joined to the next, or in parts."""
        clustering = self._clustering(fates)
        vectors = {session: self._vector(session) for session in self.days}
        names = [[f"{c.level}-{c.members[0]}" for c in level] for level in clustering.levels]
        seen = observe(
            self.forest, clustering, vectors, self.days, {}, names, self.now, leaf_of=self.leaf_of
        )
        self._decide(seen)

    @precondition(lambda self: any(leaf.level > 1 for leaf in self.forest.live()))
    @rule(share=st.sampled_from([2, 3]))
    def place(self, share: int) -> None:
        """An incremental look: some of the new sessions are given to leaves."""
        live = [leaf.id for leaf in self.forest.live()]
        fresh = sorted(self.days.keys() - self.leaf_of.keys())[::share]
        placed = {session: live[at % len(live)] for at, session in enumerate(fresh)}
        self._decide(observe_placed(self.forest, self.leaf_of, placed, self.days, self.now))

    @precondition(lambda self: self.wanted)
    @rule(said=st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=4))
    def teach(self, said: list[tuple[Verdict, bool]]) -> None:
        outcomes = {}
        for at, training in enumerate(self.wanted):
            verdict, won = said[at % len(said)]
            evaluation = Evaluation(60, 2.0, GAIN, GAIN, None, None, won, verdict, self.now)
            outcomes[training.id] = Outcome(evaluation, ADAPTER, "")
        self.wanted = []
        self._apply(conclude(self.forest, outcomes, self.now, self.rules))

    @precondition(lambda self: self.proposed)
    @rule(yes=st.booleans())
    def answer(self, yes: bool) -> None:
        for key, asked in self.proposed.items():
            self.approvals = {**self.approvals, key: Answer(yes, asked.sessions, asked.parts)}
        self.proposed = {}

    @precondition(lambda self: any(leaf.adapter for leaf in self.forest.live()))
    @rule(ended=st.booleans())
    def withdraw(self, ended: bool) -> None:
        leaf = next(leaf for leaf in self.forest.live() if leaf.adapter)
        self.wanted = [each for each in self.wanted if each.id != leaf.id]
        self._apply([Withdrawn(leaf.id, ended, "its texts are deleted")])

    @invariant()
    def stages_are_one_and_ends_are_final(self) -> None:
        assert self.forest.births == len(self.forest.leaves)
        for id_, leaf in self.forest.leaves.items():
            passed = self.stages.setdefault(id_, [leaf.stage])
            if passed[-1] is not leaf.stage:
                gone = passed[-1] is Stage.DISSOLVED
                assert not gone and (passed[-1] not in FINAL or leaf.stage is Stage.DISSOLVED)
                passed.append(leaf.stage)

    @invariant()
    def lineage_and_parents_are_acyclic(self) -> None:
        order = {id_: at for at, id_ in enumerate(self.forest.leaves)}  # as they were born
        for leaf in self.forest:
            assert all(order[part] < order[leaf.id] for part in leaf.lineage)
            above, passed = leaf.parent, {leaf.id}
            while above is not None:
                assert above not in passed
                passed.add(above)
                above = self.forest.leaves[above].parent

    @invariant()
    def trained_leaves_and_no_others_can_have_won(self) -> None:
        for leaf in self.forest:
            assert leaf.wins <= leaf.trainings
            assert leaf.attempts >= 0
            if leaf.stage is Stage.MATURE:
                assert leaf.adapter is not None and leaf.wins >= SMALL.mature_wins

    def _decide(self, seen: Observations) -> None:
        changes = decide(self.forest, seen, self.now, self.rules, self.approvals)
        again = decide(self.forest, seen, self.now, self.rules, self.approvals)
        assert [repr(change) for change in changes] == [repr(change) for change in again]
        self._apply(changes)
        self.proposed = {
            key_of(each.change): Answer(True, *size_of(each.change))
            for each in changes
            if isinstance(each, Proposed)
        }
        self.leaf_of = assignment(seen, changes, self.forest)
        assert self.leaf_of.keys() <= self.days.keys()
        assert all(self.forest.leaves[leaf].stage.live for leaf in self.leaf_of.values())
        self.wanted = due(self.forest, self.now, self.rules, ADAPTER.chassis)
        assert len({each.id for each in self.wanted}) == len(self.wanted)

    def _apply(self, changes: list[Transition]) -> None:
        assert all(change.reason for change in changes)
        self.forest = apply_all(self.forest, changes, self.now)

    def _vector(self, session: str) -> Vector:
        away = AXES[4 + int(session) % 2]  # two parts in each topic
        vector: Vector = unit((CENTRES[self.topic[session]] + 0.8 * away)[None])[0]
        return vector

    def _clustering(self, fates: list[str]) -> Clustering:
        groups: list[list[str]] = [[] for _ in range(TOPICS)]
        for session, topic in self.topic.items():
            groups[topic].append(session)
        noise: list[str] = []
        domains: list[list[str]] = []
        parted: list[int] = []
        for topic, fate in enumerate(fates):
            group = groups[topic]
            if fate == "missed":
                noise += group
            elif fate == "joined" and topic + 1 < TOPICS:
                groups[topic + 1] = sorted(group + groups[topic + 1])
            elif fate == "cut":
                domains += [group[::2], group[1::2]]
            else:
                parted += [len(domains)] if fate == "parts" else []
                domains.append(group)
        fine = []
        kept: list[tuple[str, ...]] = []
        for at, group in enumerate(domains):
            if len(group) < SMALL.child_sessions:
                noise += group
                continue
            parts = [tuple(s for s in group if int(s) % 2 == side) for side in (0, 1)]
            if at in parted and min(map(len, parts)) >= SMALL.child_sessions:
                fine += [Cluster(3, part, len(kept)) for part in parts]
            kept.append(tuple(sorted(group)))
        whole = tuple(Cluster(2, members, None) for members in kept)
        return Clustering(((), whole, tuple(fine)), tuple(sorted(noise)))


LeafLives.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLeafLives = LeafLives.TestCase
