"""Deletion of what was captured, and of all that was made of it: one order, carried out whole.

The order is a file in the home. Until it is there, nothing has changed; once it is, whoever opens
the home next finishes what a crash left, and every step may be repeated:

    1  consent ends, if everything of a user goes, so that nothing more comes in
    2  the order names what it is about: the sessions, and the leaves whose trainings used them
    3  if everything goes, that is remembered outside the home: see `node.consent.deleted`;
       retractions of leaves that peers know are left in the mailbox, the outbox of the running node
    4  records go, then vectors, adapters, lineage, journals and what a killed round left
    5  every database is written anew, so that no free page keeps what it held
    6  a receipt is kept, without content, and the order is removed: only then success is said

Deleting by a filter deletes whole sessions, and does nothing to consent.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from leaves.bundle import BundleError, decode_label, unpack
from leaves.lifecycle import Transition, Withdrawn
from leaves.model import Forest, Leaf, LeafId, Stage
from leaves.ports import Report, silent
from leaves.store import Role
from leaves.words import parts

from . import screening
from .consent.deleted import MARKER, RECEIPTS, Deletion, receipts_in, remember
from .errors import OwnerError
from .exporting import Filters, check_something_fits
from .home import sync_dir, write_atomic
from .mailbox import Retract
from .told import Told

if TYPE_CHECKING:
    from .app import App
    from .capture import TrainingRecord

RECEIPTS_MAX = 1_000
# Texts of sessions while a round is open; vectors; where each session stands on the map.
_JOURNALS = ("rounds", "training", "neighbours", "map")
_MADE_OF_ALL = (*_JOURNALS, "router", "embeddings")
_TOLD = ("events.jsonl", "events.jsonl.1")  # names of leaves, made of words that were asked
_FILES = (
    *("shown.json", "publish.json", "second_scan.json", "capture_counts.json"),
    *("watch.json", "rescan.pending", "usage.json"),
    *("known_values.json", "keys/known_values.key"),
    *_TOLD,
)
_LOCKED_S = 10.0  # waited for a database that another process holds


class DeletionError(OwnerError):
    """A deletion is not finished. Its order stands, and the next command goes on with it."""


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be deleted: every session with a record that fits all of these; all if none."""

    user_id: str | None = None
    domain: str | None = None
    after: float | None = None  # exclusive, Unix seconds
    sessions: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        return self == EVERYTHING

    @property
    def ends_consent(self) -> bool:
        """True if nothing of a user is to stay."""
        return self == Selection(user_id=self.user_id)

    def fits(self, record: TrainingRecord) -> bool:
        return (
            self.user_id in (None, record.user_id)
            # The tag of a closing record is that of its one word, the same in every session.
            and (self.domain is None or (record.domain == self.domain and not record.closes))
            and (self.after is None or record.timestamp > self.after)
            and (not self.sessions or record.session_id in self.sessions)
        )


EVERYTHING = Selection()


class Plan(Struct, frozen=True):
    """What the selection came to when the order was given. Ids alone."""

    sessions: tuple[str, ...]  # not listed if everything goes
    session_count: int
    records: int
    retract: tuple[LeafId, ...]  # leaves that peers know of
    retrain: tuple[LeafId, ...]  # leaves that never left this machine
    unnamed: tuple[LeafId, ...]  # leaves whose names are made of words that nobody else said
    fitting: int = 0  # records that the filters fit; the others are of the same sessions
    renamed: tuple[LeafId, ...] = ()  # leaves that only once had such a name: the one of now stays


class Order(Struct, frozen=True):
    """The marker's content."""

    asked: float = 0.0
    selection: Selection = EVERYTHING
    plan: Plan | None = None
    ends: bool = False  # a consent was in force that this deletion ends


class Preview(Struct, frozen=True):
    """What a deletion would come to, as it is asked for."""

    everything: bool
    ends_consent: bool
    records: int
    fitting: int  # of these the filters fit; the others are of the same sessions
    sessions: int
    leaves: int  # that go, if everything does
    retracted: int
    retrained: int


def preview(app: App, selection: Selection = EVERYTHING, report: Report = silent) -> Preview:
    """Count what `delete` would delete; nothing is changed."""
    selection = _meant(app, selection)
    found = _find(app, selection, _shown(app), report)
    return Preview(
        selection.everything,
        selection.ends_consent,
        found.records,
        found.fitting,
        found.session_count,
        len(list(app.forests.forest())) if selection.everything else 0,
        len(found.retract),
        len(found.retrain),
    )


def check(app: App, selection: Selection) -> None:
    """Raise NothingFitsError if there is nothing to delete because a filter is mistaken."""
    if selection.everything:
        return
    user = selection.user_id
    if selection.ends_consent and user and app.consent.get_consent_history(user):
        return  # whoever once consented, and has no records
    filters = Filters(user, selection.domain, selection.after)
    check_something_fits(app, selection.fits, filters, selection.sessions)


def delete(app: App, selection: Selection = EVERYTHING, report: Report = silent) -> dict[str, Any]:
    """Delete what is selected, with all that was made of it; returns the receipt when it is done.

    Raises DeletionError if it must be finished later, BusyError while a round runs.
    """
    with alone(app):  # first: an order that is refused must not be carried out later
        selection = _meant(app, selection)
        ends = selection.ends_consent and any(
            app.consent.allowed(user_id).scopes for user_id in _users(app, selection)
        )
        order = Order(app.clock.now_s(), selection, ends=ends)
        return _carry_out(app, _write(app, order), report)


def finish(app: App) -> dict[str, Any]:
    """Carry a begun deletion through."""
    with alone(app):
        return _carry_out(app, _read(app), silent)


def _meant(app: App, selection: Selection) -> Selection:
    """The owner, where there is nobody else, means everything."""
    if selection != Selection(user_id=app.user_id):
        return selection
    alone_here = all(record.user_id == app.user_id for record in app.corpus.records())
    return EVERYTHING if alone_here else selection


def _users(app: App, selection: Selection) -> set[str]:
    """Whose consent a deletion ends."""
    users = {selection.user_id or app.user_id}
    if selection.everything:
        users |= {record.user_id for record in app.corpus.records()}
    return users


def alone(app: App) -> AbstractContextManager[None]:
    """The turn to change what rounds work with."""
    return app.lock("round", "a round is running, and it works on what is to be changed")


def receipts(app: App) -> list[dict[str, Any]]:
    """The receipts of earlier deletions, oldest first."""
    return receipts_in(app.home)


def _carry_out(app: App, order: Order, report: Report) -> dict[str, Any]:
    try:
        if order.plan is None:
            order = _write(app, msgspec.structs.replace(order, plan=_plan(app, order, report)))
        plan = order.plan
        assert plan is not None
        if not (plan.session_count or order.selection.ends_consent):
            (app.home / MARKER).unlink(missing_ok=True)
            return _receipt(order, plan)  # nothing fits: nothing to do, and nothing to keep
        if order.selection.everything:
            at, user = _time(order), app.user_id
            remember(app.home, Deletion(at=at, user_id=user, records=plan.records))
        _post(app, plan.retract)
        _delete_records(app, order.selection, plan)
        if order.selection.everything:
            _erase_all(app)
        else:
            withdraw(app, plan.sessions, gone=plan.retract, reset=plan.retrain)
            screening.forget(app.home, plan.sessions)
            _rename(app, plan)
        _remove(app.home.glob(".*.tmp"))
        compact(app.home)
        receipt = _receipt(order, plan)
        _keep(app, receipt)
    except (OSError, sqlite3.Error, OwnerError) as problem:  # whose own words are of other orders
        raise DeletionError(
            f"the deletion is ordered and not finished: {problem}",
            unchanged="The order stands. What was deleted so far stays deleted, and nothing more "
            "is captured of it.",
            next_step="Mend it; the next command, whichever it is, goes on with the deletion.",
        ) from None
    if app.config.registry.url:  # before the order goes: a kill must not leave it unsaid there
        from .registry import push_after_round

        push_after_round(app, app.events.tell)
    (app.home / MARKER).unlink(missing_ok=True)
    sync_dir(app.home)
    app.events.tell(Told("deleted", f"deleted {plan.records:,} records", receipt))
    return receipt


# ---- the order -----------------------------------------------------------------------------------


def _write(app: App, order: Order) -> Order:
    write_atomic(app.home / MARKER, msgspec.json.encode(order))
    return order


def _read(app: App) -> Order:
    path = app.home / MARKER
    try:
        return msgspec.json.decode(path.read_bytes(), type=Order)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise DeletionError(
            f"{path} cannot be read: {problem}",
            unchanged="A deletion was ordered, and what it was about is not known.",
            next_step=f"Remove {path.name}, then run `groove-node data --delete` again.",
        ) from None


def _plan(app: App, order: Order, report: Report) -> Plan:
    """End the consent that the selection ends; then say what it is about."""
    selection = order.selection
    if selection.ends_consent:
        for user_id in sorted(_users(app, selection)):
            app.consent.revoke_consent(user_id)
    with app.lock("publish", wait=True):  # what is being published is on record after this
        shown = _shown(app)
    return _find(app, selection, shown, report)


def _find(app: App, selection: Selection, shown: set[LeafId], report: Report) -> Plan:
    """What a selection is about. shown: the leaves that peers know of."""
    from .capture.stats import reading

    sessions: set[str] = set()
    fitting = 0
    for record in app.corpus.records(read=reading(app.corpus, "delete", report)):
        if selection.fits(record):
            sessions.add(record.session_id)
            fitting += not record.closes
    records, words = _count(app, sessions)
    if selection.everything:
        return Plan((), len(sessions), records, tuple(sorted(shown)), (), (), fitting)
    names = app.forests.names()
    told = [leaf for leaf in app.forests.forest() if any(_tells(x, words) for x in names[leaf.id])]
    unnamed = [leaf.id for leaf in told if _tells(leaf.name, words)]
    made = set(affected(app, sessions))
    made |= {leaf.id for leaf in told if _label_tells(app, leaf, words)}
    return Plan(
        tuple(sorted(sessions)),
        len(sessions),
        records,
        tuple(sorted(made & shown)),
        tuple(sorted(made - shown)),
        tuple(unnamed),
        fitting,
        tuple(leaf.id for leaf in told if leaf.id not in unnamed),
    )


def _count(app: App, sessions: Collection[str]) -> tuple[int, set[str]]:
    """How many records these sessions have, and the words that no other session says."""
    records = 0
    theirs: set[str] = set()
    others: set[str] = set()
    for record in app.corpus.records():
        gone = record.session_id in sessions
        records += gone and not record.closes
        (theirs if gone else others).update(parts(record.content))
    return records, theirs - others


def _shown(app: App) -> set[LeafId]:
    """All leaves that peers may have heard of."""
    try:
        return set(app.shown())
    except msgspec.DecodeError:  # damaged: rather retract too much
        return {leaf.id for leaf in app.forests.forest()}


def _tells(name: str, words: set[str]) -> bool:
    """True if a leaf's name has a word that nothing else said."""
    return not words.isdisjoint(parts(name))


def _label_tells(app: App, leaf: Leaf, words: set[str]) -> bool:
    """True if a leaf's bundle was packed under a name that tells, or nobody knows under which."""
    blob = app.bundles.get(leaf.adapter.bundle) if leaf.adapter else None
    if blob is None:
        return False
    try:
        return _tells(decode_label(unpack(blob).label).name, words)
    except BundleError:
        return True


def affected(app: App, sessions: Iterable[str]) -> list[LeafId]:
    """Leaves whose adapter, or its style control, was trained on any of these sessions, by id.

    With those that were split or merged from such a leaf: their first adapter was made of its.
    """
    found = set(app.forests.made_of(sessions, Role.TRAIN, Role.CONTROL))
    forest = app.forests.forest()
    while heirs := {leaf.id for leaf in forest if found & set(leaf.lineage)} - found:
        found |= heirs
    return sorted(found & forest.leaves.keys())


# ---- carrying it out -----------------------------------------------------------------------------


def _post(app: App, leaves: Iterable[LeafId]) -> None:
    waiting = {
        letter.order.leaf for letter in app.mailbox.waiting() if isinstance(letter.order, Retract)
    }
    for leaf in leaves:
        if leaf not in waiting:
            app.mailbox.post(Retract(leaf), app.clock.now_s())


def _delete_records(app: App, selection: Selection, plan: Plan) -> None:
    if selection.everything:
        app.corpus.delete_where(lambda record: True)
        app.corpus.deleted.clear()
    elif selection.ends_consent:
        app.corpus.delete_user(str(selection.user_id))
    else:
        app.corpus.delete_sessions(plan.sessions)


def withdraw(
    app: App, sessions: Collection[str], *, gone: Collection[LeafId], reset: Collection[LeafId]
) -> None:
    """Take sessions out of all that was made of them; may be repeated.

    gone: leaves to end; what is left of their domain grows a new leaf, under an id that was not
    retracted. reset: leaves that keep their id and lose their adapter; the next round trains them.
    """
    _change_leaves(app, gone, reset)
    for leaf in (*gone, *reset):  # after all are changed: by what they used, they are found again
        app.forests.unuse(leaf)
    app.forests.forget(sessions)
    app.embeddings.delete(list(sessions))
    # Also if no leaf is changed: what was packed and never recorded, by hand or by a round that was
    # killed, nobody knows the sessions of, so all of it goes. The next training makes it anew.
    _delete_bundles(app, app.forests.forest())
    _renew_tables(app)  # sessions take their votes with them, whatever leaf they were in
    row = app.forests.open_round()
    if row is not None:  # what it had read holds the sessions: it begins anew
        app.forests.advance_round(row.id, "embed", {"due": [], "done": {}})
    for name in _JOURNALS:
        _remove_folder(app.home / name)
    for path in app.home.glob("adapters-*"):  # of a command that was killed
        _remove_folder(path)
    _remove([app.home / "usage.json"])  # counted with what is deleted; the next round counts anew


def _change_leaves(app: App, gone: Collection[LeafId], reset: Collection[LeafId]) -> None:
    now = app.now()
    forest = app.forests.forest()
    withdrawn: list[Transition] = []
    for leaf in forest:
        ends = leaf.id in gone and leaf.stage is not Stage.DISSOLVED
        if ends or (leaf.id in reset and leaf.adapter is not None):
            why = "sessions that it was trained on are gone"
            withdrawn.append(Withdrawn(leaf.id, ends, why))
    app.forests.carry_out(forest, withdrawn, now, 0)


def _delete_bundles(app: App, forest: Forest) -> None:
    """Remove every own bundle that is not in force: also replaced versions, and rejected ones."""
    kept = set(app.foreign.expected())
    for leaf in forest:
        if leaf.adapter is not None:
            kept |= {leaf.adapter.bundle, leaf.adapter.control}
    folder = app.home / "bundles"
    paths = [*folder.glob("*.bundle"), *folder.glob("*.part")]
    _remove(path for path in paths if path.stem not in kept)
    from .api.backends.laid_out import LaidOut  # after them: it goes by what is left

    LaidOut(app).sweep()


def _renew_tables(app: App) -> None:
    """Route by the leaves of now, and keep no table of before."""
    app.deploy_if_routed()
    folder = app.home / "router"
    current = folder / "current"
    kept = {current.name, current.read_text().strip()} if current.exists() else set()
    if folder.exists():
        _remove(path for path in folder.iterdir() if path.name not in kept)


def _rename(app: App, plan: Plan) -> None:
    leaves = app.forests.forest().leaves
    for leaf in plan.unnamed:
        app.forests.rename_throughout(leaf, f"leaf-{leaf[:8]}")
    for leaf in plan.renamed:
        app.forests.rename_throughout(leaf, leaves[leaf].name)
    if plan.unnamed or plan.renamed:
        _renew_tables(app)
        _remove(app.home / name for name in _TOLD)


def _erase_all(app: App) -> None:
    app.forests.erase()
    _delete_bundles(app, app.forests.forest())
    for name in _MADE_OF_ALL:
        _remove_folder(app.home / name)
    for path in app.home.glob("adapters-*"):
        _remove_folder(path)
    _remove(app.home / name for name in _FILES)


def _remove(paths: Iterable[Path]) -> None:
    folders = set()
    for path in paths:
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        sync_dir(folder)


def _remove_folder(folder: Path) -> None:
    """Unlike `rmtree(ignore_errors=True)`, this does not call gone what is still there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    sync_dir(folder.parent)


def compact(home: Path) -> None:
    """Write every database anew, so that neither a free page nor a log keeps what was deleted."""
    for path in [*sorted(home.glob("*.db")), home / "embeddings" / "index.sqlite"]:
        if not path.exists():
            continue
        with contextlib.closing(
            sqlite3.connect(path, timeout=_LOCKED_S, isolation_level=None)
        ) as db:
            db.execute("PRAGMA temp_store=MEMORY")  # VACUUM's copy must not lie about in /tmp
            db.execute("PRAGMA secure_delete=ON")
            db.execute("VACUUM")
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise sqlite3.OperationalError(f"{path.name} is held by another process")


# ---- what is said --------------------------------------------------------------------------------


def _time(order: Order) -> float:
    """When a deletion was ordered: what it is known by."""
    return round(order.asked, 3)


def _receipt(order: Order, plan: Plan) -> dict[str, Any]:
    selection = order.selection
    return {
        "at": _time(order),
        "selected": {
            "everything": selection.everything,
            "user": selection.user_id is not None,
            "domain": selection.domain,
            "after": selection.after,
            "sessions": len(selection.sessions),
        },
        "consent_revoked": order.ends,
        "records_deleted": plan.records,
        "sessions_deleted": plan.session_count,
        "leaves_retracted": len(plan.retract),
        "leaves_to_retrain": len(plan.retrain),
        "retracted": list(plan.retract),
        "to_retrain": list(plan.retrain),
    }


def _keep(app: App, receipt: dict[str, Any]) -> None:
    """Keep a receipt; one of the same order, of before a crash, is replaced."""
    kept = [each for each in receipts(app) if each["at"] != receipt["at"]][-RECEIPTS_MAX:]
    lines = [msgspec.json.encode(each) + b"\n" for each in (*kept, receipt)]
    write_atomic(app.home / RECEIPTS, b"".join(lines))
