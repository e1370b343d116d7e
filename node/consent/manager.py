"""What the owner has agreed to, per scope, and since when; asked before every byte is kept.

Consent is append-only: the latest row of a user is in force, whole, the earlier ones are the proof
of what was agreed before. Capture is also per source and, for the transcripts of coding assistants,
per project folder: what is not on the list is not captured. A store that is not the one that was
written last counts as off until the owner is asked again (`witness`); one in a home that is
from before its last full deletion, until everything is deleted again (`deleted`).

The flag file beside the database is what `node.gate` looks at. It may be missing while capture is
allowed (the next opening mends that), never present while it is not: it is removed before a
revocation commits, and written after a grant has. A folder restored from a backup brings its flag
along; the gate then opens the store, which takes the flag away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from node.clock import Clock, SystemClock
from node.errors import OwnerError
from node.home import FLAG_FILE, owner_path, sync_dir, write_atomic
from node.writers import wait_for_writers

from . import deleted
from .folders import inside, named, not_inside_of, project_folder, resolved
from .ledger import Ledger
from .receipts import SUSPENSION, Decision, Receipt, Signer
from .store import ConsentLockedError, ConsentUnreadableError, Row
from .witness import Step

__all__ = [
    "CURRENT_CONSENT_VERSION",
    "ENDPOINT_SOURCES",
    "FOLDER_SOURCES",
    "FREE_SOURCES",
    "NOTHING",
    "Allowed",
    "ConsentLockedError",
    "ConsentManager",
    "ConsentRecord",
    "ConsentUnreadableError",
    "NotGrantedError",
    "Scope",
    "Standing",
]

log = logging.getLogger(__name__)

CURRENT_CONSENT_VERSION = "1.0"  # a new version of the terms asks everybody again

# What the owner's own program hands over, file by file or call by call: naming it is the consent.
FREE_SOURCES: Final = frozenset({"api", "jsonl", "pydoc"})
# What is read from another tool's history of everything: only of the projects that were named.
FOLDER_SOURCES: Final = frozenset({"claude-code", "codex"})
# What reaches the endpoint: exchanges that it answers or passes on, and what other programs report
# of theirs. Where a report names a project, that must have been named too.
ENDPOINT_SOURCES: Final = ("endpoint", "otlp", "litellm")

# Why consent is off in a home that brings deleted data back.
BEFORE_DELETION: Final = "this home is from before the last deletion of everything"

Folder = str | PathLike[str]


class Scope(StrEnum):
    """What may be done; each is off until the owner turns it on."""

    CAPTURE = "capture"  # record, embed and cluster
    TRAIN = "train"  # make own adapters
    PUBLISH = "publish"  # offer own heads, cards, bundles and usage
    FETCH = "fetch"  # get, evaluate, route to and serve on others' bundles


class Standing(StrEnum):
    """How a user's consent stands."""

    NEVER_ASKED = "never asked"
    IN_FORCE = "in force"
    REVOKED = "revoked"
    TERMS_CHANGED = "terms changed"  # what was agreed to is no longer what is asked
    RESTORED = "restored"  # this store, or the whole node, is not as it was left


class NotGrantedError(OwnerError):
    """Sources and folders are for capture, and capture is not granted."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What one decision allows. Sources and folders are capture's, and go with it."""

    scopes: frozenset[Scope] = frozenset()
    sources: frozenset[str] = frozenset()
    folders: frozenset[Path] = frozenset()  # absolute, links followed

    def within(self, other: Allowed) -> bool:
        """True if `other` allows all of this."""
        return (
            self.scopes <= other.scopes
            and self.sources <= other.sources
            and all(inside(folder, other.folders) for folder in self.folders)
        )

    def captures(self, source: str, *folders: str | None) -> bool:
        """True if a text of this source, about all of these project folders, may be kept."""
        if Scope.CAPTURE not in self.scopes:
            return False
        if source in FREE_SOURCES:
            return True
        if source not in self.sources:
            return False
        if source not in FOLDER_SOURCES:
            folders = tuple(folder for folder in folders if folder)
            if source not in ENDPOINT_SOURCES or not folders:
                return True
        places = [resolved(folder) if folder else None for folder in folders]
        return bool(places) and all(
            place is not None and inside(place, self.folders) for place in places
        )

    def __or__(self, more: Allowed) -> Allowed:
        return Allowed(
            self.scopes | more.scopes, self.sources | more.sources, self.folders | more.folders
        )


NOTHING: Final = Allowed()


@dataclass(frozen=True, slots=True)
class ConsentRecord:
    """One decision of one user. The latest one is in force, whole."""

    user_id: str
    opted_in: bool
    consent_version: str
    timestamp: float
    metadata: dict[str, Any]
    scopes: frozenset[Scope]
    sources: frozenset[str] = frozenset()
    folders: frozenset[Path] = frozenset()
    suspended: bool = False  # the node's doing, not the owner's
    number: int = 0  # of its receipt
    broken: str = ""  # why nothing was in force when this was decided, whatever stands before it

    @property
    def allowed(self) -> Allowed:
        """What this decision allows under the terms of today."""
        if not self.opted_in or self.consent_version != CURRENT_CONSENT_VERSION:
            return NOTHING
        return Allowed(self.scopes, self.sources, self.folders)

    def grants(self, scope: Scope) -> bool:
        """True if this decision allows `scope` under the terms of today."""
        return scope in self.allowed.scopes


class ConsentManager:
    """Consent in SQLite, synchronous=FULL. Safe from several threads and processes."""

    def __init__(
        self,
        db_path: str | Path = "~/.groove/consent.db",
        *,
        clock: Clock | None = None,
        signer: Signer | None = None,
    ) -> None:
        """Open or make the database, mode 0600, mend the flag, and sign what is not signed yet.

        Raises WideOpenError if others can reach the file, ConsentUnreadableError if it is damaged.
        """
        path = owner_path(db_path)
        self._clock = clock or SystemClock()
        self._flag = path.with_name(FLAG_FILE)
        self._ledger = Ledger(path, self._clock, signer)
        self._home = path.parent
        try:
            self._ledger.mend()
            self._mend_flag()
            self._ledger.sign_later()
            if deleted.undone(self._home) is not None:
                self.suspend(BEFORE_DELETION)
        except OwnerError as problem:  # what only mends must not keep the owner from looking
            log.warning("consent not mended reason=%s", type(problem).__name__)

    def __enter__(self) -> ConsentManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._ledger.lock:
            self._ledger.store.close()

    # ---- decisions -------------------------------------------------------------------------------

    def record_consent(
        self,
        user_id: str,
        opted_in: bool,
        consent_version: str,
        metadata: dict[str, Any] | None = None,
        *,
        scopes: Iterable[Scope] = (Scope.CAPTURE,),
        sources: Iterable[str] = (),
        folders: Iterable[Folder] = (),
    ) -> None:
        """Record a decision. It replaces the one before: what is not named is off.

        Raises FolderError for a folder that is no project, UndoneDeletionError in a home that is
        from before its last full deletion.
        """
        agreed = NOTHING
        if opted_in:
            agreed = named_by(scopes, sources, folders)
        self._decide(
            user_id,
            lambda before: agreed,
            opted_in=opted_in,
            version=consent_version,
            metadata=metadata,
        )

    def grant(
        self,
        user_id: str,
        scopes: Iterable[Scope] = (),
        *,
        sources: Iterable[str] = (),
        folders: Iterable[Folder] = (),
        disclosure: str = "",
    ) -> None:
        """Add to what is in force, as one decision. disclosure: SHA-256 of the text shown, in hex.

        Raises NotGrantedError for sources or folders without the scope capture, and what
        `record_consent` raises.
        """
        more = named_by(scopes, sources, folders)
        self._decide(user_id, lambda before: before | more, disclosure=disclosure)

    def withdraw(
        self,
        user_id: str,
        scopes: Iterable[Scope] = (),
        *,
        sources: Iterable[str] = (),
        folders: Iterable[Folder] = (),
    ) -> bool:
        """Take some of it away, as one decision; False if nothing of it was in force.

        A folder takes those inside it along. Raises FolderError for one that lies inside an
        allowed folder: taking it off the list would not stop its capture.
        """
        gone = frozenset(Scope(scope) for scope in scopes)
        fewer = frozenset(sources)
        closed = frozenset(map(named, folders))

        def without(before: Allowed) -> Allowed:
            kept = frozenset(each for each in before.folders if not inside(each, closed))
            not_inside_of(closed, kept)
            return Allowed(before.scopes - gone, before.sources - fewer, kept)

        return self._decide(user_id, without, idle=False)

    def grant_scope(self, user_id: str, scope: Scope) -> None:
        """Add one scope to those in force, under the terms of today."""
        self.grant(user_id, (scope,))

    def revoke_scope(self, user_id: str, scope: Scope) -> bool:
        """Take one scope away and keep the others; False if it was not in force."""
        return self.withdraw(user_id, (scope,))

    def allow(
        self, user_id: str, *, sources: Iterable[str] = (), folders: Iterable[Folder] = ()
    ) -> None:
        """Put sources and project folders on the lists of capture. Raises NotGrantedError."""
        self.grant(user_id, sources=sources, folders=folders)

    def disallow(
        self, user_id: str, *, sources: Iterable[str] = (), folders: Iterable[Folder] = ()
    ) -> bool:
        """Take sources and project folders off the lists; False if none was on them."""
        return self.withdraw(user_id, sources=sources, folders=folders)

    def revoke_consent(self, user_id: str) -> bool:
        """Take everything away; False if the user had no consent records.

        Where the records were lost, it is recorded all the same: they may come back.
        """
        ledger = self._ledger
        with ledger.turn():
            if ledger.latest(user_id) is None and not ledger.broken():
                return False
            return self._decide(user_id, lambda before: NOTHING)

    def suspend(self, reason: str) -> bool:
        """Turn everything off until the owner is asked again; False if nothing was on.

        For what only the mesh can know: that this node was restored whole from a backup.
        """
        ledger = self._ledger
        with ledger.turn():
            users = [each.user_id for each in ledger.in_force() if each.opted_in]
            if not users:
                return False
            told = [ledger.suspension(user, reason) for user in users]
            ledger.append(told, stands=False, grants=False, before=self._lower_flag)
        self._mend_flag()
        wait_for_writers(self._home)
        log.warning("consent suspended reason=%s", reason)
        return True

    # ---- what is in force ------------------------------------------------------------------------

    def is_opted_in(self, user_id: str) -> bool:
        """True if the capture scope is in force: the specification's one opt-in."""
        return self.allows(user_id, Scope.CAPTURE)

    def allows(self, user_id: str, scope: Scope) -> bool:
        """True if `scope` is in force now. Two stats and one word of SQLite, about 10 µs."""
        return scope in self.allowed(user_id).scopes

    def may_capture(self, user_id: str, source: str = "api", folder: str | None = None) -> bool:
        """True if a text of this source, about this project folder, may be kept now."""
        return self.allowed(user_id).captures(source, folder)

    def allowed(self, user_id: str) -> Allowed:
        """All that is in force now."""
        found = self._ledger.latest(user_id)
        if found is None or found[1] is not Step.IN_STEP or not found[0].proven:
            return NOTHING
        return _record_of(found[0]).allowed

    def allowed_sources(self, user_id: str) -> frozenset[str]:
        """The sources on the list; `FREE_SOURCES` need no listing."""
        return self.allowed(user_id).sources

    def allowed_folders(self, user_id: str) -> tuple[Path, ...]:
        """The project folders on the list, sorted."""
        return tuple(sorted(self.allowed(user_id).folders))

    def scopes(self, user_id: str) -> frozenset[Scope]:
        """The scopes in force now."""
        return self.allowed(user_id).scopes

    def version_in_force(self, user_id: str, scope: Scope) -> str | None:
        """The version of the terms under which `scope` is in force, or None if it is not."""
        return CURRENT_CONSENT_VERSION if self.allows(user_id, scope) else None

    def standing(self, user_id: str) -> Standing:
        """How the user's consent stands, and so what to tell them."""
        return self._judged(user_id)[0]

    def why_off(self, user_id: str) -> str:
        """Why a consent that was given is not in force; empty if it is, or none was given."""
        return self._judged(user_id)[1]

    def _judged(self, user_id: str) -> tuple[Standing, str]:
        found = self._ledger.latest(user_id)
        if found is None:
            return Standing.NEVER_ASKED, ""
        (row, step), said = found, found[0].decision
        if said.event == SUSPENSION:
            return Standing.RESTORED, str(said.metadata.get("reason", ""))
        if not said.opted_in:
            return Standing.REVOKED, ""
        if step is not Step.IN_STEP or not row.proven:
            return Standing.RESTORED, (Step.OTHER if step is Step.IN_STEP else step).value
        if said.version != CURRENT_CONSENT_VERSION:
            now = CURRENT_CONSENT_VERSION
            return Standing.TERMS_CHANGED, f"you agreed to terms {said.version}; now they are {now}"
        return Standing.IN_FORCE, ""

    def unnoted(self) -> str:
        """The folder where a withdrawal of this process could not be noted: a backup of the home
        that is put back would not know of it. Empty if it is noted.
        """
        return self._ledger.unnoted()

    def get_opted_in_count(self) -> int:
        """How many users have the capture scope in force."""
        return sum(_record(each).grants(Scope.CAPTURE) for each in self._ledger.in_force())

    # ---- what was --------------------------------------------------------------------------------

    def request_deletion(self, user_id: str) -> dict[str, Any]:
        """Note a formal request; carrying it out is `TrainingDataIntake.delete_user`."""
        with self._ledger.lock:
            count = self._ledger.store.request_deletion(user_id, self._clock.now_s())
        return {"user_id": user_id, "consent_records": count, "status": "pending"}

    def get_consent_history(self, user_id: str) -> list[ConsentRecord]:
        """All decisions of a user, oldest first."""
        with self._ledger.lock:
            return [_record(row.decision) for row in self._ledger.store.history(user_id)]

    def receipts(self) -> list[Receipt]:
        """All receipts, oldest first."""
        with self._ledger.lock:
            return self._ledger.store.receipts()

    def problems(self, origin: bytes | None = None) -> list[str]:
        """What is wrong with the receipts; origin: of the node that must have signed."""
        return self._ledger.problems(origin)

    # ---- writing ---------------------------------------------------------------------------------

    def _decide(
        self,
        user_id: str,
        change: Callable[[Allowed], Allowed],
        *,
        opted_in: bool | None = None,
        version: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        disclosure: str = "",
        idle: bool = True,
    ) -> bool:
        """Record what `change` makes of what is in force; False if that changes nothing.

        idle: then it is recorded too. Where nothing is in force because the store was replaced, it
        always is: what it takes away might come back with the store that this one replaced.
        """
        ledger = self._ledger
        with ledger.turn():
            ledger.store.renew()
            before = self.allowed(user_id)
            agreed = _whole(change(before), before)
            if agreed == before and not idle and not ledger.broken():
                return False
            version = CURRENT_CONSENT_VERSION if version is None else version
            opted_in = bool(agreed.scopes) if opted_in is None else opted_in
            decision = msgspec.structs.replace(
                ledger.decision(user_id, version=version, opted_in=opted_in),
                scopes=tuple(sorted(agreed.scopes)),
                sources=tuple(sorted(agreed.sources)),
                folders=tuple(sorted(map(str, agreed.folders))),
                metadata=dict(metadata or {}),
                disclosure=disclosure,
            )
            after = _record(decision).allowed
            grants = not after.within(before)
            if grants:
                deleted.refuse_if_undone(self._home)
            ledger.append(
                [decision],
                stands=before.within(after),
                grants=grants,
                # A crash in the middle of what takes something away leaves nothing in force.
                before=self._lower_flag_if_off if before.within(after) else self._lower_flag,
            )
        self._mend_flag()
        if not (grants and before.within(after)):
            wait_for_writers(self._home)  # not in turn: whoever writes asks for consent
        return idle or agreed != before

    def _mend_flag(self) -> None:
        """Make the flag say what is committed; nobody decides meanwhile."""
        if self._flag.exists() == (self.get_opted_in_count() > 0):
            return
        with self._ledger.turn(), self._ledger.store.writing():
            if not self.get_opted_in_count():
                self._lower_flag()
            elif not self._flag.exists():
                write_atomic(self._flag, CURRENT_CONSENT_VERSION.encode() + b"\n")

    def _lower_flag_if_off(self, decisions: Sequence[Decision]) -> None:
        """Before decisions are written: the flag may be missing, but never say too much."""
        latest = {each.user_id: each for each in self._ledger.in_force()}
        latest |= {each.user_id: each for each in decisions}
        if not any(_record(each).grants(Scope.CAPTURE) for each in latest.values()):
            self._lower_flag()

    def _lower_flag(self, decisions: Sequence[Decision] = ()) -> None:
        if self._flag.exists():
            self._flag.unlink(missing_ok=True)
            sync_dir(self._flag.parent)


def named_by(scopes: Iterable[str], sources: Iterable[str], folders: Iterable[Folder]) -> Allowed:
    """What a grant names. Raises FolderError for a folder that is no project."""
    return Allowed(
        frozenset(Scope(scope) for scope in scopes),
        frozenset(sources),
        frozenset(map(project_folder, folders)),
    )


def _whole(agreed: Allowed, before: Allowed) -> Allowed:
    """Without capture there are no lists; to name something new then is a mistake."""
    if Scope.CAPTURE in agreed.scopes:
        return agreed
    if not Allowed(frozenset(), agreed.sources, agreed.folders).within(before):
        raise NotGrantedError(
            "sources and folders are allowed for capture, and capture is not granted",
            unchanged="Nothing was changed.",
            next_step="`groove-node consent grant capture --source NAME --folder DIR` grants both.",
        )
    return Allowed(agreed.scopes)


@lru_cache(maxsize=64)  # rows are kept by the ledger, and asked for at every text
def _record_of(row: Row) -> ConsentRecord:
    return _record(row.decision)


def _record(said: Decision) -> ConsentRecord:
    return ConsentRecord(
        said.user_id,
        said.opted_in,
        said.version,
        said.at,
        said.metadata,
        frozenset(scope for scope in Scope if scope in said.scopes),
        frozenset(said.sources),
        frozenset(map(Path, said.folders)),
        said.event == SUSPENSION,
        said.number,
        said.broken,
    )
