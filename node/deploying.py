"""Putting a routing table in force: built from the leaves of now, compared first, swapped whole.

A round builds the table anew and replays recent sessions through it and through the one in force;
what does worse is not taken. Between rounds a table only follows what may be routed to: a leaf of
a peer that was judged, one that was retracted, a name, an adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from leaves.embeddings import Snapshot
from leaves.lifecycle import Rules
from leaves.model import Forest, Instant, LeafId, Stage, Vector
from leaves.ports import Report, silent
from router.calibrate import calibrate_tree
from router.neighbours import Neighbours
from router.table import Entry, Table, unhubbed
from router.weights import weigh

from . import heard, replay, routing, set_aside, transition
from .errors import MisuseError, OwnerError
from .foreign import Known
from .home import private_dir
from .replay import Case, Comparison
from .tables import Deployed, Kept, Kind, Note, RoutingError, Starters
from .told import Tell, Told
from .transition import Coverage

if TYPE_CHECKING:
    from .app import App
    from .feedback import Vote

log = logging.getLogger(__name__)

VOTERS_MAX = 50_000  # own sessions that vote, the last ones: asked in half a millisecond, 80 MB
changed = msgspec.structs.replace


@dataclass(frozen=True, slots=True)
class Measured:
    """What takes long, and is measured before this process's turn to replace the table."""

    embedded: Snapshot
    leaf_of: Mapping[str, LeafId]
    votes: Mapping[str, Vote]  # by session
    tally: dict[LeafId, tuple[int, int]]  # of them, by leaf: well, badly
    gates: Mapping[LeafId, float]
    weights: Mapping[LeafId, float]
    mean: Vector | None  # of all vectors; None if there are none


@dataclass(frozen=True, slots=True)
class Ground:
    """What a round's table is built from."""

    now: Instant
    rules: Rules
    enc8: bytes
    dimensions: int
    forest: Forest
    found: list[Entry]  # own leaves and those of peers, with gates, weights and hubness
    measured: Measured


def anew(app: App, tell: Tell, report: Report = silent) -> Deployed:
    """Build the table anew and put it in force, unless it does worse or another one is pinned."""
    measured = _measured(app)
    _save_neighbours(app, measured, report)
    with app.tables.turn():
        ground = _ground(app, measured)
        current = _comparable(app, ground.enc8, tell)
        table, note, told = _table_of_now(app, ground, current)
        old = table
        if current is not None:
            still = routing.rightful(current.table, ground.forest, ground.found, admit=False)
            old = _built(ground, still)
        compared = _compared(ground, old, table)
        note = changed(
            note,
            accuracy=round(compared.accuracy_new, 4) if compared.members else None,
            replayed=compared.sessions,
            replay=compared.figures(),
        )
        if current is not None and (current.note.pinned or compared.worse):
            told = _keep(app, current, old, table, note, compared)
            kept = old
        else:
            for each in told:  # before it is done: once more after a crash, but never not at all
                tell(each)
            told = []
            app.tables.put(table, note)
            kept = table
    for each in told:
        tell(each)
    figures = {"kept": kept is not table, "starters": note.starters.value, **compared.figures()}
    return Deployed(len(kept), figures)


def table_of(app: App, forest: Forest, embedded: Snapshot, leaf_of: Mapping[str, LeafId]) -> Table:
    """The table that a round would build of a forest; without starters, and not put in force."""
    live = forest.live()
    gates = calibrate_tree(
        embedded.ids,
        embedded.matrix,
        leaf_of,
        {leaf.id: leaf.level for leaf in live},
        {leaf.id: leaf.parent for leaf in live},
    )
    found = [
        entry if entry.origin else replace(entry, gate=gates.get(entry.leaf, entry.gate))
        for entry in _entries(app, forest)
    ]
    mean = embedded.matrix.mean(axis=0, dtype=np.float64).astype(np.float32)
    return _built(app, unhubbed(found, mean))


def follow(app: App) -> int:
    """Have the table in force follow what may be routed to. Loads no model."""
    with app.tables.turn():
        return _follow(app, app.tables.sound(), None)


def recount(app: App) -> None:
    """As `follow`, if there is a table: a crash may have kept it from following, and sessions
    that were deleted have taken their votes with them."""
    from . import feedback  # capture is not loaded where nothing is captured

    if app.tables.sound() is None:
        return  # and the corpus is not read
    votes = feedback.votes(app.corpus.files())
    with app.tables.turn():
        current = app.tables.sound()
        if current is not None:
            _follow(app, current, votes)


def begin(app: App) -> Kept:
    """Put the starters in force if nobody has looked for them yet; returns what is in force.

    Raises RoutingError if the table is damaged: only a round knows the gates of leaves. If another
    chassis is in use than when the table was made, or peers have not been heard for too long, the
    table first follows that.
    """
    if set_aside.changed(app):
        _set_aside(app)
    if heard.silent(app.home, app.now()):
        _leave_peers_out(app)
    current = app.tables.current()
    if current is not None and not _wants_starters(app, current):
        return current
    starters = _written(app)  # outside of the turn, for it loads a model
    with app.tables.turn():
        current = app.tables.current()
        if current is not None and not _wants_starters(app, current):
            return current
        entries = current.table.entries if current else ()
        leaves = routing.beside_starters(entry for entry in entries if not entry.system)
        since = f"beside table {current.number}, {current.note.why}" if current else ""
        note = Note(
            at=app.now(),
            kind=Kind.BEGUN,
            why=f"starters serve {since or 'from the first minute'}",
            leaves=len(routing.leaves_of(leaves)),
            starters=Starters.SERVING,
        )
        table = _built(app, [*leaves, *starters])
        return Kept(app.tables.put(table, note), note, table)


def _set_aside(app: App) -> None:
    """Have the table follow a change of chassis; noted after it, so that a crash does it again."""
    if app.tables.current() is not None:
        follow(app)
    with suppress(OwnerError):  # a chassis that cannot be opened is looked for again
        set_aside.remember(app)


def _leave_peers_out(app: App) -> None:
    """No node may have run for weeks, and a command routes by the table that was left."""
    current = app.tables.current()
    if current is not None and any(entry.origin for entry in current.table.entries):
        follow(app)


def restore(app: App, number: int, *, pin: bool) -> Kept:
    """Put one of the kept tables in force again, as far as its leaves may still be routed to."""
    with app.tables.turn():
        wanted = app.tables.read(number)
        if wanted.table.enc8 != app.enc8:
            raise MisuseError(
                f"table {number} is of another encoder; the table in force is as it was"
            )
        forest = app.forests.forest()
        found = _entries(app, forest)
        table = _built(app, routing.rightful(wanted.table, forest, found, admit=False))
        note = changed(
            wanted.note,
            at=app.now(),
            kind=Kind.RESTORED,
            why=f"the owner restored table {number}",
            leaves=_leaves(table),
            pinned=pin,
            held=True,
            held_because=f"you restored table {number}",
        )
        number = app.tables.put(table, note)
        if pin and not app.tables.read(number).note.pinned:
            app.tables.amend(number, note)
        return Kept(number, note, table)


def pin(app: App, pinned: bool) -> Kept:
    """Have rounds leave the table in force where it is, or not."""
    with app.tables.turn():
        current = app.tables.current()
        if current is None:
            raise MisuseError("there is no routing table yet; `groove-node route` begins one")
        note = changed(current.note, pinned=pinned)
        app.tables.amend(current.number, note)
        return replace(current, note=note)


def votes_of(app: App, leaf: LeafId) -> dict[str, Any]:
    """What became of the sessions that a leaf answered, and the weight that it has for it."""
    current = app.tables.sound()
    if current is None:
        return {}
    well, badly = current.note.votes.get(leaf, (0, 0))
    weights = [entry.weight for entry in current.table.entries if entry.leaf == leaf]
    weight = round(weights[0], 3) if weights else 0.0
    return {"feedback": {"accepted": well, "rejected": badly, "weight": weight}}


def _measured(app: App) -> Measured:
    from . import feedback

    embedded, assigned = app.embeddings.snapshot(), app.forests.assignment()
    votes = feedback.votes(app.corpus.files())
    live = app.forests.forest().live()
    gates = calibrate_tree(
        embedded.ids,
        embedded.matrix,
        assigned,
        {leaf.id: leaf.level for leaf in live},
        {leaf.id: leaf.parent for leaf in live},
    )
    mean = embedded.matrix.mean(axis=0, dtype=np.float64) if len(embedded.ids) else None
    return Measured(
        embedded,
        assigned,
        votes,
        feedback.tallied(votes.values()),
        gates,
        weigh(feedback.in_order(votes.values())),
        None if mean is None else mean.astype(np.float32),
    )


def _ground(app: App, measured: Measured) -> Ground:
    """Whose turn it is reads the leaves: one that was retracted meanwhile is not put back."""
    forest = app.forests.forest()
    found = [
        replace(
            entry,
            gate=entry.gate if entry.origin else measured.gates.get(entry.leaf, entry.gate),
            weight=measured.weights.get(entry.leaf, 0.0),
        )
        for entry in _entries(app, forest)
    ]
    if measured.mean is not None:
        found = unhubbed(found, measured.mean)
    return Ground(app.now(), app.config.rules, app.enc8, app.dimensions, forest, found, measured)


def _comparable(app: App, enc8: bytes, tell: Tell) -> Kept | None:
    """The table in force, if anything of it can be compared or kept."""
    try:
        current = app.tables.current()
    except RoutingError as problem:
        tell(Told("table damaged", f"{problem.what}; a new one is built, from leaves as they are"))
        return None
    return current if current is not None and current.table.enc8 == enc8 else None


def _save_neighbours(app: App, measured: Measured, report: Report) -> None:
    """Have the last sessions ready to vote. They are of use to any table: a vote for a leaf that
    it lacks is none."""
    rows = np.sort(transition.last_rows(measured.embedded, VOTERS_MAX))
    ids = [measured.embedded.ids[row] for row in rows]
    members = {id_: measured.leaf_of[id_] for id_ in ids if id_ in measured.leaf_of}
    leaf_of = {id_: leaf for id_, leaf in members.items() if leaf in measured.gates}
    path = app.neighbours_path
    if not leaf_of:
        path.unlink(missing_ok=True)
        return
    private_dir(path.parent)
    Neighbours.build(ids, measured.embedded.matrix[rows], leaf_of, report, enc8=app.enc8).save(path)


def _table_of_now(app: App, ground: Ground, current: Kept | None) -> tuple[Table, Note, list[Told]]:
    """The table that the leaves of now make, with starters or without, and what to tell of it."""
    grown = bool(routing.leaves_of(ground.found))
    was = current.note.starters if current else Starters.UNSET
    note = Note(
        at=ground.now,
        kind=Kind.ROUND,
        why="",
        leaves=len(routing.leaves_of(ground.found)),
        votes=ground.measured.tally,
    )
    leaves = f"{note.leaves:,} leaves"
    if was is Starters.GONE and routing.serving(ground.found):
        note = changed(note, why=f"a round: {leaves}", starters=Starters.GONE)
        return _built(ground, ground.found), note, []
    starters = (routing.starters_of(current.table) if current else []) or _written(app)
    if not grown:
        note = changed(note, why="a round: starters alone", starters=Starters.SERVING)
        return _built(ground, [*ground.found, *starters]), note, []
    coverage = _coverage(ground, starters)
    leave = transition.leave(coverage, ground.rules)
    note = changed(
        note,
        why=f"a round: {leaves}, {'starters left' if leave else 'starters below them'}",
        starters=Starters.GONE if leave else Starters.SERVING,
        transition=msgspec.to_builtins(coverage),
    )
    entries = ground.found
    if not leave:
        entries = [*routing.beside_starters(ground.found), *starters]
    return _built(ground, entries), note, _told(coverage, current, ground.rules, leave)


def _told(coverage: Coverage, current: Kept | None, rules: Rules, leave: bool) -> list[Told]:
    figures = msgspec.to_builtins(coverage)
    report = (
        f"{coverage.told(rules)}; starters alone would take "
        f"{coverage.by_starters / max(coverage.sessions, 1):.0%}, and agree on "
        f"{coverage.agreement:.0%} of what both take"
    )
    before = current.note.transition if current is not None else {}
    if not leave and _json(figures) == _json(before):
        return []  # told by the round that made the table in force
    told = [Told("transition", report, figures)]
    if line := coverage.replaced_line():
        told.append(Told("replaced", f"starters are replaced: {line}"))
    if leave:
        text = "the starters leave the routing table"
        if current is not None:
            text += f"; `groove-node restore --table {current.number}` brings them back"
        told.append(Told("starters left", text, {"share": round(coverage.share, 4)}))
    return told


def _json(figures: dict[str, Any]) -> bytes:
    return msgspec.json.encode(figures, order="sorted")


def _coverage(ground: Ground, starters: Sequence[Entry]) -> Coverage:
    embedded = ground.measured.embedded
    last = embedded.matrix[transition.last_rows(embedded, ground.rules.starters_sessions)]
    return transition.covered(ground.enc8, ground.found, starters, last)


def _compared(ground: Ground, old: Table, new: Table) -> Comparison:
    """Replay the last sessions that are in a leaf, or of which it is known how they went.

    By centroids alone: the sessions that vote are the same for both tables, and each would vote
    for where it is itself.
    """
    known = {leaf.id for leaf in ground.forest if leaf.stage.live or leaf.stage is Stage.MERGED}
    known |= {entry.leaf for entry in ground.found}
    live = {leaf.id for leaf in ground.forest.live() if leaf.level > 1}
    measured, embedded = ground.measured, ground.measured.embedded
    cases: list[Case] = []
    rows: list[int] = []
    for row in reversed(transition.last_rows(embedded, len(embedded.ids))):
        if len(cases) == ground.rules.replay_sessions:
            break
        session = embedded.ids[row]
        leaf, vote = measured.leaf_of.get(session), measured.votes.get(session)
        inside = leaf if leaf in live else None
        voted = vote if vote is not None and vote.leaf in known else None
        if inside is not None or voted is not None:
            rows.append(int(row))
            cases.append(
                Case(session, inside, voted.leaf, voted.well) if voted else Case(session, inside)
            )
    vectors = embedded.matrix[np.array(rows, np.int64)]
    domain = replay.domains(ground.forest, old, new)
    return replay.compare(old.route, new.route, cases, vectors, domain, ground.rules)


def _keep(
    app: App, current: Kept, old: Table, new: Table, note: Note, compared: Comparison
) -> list[Told]:
    """Leave the table in force, with the rights of today; keep the new one for the owner."""
    if current.note.pinned:
        why, free = f"table {current.number} is pinned", "`groove-node restore --unpin` ends that"
        because = "this one was pinned"
    else:
        why, free = f"it does worse on replay: {compared.told()}", ""
        because = "it did worse on replay"
    refused = app.tables.refuse(new, changed(note, kind=Kind.REFUSED, why=f"refused: {why}"))
    free = free or f"`groove-node restore --table {refused}` puts it in force nevertheless"
    number = app.tables.put(
        old,
        changed(
            current.note,
            at=note.at,
            kind=Kind.FOLLOWED,
            why=f"table {current.number}, without what may not be routed to any more",
            leaves=_leaves(old),
            held=True,
            held_because=f"the last round's was refused: {because}",
        ),
    )
    log.warning("routing table refused in_force=%d refused=%d", number, refused)
    text = f"the new routing table is not put in force: {why}; table {number} stays; {free}"
    figures: dict[str, Any] = {"table": number, "refused": refused, **compared.figures()}
    return [Told("table kept", text, figures)]


def _follow(app: App, current: Kept | None, votes: Mapping[str, Vote] | None) -> int:
    forest = app.forests.forest()
    entries = _entries(app, forest)
    note = Note(at=app.now(), kind=Kind.FOLLOWED, why="what may be routed to has changed")
    of: App | Table = app
    if current is not None and current.table.enc8 != app.enc8:
        # It serves nobody until the owner goes back to its encoder; what lost its right is gone
        # then too. A peer's leaf is one of today's encoder, if it is any more.
        of, note = current.table, changed(current.note, at=note.at, kind=note.kind, why=note.why)
        own = routing.entries(forest, (), set_aside.tag(app))
        entries = [
            entry
            for entry in routing.rightful(current.table, forest, own, admit=False)
            if not entry.origin
        ]
    elif current is not None:
        note = changed(current.note, at=note.at, kind=note.kind, why=note.why)
        admit = not (note.pinned or note.held)
        entries = routing.rightful(current.table, forest, entries, admit=admit)
        if note.starters is Starters.SERVING:
            entries = routing.beside_starters(entries)
    if votes is not None:
        from . import feedback

        note = changed(note, votes=feedback.tallied(votes.values()))
        weights = weigh(feedback.in_order(votes.values()))
        entries = [replace(entry, weight=weights.get(entry.leaf, 0.0)) for entry in entries]
    table = _built(of, entries)
    if note.starters is Starters.GONE and not routing.serving(table.entries):
        note = changed(note, starters=Starters.UNSET)  # they are wanted again
    app.tables.put(table, changed(note, leaves=_leaves(table)))
    return len(table)


def _written(app: App) -> list[Entry]:
    from router.starters import starter_entries

    return starter_entries(app.encoder())


def _wants_starters(app: App, current: Kept) -> bool:
    """True if nobody has looked for them yet; they are no use to a table of another encoder."""
    return current.note.starters is Starters.UNSET and current.table.enc8 == app.enc8


def _entries(app: App, forest: Forest) -> list[Entry]:
    """Who may be routed to. One left from another encoder waits until the mesh is heard again."""
    found = routing.entries(forest, _foreign(app), set_aside.tag(app))
    return [entry for entry in found if len(entry.centroid) == app.dimensions]


def _foreign(app: App) -> list[Known]:
    """Peers' leaves, unless they may have been taken back in a silence that nobody listened to."""
    listened = not heard.silent(app.home, app.now())
    return app.foreign.all() if listened and app.allows("fetch") else []


def _leaves(table: Table) -> int:
    return len(routing.leaves_of(table.entries))


def _built(of: App | Ground | Table, entries: Sequence[Entry]) -> Table:
    """A table of the same encoder."""
    return Table.build(of.enc8, of.dimensions, entries)
