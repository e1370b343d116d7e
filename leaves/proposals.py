"""What waits for the owner's word: splits and merges that a round proposed and did not carry out.

A proposal is known by what it would change, not by when it was made: the round that comes to the
same again refreshes it. It ends when it is carried out, or when a look at all sessions does not
come to it any more; until then the owner's answer stands, and may be changed.
"""

from __future__ import annotations

import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np

from .model import Instant, LeafId
from .schema import transaction
from .transitions import Answer, ChangeKey, Merged, Split, key_of, size_of

Change = Split | Merged


class Ended(StrEnum):
    """Why a proposal does not wait any more."""

    DONE = "carried out"
    GONE = "no longer holds"


@dataclass(frozen=True, slots=True)
class Proposal:
    """One change that asked for the owner's word.

    change: as the last round saw it; None once sessions that it was made of are deleted.
    at: when it was first proposed. seen: when a round last came to it. yes: the owner's word; None
    while there is none. sessions, parts: how large it was when it was last shown or answered.
    """

    id: int
    kind: str
    leaves: tuple[LeafId, ...]
    reason: str
    change: Change | None
    at: Instant
    round: int
    seen: Instant
    sessions: int
    parts: int
    yes: bool | None
    answered: Instant | None
    ended: Ended | None
    ended_at: Instant | None

    @property
    def waits(self) -> bool:
        """True while nobody has said yes or no to it."""
        return self.yes is None and self.ended is None

    @property
    def key(self) -> ChangeKey:
        return self.kind, self.leaves


class Proposals:
    """The proposals of one store; what is written belongs to the step that is being written."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def all(self) -> list[Proposal]:
        """Every proposal that there ever was, oldest first."""
        return self._read("")

    def current(self) -> list[Proposal]:
        """Those that have not ended, answered or not."""
        return self._read("WHERE ended IS NULL")

    def waiting(self) -> list[Proposal]:
        """Those that wait for an answer."""
        return self._read("WHERE ended IS NULL AND yes IS NULL")

    def approvals(self) -> dict[ChangeKey, Answer]:
        """What the owner has said, as the lifecycle asks for it."""
        return {
            proposal.key: Answer(proposal.yes, proposal.sessions, proposal.parts)
            for proposal in self.current()
            if proposal.yes is not None
        }

    def propose(self, change: Change, reason: str, now: Instant, round_id: int) -> bool:
        """Write down what a round came to; True if the owner has to be asked now.

        One that waits already is refreshed. To one that was answered comes the lifecycle only when
        it has clearly changed: that is another question.
        """
        kind, leaves = key_of(change)
        named = " ".join(leaves)
        row = self._db.execute(
            "SELECT id, yes FROM proposal WHERE kind = ? AND leaves = ? AND ended IS NULL",
            (kind, named),
        ).fetchone()
        blob, (sessions, parts) = encoded(change), size_of(change)
        with transaction(self._db):
            if row is not None and row[1] is None:
                self._db.execute(
                    "UPDATE proposal SET reason = ?, change = ?, seen = ?, sessions = ?, parts = ? "
                    "WHERE id = ?",
                    (reason, blob, now, sessions, parts, row[0]),
                )
                return False
            if row is not None:
                self._end([row[0]], Ended.GONE, now)
            self._db.execute(
                "INSERT INTO proposal "
                "(kind, leaves, reason, change, at, round, seen, sessions, parts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (kind, named, reason, blob, now, round_id, now, sessions, parts),
            )
        return True

    def answer(self, proposal: int, yes: bool, now: Instant) -> None:
        """Keep the owner's word; it may be changed until the proposal ends."""
        self._db.execute(
            "UPDATE proposal SET yes = ?, answered = ? WHERE id = ? AND ended IS NULL",
            (yes, now, proposal),
        )

    def carried_out(self, change: Change, now: Instant) -> None:
        """A change was made; what was proposed of it is done, by whose word it ever was."""
        kind, leaves = key_of(change)
        rows = self._db.execute(
            "SELECT id FROM proposal WHERE kind = ? AND leaves = ? AND ended IS NULL",
            (kind, " ".join(leaves)),
        ).fetchall()
        self._end([id_ for (id_,) in rows], Ended.DONE, now)

    def end_but(self, still: Iterable[ChangeKey], now: Instant) -> list[Proposal]:
        """End what a look at all sessions did not come to any more, and return it.

        What was refused stays refused: the lifecycle does not propose it again by itself.
        """
        kept = set(still)
        gone = [
            proposal
            for proposal in self.current()
            if proposal.key not in kept and proposal.yes is not False
        ]
        self._end([proposal.id for proposal in gone], Ended.GONE, now)
        return gone

    def forget(self) -> None:
        """Sessions were deleted: what waits is proposed anew, of those that are left."""
        with transaction(self._db):
            self._db.execute("DELETE FROM proposal WHERE ended IS NULL AND yes IS NULL")
            self._db.execute("UPDATE proposal SET change = x''")

    def _end(self, ids: Sequence[int], ended: Ended, now: Instant) -> None:
        self._db.executemany(
            "UPDATE proposal SET ended = ?, ended_at = ? WHERE id = ?",
            [(ended.value, now, id_) for id_ in ids],
        )

    def _read(self, clause: str) -> list[Proposal]:
        rows = self._db.execute(
            "SELECT id, kind, leaves, reason, change, at, round, seen, sessions, parts, yes, "
            f"answered, ended, ended_at FROM proposal {clause} ORDER BY id"
        )
        return [_proposal(*row) for row in rows.fetchall()]


def _proposal(
    id_: int,
    kind: str,
    leaves: str,
    reason: str,
    change: bytes,
    at: int,
    round_id: int,
    seen: int,
    sessions: int,
    parts: int,
    yes: int | None,
    answered: int | None,
    ended: str | None,
    ended_at: int | None,
) -> Proposal:
    return Proposal(
        id_,
        kind,
        tuple(LeafId(leaf) for leaf in leaves.split()),
        reason,
        decoded(kind, change) if change else None,
        Instant(at),
        round_id,
        Instant(seen),
        sessions,
        parts,
        None if yes is None else bool(yes),
        Instant(answered) if answered is not None else None,
        Ended(ended) if ended else None,
        Instant(ended_at) if ended_at is not None else None,
    )


def encoded(change: Change) -> bytes:
    """A change as JSON; centroids are base64 of float32."""
    return msgspec.json.encode(change, enc_hook=_text_of)


def decoded(kind: str, blob: bytes) -> Change:
    fields = msgspec.json.decode(blob)
    if kind == "split":
        return msgspec.convert(fields, Split, dec_hook=_vector_of)
    return msgspec.convert(fields, Merged, dec_hook=_vector_of)


def _text_of(value: Any) -> str:
    vector = np.asarray(value, dtype="<f4")
    return b64encode(vector.tobytes()).decode()


def _vector_of(kind: type, value: Any) -> Any:
    return np.frombuffer(b64decode(value), dtype="<f4").astype(np.float32)
