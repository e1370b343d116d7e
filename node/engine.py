"""One round: embed, cluster, detect, train, evaluate, deploy.

Each phase is journaled in the forest's store, in one transaction with what it changed. A round
that was killed is taken up where it stopped: embedding goes on with the sessions that lack a
vector, a finished clustering is read back, a training resumes from its checkpoint, a verdict is
never asked for twice. The round's `now` is fixed when it begins, so a resumed round decides the
same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from leaves.descent import named
from leaves.embeddings import EmbeddingStore
from leaves.lifecycle import (
    Drifted,
    Missed,
    Purpose,
    Rules,
    TrainingDue,
    Transition,
    apply,
    assignment,
    conclude,
    decide,
    due,
    ids_of,
)
from leaves.model import DAY_S, Forest, Instant
from leaves.names import name_clusters
from leaves.observe import Observations, observe
from leaves.ports import Clusterer, Progress, Report, silent
from leaves.scale import Incremental
from leaves.store import ForestStore, RoundRow
from router.ports import Encoder

from .capture.sessions import Session
from .classroom import Classroom
from .home import write_atomic
from .regrouping import Last, Outcome, Placement, Regrouping, how_sure, read_outcome, told
from .show import evaluation_line
from .tables import Deployed
from .told import Tell, Told

log = logging.getLogger(__name__)

_WORDS = {
    Purpose.FIRST: "first training",
    Purpose.RETRAIN: "retraining",
    Purpose.REVIVAL: "training after its revival",
}
_BATCH = 512  # sessions embedded between two commits: about 2 s of work to lose
_PHASES = ("embed", "cluster", "detect", "train", "deploy", "done")


@dataclass(frozen=True, slots=True)
class Tools:
    """What a round works with."""

    folder: Path  # where the clustering of an open round is kept
    sessions: Callable[[], list[Session]]  # closed sessions of the corpus
    embeddings: EmbeddingStore
    store: ForestStore
    encoder: Callable[[], Encoder]  # opened only if something has to be embedded
    clusterer: Clusterer
    classroom: Callable[[], Classroom] | None  # None: nothing may be trained
    deploy: Callable[[], Deployed]  # a new routing table, unless it does worse
    now: Callable[[], Instant]  # for the end of the round alone; its start is given to `run`
    untrained: str = "the scope `train` is not granted"  # why, without a classroom


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round would do: rows of (what, leaf's name, why)."""

    to_embed: int
    sessions: int
    transitions: tuple[tuple[str, str, str], ...]
    trainings: tuple[tuple[str, str, str], ...]
    note: str
    mode: str = ""  # whether all sessions were looked at or the new ones alone, and why


class Round:
    """Carries one round through its phases, or takes up the one that was not finished."""

    def __init__(self, tools: Tools, rules: Rules, tell: Tell, report: Report = silent) -> None:
        self._tools = tools
        self._rules = rules
        self._tell = tell
        self._report = report
        self._sessions = {session.session_id: session for session in tools.sessions()}

    def run(self, now: Instant) -> RoundRow:
        """Carry the round out and return its journal row."""
        store = self._tools.store
        row = store.open_round()
        if row is None:
            state = {"due": [], "done": {}, **self._last_look().as_state()}
            row = store.begin_round(now, _PHASES[0], state)
        else:
            self._say("resumed", f"round {row.id} goes on from {row.phase!r}", round=row.id)
        phases = {
            "embed": self._embed,
            "cluster": self._cluster,
            "detect": self._detect,
            "train": self._train,
            "deploy": self._deploy,
        }
        while row.phase != "done":
            phases[row.phase](row)
            advanced = store.open_round()
            assert advanced is not None
            row = advanced
        store.finish_round(row.id, max(now, self._tools.now()))
        self._clustering_file(row).unlink(missing_ok=True)
        return row

    def plan(self, now: Instant) -> Plan:
        """What `run` would do with the sessions that are embedded already. Changes nothing."""
        waiting = len(self._sessions.keys() - set(self._tools.embeddings.ids()))
        note = f"{waiting} sessions are not embedded yet and not looked at" if waiting else ""
        forest = self._tools.store.forest()
        looked = self._regrouping.look(self._last_look(), now)
        if looked is None:
            return Plan(waiting, len(self._sessions), (), (), self._too_few())
        how = told(looked[0])
        transitions = decide(forest, self._observe(forest, looked[1], now), now, self._rules)
        changes = []
        for transition in transitions:
            forest = apply(forest, transition, now)
            if not isinstance(transition, Drifted):
                name = forest.leaves[ids_of(transition)[0]].name
                why = named(transition.reason, forest)
                changes.append((type(transition).__name__.lower(), name, why))
        trainings = tuple(
            (f"train ({wanted.purpose})", forest.leaves[wanted.id].name, wanted.reason)
            for wanted in due(forest, now, self._rules)
        )
        return Plan(waiting, len(self._sessions), tuple(changes), trainings, note, how)

    def _embed(self, row: RoundRow) -> None:
        embeddings = self._tools.embeddings
        fresh = sorted(self._sessions.keys() - set(embeddings.ids()))
        encoder = self._tools.encoder() if fresh else None
        self._report(Progress("embed", 0, len(fresh)))
        for start in range(0, len(fresh), _BATCH):
            assert encoder is not None
            batch = [self._sessions[id_] for id_ in fresh[start : start + _BATCH]]
            vectors = encoder.encode([session.prompt for session in batch])
            days = [int(session.opened) // DAY_S for session in batch]
            embeddings.append([session.session_id for session in batch], days, vectors)
            self._report(Progress("embed", start + len(batch), len(fresh)))
        self._say("embedded", f"{len(fresh):,} sessions embedded", sessions=len(fresh))
        self._tools.store.advance_round(row.id, "cluster", row.state)

    def _cluster(self, row: RoundRow) -> None:
        if self._sessions.keys() - set(self._tools.embeddings.ids()):
            # Taken up after the owner moved a damaged store away: nearly all would be missed.
            self._tools.store.advance_round(row.id, "embed", row.state)
            return
        looked = self._regrouping.look(Last.of(row.state), row.started)
        if looked is None:
            self._say("too few", self._too_few(), sessions=len(self._sessions))
            self._tools.store.advance_round(row.id, "deploy", row.state)
            return
        how, outcome, last = looked
        incremental = isinstance(how, Incremental)
        self._say("looked", told(how), full=not incremental)
        write_atomic(self._clustering_file(row), msgspec.json.encode(outcome))
        state = {**row.state, **last.as_state(), "incremental": incremental}
        self._tools.store.advance_round(row.id, "detect", state)

    def _detect(self, row: RoundRow) -> None:
        store = self._tools.store
        forest = store.forest()
        outcome = self._kept(row, forest)
        if outcome is None:
            # Without `looked`: the next look would take the sessions of this one for known.
            state = {key: value for key, value in row.state.items() if key != "looked"}
            store.advance_round(row.id, "cluster", state)
            return
        seen = self._observe(forest, outcome, row.started)
        self._tell_look(seen, outcome)
        transitions = decide(forest, seen, row.started, self._rules)

        def also(after: Forest) -> None:
            store.assign(assignment(seen, transitions, after))
            wanted = due(after, row.started, self._rules)
            state = {**row.state, "due": msgspec.to_builtins(wanted)}
            store.advance_round(row.id, "train", state)

        after = store.carry_out(forest, transitions, row.started, row.id, also)
        self._tell_changes(forest, after, transitions)

    def _kept(self, row: RoundRow, forest: Forest) -> Outcome | None:
        """What the open round found out; None if its file is gone or damaged."""
        known = self._tools.embeddings.ids()
        incremental = bool(row.state.get("incremental"))
        try:
            data = self._clustering_file(row).read_bytes()
            return read_outcome(data, incremental, known, {leaf.id for leaf in forest})
        except (OSError, ValueError, RecursionError) as problem:  # whose words may quote the file
            why = type(problem).__name__
        log.warning("clustering of an open round cannot be read round=%d why=%s", row.id, why)
        self._say(
            "clustered anew",
            "the clustering of the open round could not be read and is made anew",
            round=row.id,
        )
        return None

    def _train(self, row: RoundRow) -> None:
        wanted = msgspec.convert(row.state["due"], list[TrainingDue])
        if self._tools.classroom is None:
            if wanted:
                self._say("untrained", f"nothing is trained: {self._tools.untrained}")
        else:
            classroom = self._tools.classroom()
            done = dict(row.state["done"])
            for training in wanted:
                if training.id not in done:
                    done[training.id] = self._teach(row, classroom, training, dict(done))
        store = self._tools.store
        store.advance_round(row.id, "deploy", row.state)

    def _teach(
        self, row: RoundRow, classroom: Classroom, training: TrainingDue, done: dict[str, str]
    ) -> str:
        """Train and judge one leaf; return what came of it."""
        store = self._tools.store
        forest = store.forest()
        leaf = forest.leaves[training.id]
        self._say("training", f"{leaf.name}: {_WORDS[training.purpose]}, {training.reason}")
        lesson = classroom.teach(leaf, forest, self._sessions, row.id, row.started, self._report)
        forest = store.forest()  # as it is now: the owner may have renamed a leaf meanwhile
        outcomes = {leaf.id: lesson.outcome} if lesson.outcome else {}
        transitions = conclude(forest, outcomes, row.started, self._rules)

        def also(after: Forest) -> None:
            classroom.record(lesson, row.id)
            state = {**row.state, "done": {**done, leaf.id: lesson.note}}
            store.advance_round(row.id, "train", state)

        after = store.carry_out(forest, transitions, row.started, row.id, also)
        classroom.clean(lesson)
        if lesson.outcome is None:
            self._say("not trained", f"{leaf.name}: {lesson.note}", leaf=leaf.id)
        else:
            evaluation = lesson.outcome.evaluation
            self._say(
                "judged",
                f"{leaf.name}: {evaluation.verdict}; {evaluation_line(evaluation)}; {lesson.note}",
                leaf=leaf.id,
                name=leaf.name,
                evaluation=msgspec.to_builtins(evaluation),
            )
        self._tell_changes(forest, after, transitions)
        return lesson.note

    def _deploy(self, row: RoundRow) -> None:
        deployed = self._tools.deploy()
        entries = deployed.entries
        self._say("deployed", f"routing table with {entries} entries", entries=entries)
        state = {**row.state, "deploy": deployed.figures}
        self._tools.store.advance_round(row.id, "done", state)

    @property
    def _regrouping(self) -> Regrouping:
        tools = self._tools
        return Regrouping(tools.embeddings, tools.store, tools.clusterer, self._rules, self._report)

    def _last_look(self) -> Last:
        before = self._tools.store.last_round()
        return Last.of(before.state) if before is not None else Last()

    def _observe(self, forest: Forest, found: Outcome, now: Instant) -> Observations:
        embeddings = self._tools.embeddings
        if isinstance(found, Placement):
            return self._regrouping.observe_placed(forest, found, now)
        return observe(
            forest,
            found,
            embeddings.vectors(),
            embeddings.days(),
            {id_: session.domain for id_, session in self._sessions.items()},
            name_clusters(found, {id_: s.prompt for id_, s in self._sessions.items()}),
            now,
            leaf_of=self._tools.store.assignment(),
        )

    def _too_few(self) -> str:
        wanted = self._rules.first_discovery_sessions
        return f"{len(self._sessions):,} of {wanted:,} sessions for a first discovery"

    def _clustering_file(self, row: RoundRow) -> Path:
        return self._tools.folder / f"{row.id}.json"

    def _tell_look(self, seen: Observations, outcome: Outcome) -> None:
        if isinstance(outcome, Placement):
            self._say("placed", outcome.told(), sessions=outcome.fresh, placed=len(outcome.placed))
            return
        domains = [cluster for cluster in seen.seen if cluster.level == 2]
        found = ", ".join(f"{c.name} ({c.sessions:,})" for c in domains)
        noise = 100 * seen.noise / max(seen.sessions, 1)
        self._say(
            "clustered",
            f"{len(domains)} domains in {seen.sessions:,} sessions, {noise:.0f} % noise: {found}",
            domains={cluster.name: cluster.sessions for cluster in domains},
            sessions=seen.sessions,
            noise=seen.noise,
        )
        if outcome.findings is not None:
            self._say(
                "how sure",
                how_sure(outcome.findings),
                **msgspec.to_builtins(outcome.findings),
            )

    def _tell_changes(self, before: Forest, after: Forest, transitions: list[Transition]) -> None:
        """Tell the changes of stage; drift and misses are in the history."""
        for transition in transitions:
            if isinstance(transition, (Drifted, Missed)):
                continue
            leaf = after.leaves[ids_of(transition)[0]]
            was = before.leaves.get(leaf.id)
            before = apply(before, transition, leaf.stage_since)
            now_is = before.leaves[leaf.id].stage
            if was is not None and was.stage is now_is:
                continue
            if leaf.level == 1:  # for browsing, so it has no stage worth telling
                self._say("branch", f"{leaf.name}: a branch of {leaf.sessions:,} sessions")
                continue
            log.info("leaf changed leaf=%s stage=%s sessions=%d", leaf.id, now_is, leaf.sessions)
            self._say(
                "stage",
                f"{leaf.name}: {was.stage if was else 'new'} -> {now_is} "
                f"({named(transition.reason, after)})",
                leaf=leaf.id,
                name=leaf.name,
                stage=now_is.value,
            )

    def _say(self, event: str, text: str, **data: Any) -> None:
        self._tell(Told(event, text, data))
