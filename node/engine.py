"""One round: embed, cluster, detect, train, evaluate, deploy.

Each phase is journaled in the forest's store before the next begins. A round that was killed is
taken up where it stopped: embedding goes on with the sessions that lack a vector, a clustering
that was finished is read back, a training resumes from its checkpoint, a verdict is never asked for
twice. The round's `now` is fixed when it begins, so that a resumed round decides the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from leaves.embeddings import EmbeddingStore
from leaves.lifecycle import Drifted, Missed, Rules, TrainingDue, Transition, conclude, decide, due
from leaves.lifecycle import ids_of as ids_of_transition
from leaves.model import DAY_S, Forest, Instant, LeafId, Stage
from leaves.names import name_clusters
from leaves.observe import Observations, observe
from leaves.ports import Clusterer, Clustering, ClusterSizes, Report, silent
from leaves.store import ForestStore, RoundRow
from router.ports import ENCODED_CHARS, Encoder

from .capture.corpus import Session
from .classroom import Classroom
from .home import write_atomic

log = logging.getLogger(__name__)

PHASES = ("embed", "cluster", "detect", "train", "deploy", "done")


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that happened, for the owner: a line to read, and its figures for a program."""

    event: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)


Tell = Callable[[Told], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """What a round works with. The classroom trains and judges; None if `train` is not allowed."""

    folder: Path  # GROOVE_HOME/rounds: clusterings of open rounds
    sessions: Callable[[], list[Session]]  # closed sessions of the corpus
    embeddings: EmbeddingStore
    store: ForestStore
    encoder: Callable[[], Encoder]  # opened only if something has to be embedded
    clusterer: Clusterer
    classroom: Classroom | None
    deploy: Callable[[Forest, Mapping[str, LeafId]], int]  # a new routing table; its entries


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round would do, without doing it."""

    to_embed: int
    sessions: int
    transitions: tuple[tuple[str, str, str], ...]  # (kind, leaf's name, reason)
    trainings: tuple[tuple[str, str, str], ...]  # (leaf's name, purpose, reason)
    note: str = ""


class Round:
    """Carries one round through its phases, or takes up the one that was not finished."""

    def __init__(self, tools: Tools, rules: Rules, tell: Tell, report: Report = silent) -> None:
        self._tools = tools
        self._rules = rules
        self._tell = tell
        self._report = report
        self._sessions = {s.session_id: s for s in tools.sessions()}

    def run(self, now: Instant) -> RoundRow:
        """Carry the round out and return its journal row."""
        store = self._tools.store
        row = store.open_round()
        if row is not None:
            self._say("resumed", f"round {row.id} goes on from {row.phase}", round=row.id)
        else:
            row = store.begin_round(now, PHASES[0], {"outcomes": {}})
        steps = {
            "embed": self._embed,
            "cluster": self._cluster,
            "detect": self._detect,
            "train": self._train,
            "deploy": self._deploy,
        }
        while row.phase != "done":
            state = steps[row.phase](row)
            following = PHASES[PHASES.index(row.phase) + 1]
            store.advance_round(row.id, following, state)
            row = RoundRow(row.id, row.started, following, None, state)
        store.finish_round(row.id, now)
        self._clustering_file(row).unlink(missing_ok=True)
        return row

    def plan(self, now: Instant) -> Plan:
        """What `run` would do with the sessions that are embedded already; changes nothing."""
        tools = self._tools
        waiting = len(self._sessions.keys() - set(tools.embeddings.ids()))
        forest = tools.store.forest()
        seen = self._observe(forest, self._discover(), now)
        if seen is None:
            return Plan(waiting, len(self._sessions), (), (), self._too_few())
        transitions = decide(forest, seen, now, self._rules)
        after = forest
        changes = []
        for transition in transitions:
            after = _apply(after, transition, now)
            leaf = after.leaves[ids_of_transition(transition)[0]]
            if not isinstance(transition, Drifted):
                changes.append((_kind(transition), leaf.name, transition.reason))
        trainings = tuple(
            (after.leaves[d.id].name, d.purpose.value, d.reason)
            for d in due(after, now, self._rules)
        )
        return Plan(waiting, len(self._sessions), tuple(changes), trainings)

    def _embed(self, row: RoundRow) -> dict[str, Any]:
        known = set(self._tools.embeddings.ids())
        fresh = sorted(self._sessions.keys() - known)
        if fresh:
            encoder = self._tools.encoder()
            for start in range(0, len(fresh), 512):  # what is embedded survives a kill
                batch = [self._sessions[id_] for id_ in fresh[start : start + 512]]
                vectors = encoder.encode([s.prompt[:ENCODED_CHARS] for s in batch])
                days = [int(s.opened) // DAY_S for s in batch]
                self._tools.embeddings.append([s.session_id for s in batch], days, vectors)
                self._report(_progress("embed", start + len(batch), len(fresh)))
        self._say("embedded", f"{len(fresh)} sessions embedded", sessions=len(fresh))
        return row.state

    def _cluster(self, row: RoundRow) -> dict[str, Any]:
        clustering = self._discover()
        blob = msgspec.json.encode(clustering)
        write_atomic(self._clustering_file(row), blob)
        return row.state

    def _detect(self, row: RoundRow) -> dict[str, Any]:
        store = self._tools.store
        forest = store.forest()
        blob = self._clustering_file(row).read_bytes()
        clustering = msgspec.json.decode(blob, type=Clustering | None)
        seen = self._observe(forest, clustering, row.started)
        if seen is None:
            self._say("waiting", self._too_few(), sessions=len(self._sessions))
            return {**row.state, "due": []}
        names = [s.name for s in seen.seen if s.level == 2]
        self._say(
            "clustered",
            f"{len(names)} domains in {seen.sessions} sessions, "
            f"{100 * seen.noise / max(seen.sessions, 1):.0f} % noise: {', '.join(names)}",
            domains=names,
            sessions=seen.sessions,
            noise=seen.noise,
        )
        transitions = decide(forest, seen, row.started, self._rules)
        births = forest.births
        state = dict(row.state)

        def also() -> None:
            store.assign(_assignment(seen, transitions, forest))
            state["due"] = []
            store.advance_round(row.id, "detect", state)

        if state.get("detected") != births:  # a kill after the commit must not give birth twice
            state["detected"] = births + sum(_kind(t) == "born" for t in transitions)
            after = store.carry_out(forest, transitions, row.started, row.id, also)
        else:
            after, transitions = forest, []
        self._tell_changes(after, transitions)
        wanted = due(after, row.started, self._rules) if self._tools.classroom else []
        return {**state, "due": [msgspec.to_builtins(d) for d in wanted]}

    def _train(self, row: RoundRow) -> dict[str, Any]:
        state = row.state
        if self._tools.classroom is None:
            self._say("untrained", "nothing is trained: the scope `train` is not granted")
            return state
        wanted = msgspec.convert(state["due"], list[TrainingDue])
        for training in wanted:
            if training.id not in state["outcomes"]:
                state = self._train_one(row, state, training)
        return state

    def _train_one(
        self, row: RoundRow, state: dict[str, Any], training: TrainingDue
    ) -> dict[str, Any]:
        store, classroom = self._tools.store, self._tools.classroom
        assert classroom is not None
        forest = store.forest()
        leaf = forest.leaves[training.id]
        self._say("training", f"{leaf.name}: {training.reason}", leaf=leaf.id, name=leaf.name)
        lesson = classroom.teach(leaf, forest, self._sessions, row, self._report)
        state = {**state, "outcomes": {**state["outcomes"], leaf.id: lesson.summary()}}
        if lesson.outcome is None:
            self._say("not trained", f"{leaf.name}: {lesson.note}", leaf=leaf.id)
            store.advance_round(row.id, row.phase, state)
            return state
        transitions = conclude(forest, {leaf.id: lesson.outcome}, row.started, self._rules)

        def also() -> None:
            lesson.record(store, row.id)
            store.advance_round(row.id, row.phase, state)

        after = store.carry_out(forest, transitions, row.started, row.id, also)
        classroom.clean(leaf.id)
        evaluation = lesson.outcome.evaluation
        self._say(
            "judged",
            f"{leaf.name}: {evaluation.verdict}. {lesson.describe()}",
            leaf=leaf.id,
            name=leaf.name,
            evaluation=msgspec.to_builtins(evaluation),
        )
        self._tell_changes(after, transitions, before=forest)
        return state

    def _deploy(self, row: RoundRow) -> dict[str, Any]:
        entries = self._tools.deploy(self._tools.store.forest(), self._tools.store.assignment())
        self._say("deployed", f"routing table with {entries} leaves", leaves=entries)
        return row.state

    def _discover(self) -> Clustering | None:
        """None below the size of a first discovery: the starters serve until then."""
        embeddings = self._tools.embeddings
        ids = embeddings.ids()
        if len(ids) < self._rules.first_discovery_sessions and not self._tools.store.revision():
            return None
        sizes = ClusterSizes(
            self._rules.branch_sessions, self._rules.seed_sessions, self._rules.child_sessions
        )
        return self._tools.clusterer.cluster(ids, embeddings.matrix(), sizes, self._report)

    def _observe(
        self, forest: Forest, clustering: Clustering | None, now: Instant
    ) -> Observations | None:
        if clustering is None:
            return None
        embeddings = self._tools.embeddings
        domains = {id_: s.domain for id_, s in self._sessions.items()}
        prompts = {id_: s.prompt for id_, s in self._sessions.items()}
        return observe(
            forest,
            clustering,
            embeddings.vectors(),
            embeddings.days(),
            domains,
            name_clusters(clustering, prompts),
            now,
        )

    def _too_few(self) -> str:
        wanted = self._rules.first_discovery_sessions
        return f"{len(self._sessions)} of {wanted} sessions for a first discovery"

    def _clustering_file(self, row: RoundRow) -> Path:
        return self._tools.folder / f"{row.id}.json"

    def _tell_changes(
        self, forest: Forest, transitions: list[Transition], before: Forest | None = None
    ) -> None:
        for transition in transitions:
            leaf = forest.leaves[ids_of_transition(transition)[0]]
            was = before.leaves.get(leaf.id) if before else None
            if isinstance(transition, (Drifted, Missed)) or (was and was.stage is leaf.stage):
                continue
            arrow = f"{was.stage if was else 'none'} -> {leaf.stage}"
            if leaf.stage is not Stage.MATURE and was and leaf.stage is was.stage:
                continue
            log.info(
                "leaf changed leaf=%s to=%s sessions=%d reason=%s",
                leaf.id, leaf.stage, leaf.sessions, transition.reason,
            )  # fmt: skip
            self._say(
                "stage", f"{leaf.name}: {arrow} ({transition.reason})",
                leaf=leaf.id, name=leaf.name, stage=leaf.stage.value,
            )  # fmt: skip

    def _say(self, event: str, text: str, **data: Any) -> None:
        self._tell(Told(event, text, data))
