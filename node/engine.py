"""One round: embed, cluster, detect, train, evaluate, deploy.

Each phase is journaled in the forest's store, in one transaction with what it changed. A round
that was killed is taken up where it stopped: embedding goes on with the sessions that lack a
vector, a finished clustering is read back, a training resumes from its checkpoint, a verdict is
never asked for twice. The round's `now` is fixed when it begins, so a resumed round decides the
same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from leaves.descent import named
from leaves.embeddings import EmbeddingStore
from leaves.lifecycle import (
    Drifted,
    Merged,
    Missed,
    Proposed,
    Purpose,
    Rules,
    Split,
    TrainingDue,
    Transition,
    apply,
    assignment,
    conclude,
    decide,
    due,
    ids_of,
    key_of,
)
from leaves.model import DAY_S, Forest, Instant
from leaves.names import name_clusters
from leaves.observe import Observations, observe
from leaves.ports import Clusterer, Progress, Report, silent
from leaves.scale import Incremental
from leaves.store import ForestStore, RoundRow
from leaves.transitions import ChangeKey
from router.ports import Encoder

from .capture.sessions import Session
from .classroom import Classroom, TrainAll
from .home import write_atomic
from .planning import MEASURED_ROUNDS, Expected, Plan, expect, with_step
from .regrouping import Last, Outcome, Placement, Regrouping, how_sure, read_outcome, told
from .show import evaluation_line
from .tables import Deployed
from .told import Tell, Told

log = logging.getLogger(__name__)

_WORDS = {
    Purpose.FIRST: "first training",
    Purpose.RETRAIN: "retraining",
    Purpose.REVIVAL: "training after its revival",
    Purpose.CHASSIS: "training on another chassis",
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
    classroom: Callable[[Rules], Classroom] | None  # by a round's; None: nothing may be trained
    deploy: Callable[[], Deployed]  # a new routing table, unless it does worse
    now: Callable[[], Instant]  # for the end of the round alone; its start is given to `run`
    untrained: str = "the scope `train` is not granted"  # why, without a classroom
    chassis: Callable[[], str | None] = lambda: None  # tag of the one in use; None: not known
    train_all: TrainAll | None = None  # side by side; None: one leaf after the other
    seconds: Callable[[], float] = lambda: 0.0  # of a clock that never jumps: for later plans


def proposed(transitions: Iterable[Transition]) -> list[ChangeKey]:
    """What a look came to that waits for the owner's word."""
    return [key_of(each.change) for each in transitions if isinstance(each, Proposed)]


class Round:
    """Carries one round through its phases, or takes up the one that was not finished."""

    def __init__(self, tools: Tools, rules: Rules, tell: Tell, report: Report = silent) -> None:
        self._tools = tools
        self._rules = rules
        self._tell = tell
        self._report = report
        self._taken_up = False  # the next training goes on from where another process was
        self._sessions = {session.session_id: session for session in tools.sessions()}

    def run(self, now: Instant) -> RoundRow:
        """Carry the round out and return its journal row."""
        store = self._tools.store
        row = store.open_round()
        if row is None:
            row = self._begin(now)
        else:
            self._resume(row)
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
        # First: once the round is finished, nobody looks for a file that names its sessions.
        self._clustering_file(row).unlink(missing_ok=True)
        store.finish_round(row.id, max(now, self._tools.now()))
        return row

    def _begin(self, now: Instant) -> RoundRow:
        store = self._tools.store
        state = {
            "due": [],
            "done": {},
            "rules": msgspec.to_builtins(self._rules),
            "sessions": len(self._sessions),
            **self._last_look().as_state(),
        }
        row = store.begin_round(now, _PHASES[0], state, self._rules)
        for change in store.rule_changes(row.id):
            self._say(
                "rule changed",
                f"rules.{change.name} is {change.new!r} now, and was {change.old!r}",
                rule=change.name,
                old=change.old,
                new=change.new,
            )
        return row

    def _resume(self, row: RoundRow) -> None:
        """Go on by the rules of its beginning: the tree must not depend on where it was killed."""
        self._say("resumed", f"round {row.id} goes on from {row.phase!r}", round=row.id)
        self._taken_up = row.phase == "train"
        try:
            begun = msgspec.convert(row.state["rules"], Rules)
        except (KeyError, msgspec.ValidationError):  # of another version, which had others
            return
        if begun != self._rules:
            text = "it goes on by the rules that it began with; those of now begin with the next"
            self._say("rules wait", text, round=row.id)
        self._rules = begun

    def plan(self, now: Instant) -> Plan:
        """What `run` would do with the sessions that are embedded already. Changes nothing."""
        waiting = len(self._sessions.keys() - set(self._tools.embeddings.ids()))
        note = f"{waiting} sessions are not embedded yet and not looked at" if waiting else ""
        forest = self._tools.store.forest()
        looked = self._regrouping.look(self._last_look(), now)
        if looked is None:
            return self._first_plan(waiting)
        how = told(looked[0])
        said = self._tools.store.proposals.approvals()
        seen = self._observe(forest, looked[1], now)
        transitions = decide(forest, seen, now, self._rules, said)
        changes = []
        for transition in transitions:
            forest = apply(forest, transition, now)
            if isinstance(transition, Proposed):
                name = forest.leaves[ids_of(transition)[0]].name
                kind, _ = key_of(transition.change)
                changes.append((f"ask ({kind})", name, named(transition.reason, forest)))
            elif not isinstance(transition, Drifted):
                name = forest.leaves[ids_of(transition)[0]].name
                why = named(transition.reason, forest)
                changes.append((type(transition).__name__.lower(), name, why))
        fresh = self._tools.store.fresh(assignment(seen, transitions, forest))
        trainings = tuple(
            (f"train ({wanted.purpose})", forest.leaves[wanted.id].name, wanted.reason)
            for wanted in due(forest, now, self._rules, self._chassis(forest), fresh)
        )
        count = len(self._sessions)
        look = "place" if isinstance(looked[0], Incremental) else "cluster"
        units = {"embed": waiting, look: count, "train": len(trainings), "deploy": 1}
        return Plan(waiting, count, tuple(changes), trainings, note, how, self._expected(units))

    def _first_plan(self, waiting: int) -> Plan:
        """Before a first discovery nobody knows how many leaves will come, nor when."""
        count, units, note = len(self._sessions), {"embed": waiting, "deploy": 1}, self._too_few()
        if count >= self._rules.first_discovery_sessions:
            units["cluster"] = count
            note = f"{waiting:,} sessions are embedded first, and then clustered"
            if self._tools.classroom is not None:
                (each,) = self._expected({"train": 1})
                note += f"; after that leaves may be trained, about {each.minutes:.0f} min each"
        return Plan(waiting, count, (), (), note, expected=self._expected(units))

    def _chassis(self, forest: Forest) -> str | None:
        """Only what may be trained is set aside for a chassis that it is not of."""
        if self._tools.classroom is None or all(leaf.adapter is None for leaf in forest):
            return None  # so that a first plan does not wait for a chassis to be made ready
        return self._tools.chassis()

    def _expected(self, units: dict[str, int]) -> tuple[Expected, ...]:
        rows = self._tools.store.finished_rounds(MEASURED_ROUNDS)
        return expect(units, [row.state for row in rows])

    def _embed(self, row: RoundRow) -> None:
        embeddings, began = self._tools.embeddings, self._tools.seconds()
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
        state = self._with_step(row.state, "embed", began, len(fresh))
        self._tools.store.advance_round(row.id, "cluster", state)

    def _cluster(self, row: RoundRow) -> None:
        if self._sessions.keys() - set(self._tools.embeddings.ids()):
            # Taken up after the owner moved a damaged store away: nearly all would be missed.
            self._tools.store.advance_round(row.id, "embed", row.state)
            return
        began = self._tools.seconds()
        looked = self._regrouping.look(Last.of(row.state), row.started)
        if looked is None:
            self._say("too few", self._too_few(), sessions=len(self._sessions))
            self._tools.store.advance_round(row.id, "deploy", row.state)
            return
        how, outcome, last = looked
        incremental = isinstance(how, Incremental)
        self._say("looked", told(how), full=not incremental)
        write_atomic(self._clustering_file(row), msgspec.json.encode(outcome))
        step = "place" if incremental else "cluster"
        state = self._with_step(row.state, step, began, len(self._sessions))
        state = {**state, **last.as_state(), "incremental": incremental}
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
        said = store.proposals.approvals()
        transitions = decide(forest, seen, row.started, self._rules, said)
        chassis = self._chassis(forest)

        def also(after: Forest) -> None:
            if seen.full:
                store.proposals.end_but(proposed(transitions), row.started)
            store.assign(assignment(seen, transitions, after))
            wanted = due(after, row.started, self._rules, chassis, store.fresh())
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
            classroom = self._tools.classroom(self._rules)
            waiting = [training for training in wanted if training.id not in row.state["done"]]
            self._train_ahead(row, classroom, waiting)
            for training in waiting:
                row = self._teach(row, classroom, training)
            classroom.drop_unrecorded(row.state["done"])  # of a lesson killed before it was cleaned
        self._tools.store.advance_round(row.id, "deploy", row.state)

    def _train_ahead(
        self, row: RoundRow, classroom: Classroom, waiting: Sequence[TrainingDue]
    ) -> None:
        """Have all leaves trained side by side, where there is something to do that."""
        train_all = self._tools.train_all
        if train_all is None or len(waiting) < 2:
            return
        self._say("training", f"{len(waiting)} leaves side by side", leaves=len(waiting))
        forest = self._tools.store.forest()
        leaves = [forest.leaves[training.id] for training in waiting]
        sessions, report = self._sessions, self._report
        classroom.ahead(leaves, forest, sessions, row.id, row.started, train_all, report)

    def _teach(self, row: RoundRow, classroom: Classroom, training: TrainingDue) -> RoundRow:
        """Train and judge one leaf; return the journal's row with what came of it."""
        store, began = self._tools.store, self._tools.seconds()
        forest = store.forest()
        leaf = forest.leaves[training.id]

        def begins() -> None:
            self._say("training", f"{leaf.name}: {_WORDS[training.purpose]}, {training.reason}")

        lesson = classroom.teach(
            leaf, forest, self._sessions, row.id, row.started, self._report, begins
        )
        forest = store.forest()  # as it is now: the owner may have renamed a leaf meanwhile
        outcomes = {leaf.id: lesson.outcome} if lesson.outcome else {}
        transitions = conclude(forest, outcomes, row.started, self._rules)

        state = {**row.state, "done": {**row.state["done"], leaf.id: lesson.note}}
        known = leaf.id in self._waited()
        if lesson.waits:
            state["waits"] = [*row.state.get("waits", []), leaf.id]
        if lesson.outcome and not self._taken_up:
            state = self._with_step(state, "train", began, 1)
        self._taken_up = False

        def also(after: Forest) -> None:
            classroom.record(lesson, row.id)
            if lesson.outcome:
                store.saw(leaf.id, row.id)
            store.advance_round(row.id, "train", state)

        after = store.carry_out(forest, transitions, row.started, row.id, also)
        classroom.clean(lesson)
        if lesson.waits and known:
            log.info("leaf not trained, as in the last round leaf=%s", leaf.id)
        elif lesson.outcome is None:
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
        return replace(row, state=state)

    def _waited(self) -> list[str]:
        """The leaves that had too little to be judged by in the last round: it was said then."""
        last = self._tools.store.last_round()
        return list(last.state.get("waits", [])) if last is not None else []

    def _deploy(self, row: RoundRow) -> None:
        began = self._tools.seconds()
        deployed = self._tools.deploy()
        entries = deployed.entries
        self._say("deployed", f"routing table with {entries} entries", entries=entries)
        state = self._with_step(row.state, "deploy", began, 1)
        state = {**state, "deploy": deployed.figures}
        self._tools.store.advance_round(row.id, "done", state)

    def _with_step(
        self, state: dict[str, Any], step: str, began: float, units: int
    ) -> dict[str, Any]:
        return with_step(state, step, self._tools.seconds() - began, units)

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
            if isinstance(transition, Proposed):
                self._tell_proposal(transition, after)
                continue
            if isinstance(transition, (Split, Merged)):
                self._tell_reshaped(transition, after)
                before = apply(before, transition, after.leaves[ids_of(transition)[0]].stage_since)
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

    def _tell_reshaped(self, change: Split | Merged, forest: Forest) -> None:
        kind, ids = key_of(change)
        born = change.children if isinstance(change, Split) else (change.leaf,)
        names = " and ".join(forest.leaves[id_].name for id_ in ids)
        into = " and ".join(forest.leaves[leaf.id].name for leaf in born)
        self._say(
            kind,
            f"{names} -> {into} ({named(change.reason, forest)})",
            leaves=list(ids),
            born=[leaf.id for leaf in born],
        )

    def _tell_proposal(self, proposed: Proposed, forest: Forest) -> None:
        kind, ids = key_of(proposed.change)
        names = " and ".join(forest.leaves[id_].name for id_ in ids)
        self._say(
            "proposed",
            f"{kind} of {names} {named(proposed.reason, forest)}; `groove-node approve` shows it",
            kind=kind,
            leaves=list(ids),
        )

    def _say(self, event: str, text: str, **data: Any) -> None:
        self._tell(Told(event, text, data))
