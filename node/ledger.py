"""Decisions on their way into the consent store: in turn, chained, signed, and remembered outside.

`node.consent` knows what a decision means; this knows how one is written, so that a crash at any
step leaves a store whose last word is certain or which counts as off. See `node.witness`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from . import receipts
from .clock import Clock
from .consent_store import ConsentStore, Row
from .errors import OwnerError
from .receipts import DECISION, SUSPENSION, Decision, Receipt, Signer
from .witness import Step, Witness, WitnessBusyError

T = TypeVar("T")
LOST = "the store was replaced, by a backup or by hand"
ROWS_KEPT_MAX = 64  # read rows; a personal node asks for one of them again and again


class Ledger:
    """The store of one home with what is remembered of it. Safe from threads and processes."""

    def __init__(self, path: Path, clock: Clock, signer: Signer | None) -> None:
        """Raises WideOpenError or ConsentUnreadableError."""
        self.lock = threading.RLock()  # held wherever the store is read or written
        self.store = ConsentStore(path)
        self._witness = Witness(path)
        self._clock = clock
        self._signer = signer
        self._in_turn = False
        self._rows: dict[str, Row] = {}  # by hash: a row never changes

    # ---- reading ---------------------------------------------------------------------------------

    def latest(self, user_id: str) -> tuple[Row, Step] | None:
        """A user's last decision, and how the store stands; a withdrawal is not judged."""
        with self.lock:
            marks = self.store.marks(user_id)
            if marks is None:
                return None
            row = self._rows.get(marks[0])
            if row is None:
                row = self._read(user_id)[0]
                if len(self._rows) >= ROWS_KEPT_MAX:
                    self._rows.clear()
                if row.proven:
                    self._rows[marks[0]] = row
            if not row.decision.opted_in or self._witness.judge(marks[1]) is Step.IN_STEP:
                return row, Step.IN_STEP
            return self._settled(lambda: self._read(user_id))

    def _read(self, user_id: str) -> tuple[Row, str]:
        found = self.store.latest(user_id)
        assert found is not None, "rows are only added"
        return found

    def in_force(self) -> list[Decision]:
        """Each user's last decision; none if the store is not the one that was written last."""
        with self.lock:
            rows, step = self._settled(lambda: (self.store.latest_of_all(), self.store.head()))
        return [row.decision for row in rows if row.proven and step is Step.IN_STEP]

    def problems(self, origin: bytes | None) -> list[str]:
        """What is wrong with the receipts; origin: of the node that must have signed."""
        with self.lock:
            kept, step = self._settled(lambda: (self.store.receipts(), self.store.head()))
            differing = self.store.differing()
        found = receipts.problems(kept, origin)
        found += [f"receipt {n}: the row beside it says something else" for n in differing]
        if step is not Step.IN_STEP and (kept or self._witness.number):
            found.append(f"the last receipt: {step.value}")
        return found

    def _settled(self, look: Callable[[], tuple[T, str]]) -> tuple[T, Step]:
        """Read something and the last receipt's hash, and judge.

        Out of step, it is looked at again when nobody is writing: between the steps of a decision
        the store and what is remembered do not agree.
        """
        found, head = look()
        step = self._witness.judge(head)
        if step is not Step.IN_STEP and not self._in_turn:
            with suppress(WitnessBusyError), self.turn():  # busy for seconds: then it is off
                found, head = look()
                step = self._witness.judge(head)
        return found, step

    # ---- writing ---------------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one, of all threads and processes, that decides. May be nested."""
        with self.lock:
            if self._in_turn:
                yield
                return
            with self._witness.turn():
                self._in_turn = True
                try:
                    yield
                finally:
                    self._in_turn = False

    def append(
        self,
        decisions: Sequence[Decision],
        *,
        stands: bool,
        grants: bool,
        before: Callable[[Sequence[Decision]], None],
    ) -> None:
        """Write decisions, in turn. Raises WitnessError, and what the store raises.

        stands: what was in force is within what will be; grants: something is added to it.
        before: called with the decisions before anything is written.
        """
        head, users = self.store.head(), self.store.latest_of_all()
        broken = self._broken(head, bool(users))
        in_step = not (users and broken)
        if not in_step:
            # What a restored store allows others may not come into force with this decision.
            asked = {each.user_id for each in decisions}
            others = [row.decision.user_id for row in users if row.decision.opted_in]
            told = [self.suspension(x, Step.OTHER) for x in others if x not in asked]
            decisions = [*told, *decisions]
        if broken:
            decisions = [msgspec.structs.replace(each, broken=broken) for each in decisions]
        before(decisions)
        # In step, a number that is remembered and not here was never given. Out of step it may
        # have been, in another store: it is not given twice.
        known = self._witness.number if broken else 0
        first = max(known, self.store.last_number()) + 1
        last = first + len(decisions) - 1
        chain = self._chained(decisions, first, head)
        end = chain[-1][1].hash
        stands = stands and in_step
        self._witness.note(last, head, end, stands=stands, grants=grants)
        try:
            with self.store.writing():
                for decision, receipt in chain:
                    self.store.append(decision, receipt)
        except BaseException as problem:
            if stands and self.store.head() == head:
                self._witness.settle(first - 1, head)
            elif isinstance(problem, OwnerError):
                problem.unchanged = "It was not recorded; until it is, nothing at all is allowed."
            raise
        self._witness.settle(last, end)

    def _broken(self, head: str, holds: bool) -> str:
        """Why the last decision in the store was not in force; empty if it was, or there was none.

        holds: the store has decisions.
        """
        if not holds:
            return LOST if self._witness.number else ""
        match self._witness.judge(head):
            case Step.IN_STEP:
                return ""
            case Step.INTERRUPTED:
                return "a change of consent was interrupted"
            case Step.UNKNOWN:
                return "the home was moved here, or what is remembered outside it was lost"
            case Step.OTHER:
                return LOST

    def mend(self) -> None:
        """After a crash between two steps that left no doubt, finish what is remembered."""
        if self._witness.is_settled():
            return
        with self.turn():
            head = self.store.head()
            if self._witness.judge(head) is Step.IN_STEP:
                self._witness.settle(self.store.last_number(), head)

    def decision(self, user_id: str, *, version: str, opted_in: bool) -> Decision:
        """A decision of now that names nothing yet; its place in the chain is given by `append`."""
        return Decision(
            number=0,
            user_id=user_id,
            event=DECISION,
            opted_in=opted_in,
            version=version,
            scopes=(),
            sources=(),
            folders=(),
            at=self._clock.now_s(),
            metadata={},
            disclosure="",
            previous="",
        )

    def suspension(self, user_id: str, reason: str) -> Decision:
        """The node's own word: off until the owner is asked again."""
        off = self.decision(user_id, version="", opted_in=False)
        return msgspec.structs.replace(off, event=SUSPENSION, metadata={"reason": str(reason)})

    def sign_later(self) -> None:
        """Sign what was recorded where there was no key: by a program that used the library."""
        if self._signer is None:
            return
        with self.lock:
            if not self.store.unsigned():
                return
            with self.turn(), self.store.writing():
                for receipt in self.store.unsigned():
                    if receipts.read(receipt.body, receipt.hash) is not None:
                        self.store.sign(self._signed(receipt, self._clock.now_s()))

    def _chained(
        self, decisions: Sequence[Decision], first: int, head: str
    ) -> list[tuple[Decision, Receipt]]:
        chain: list[tuple[Decision, Receipt]] = []
        for number, decision in enumerate(decisions, start=first):
            placed = msgspec.structs.replace(decision, number=number, previous=head)
            chain.append((placed, self._signed(receipts.write(placed), placed.at)))
            head = chain[-1][1].hash
        return chain

    def _signed(self, receipt: Receipt, now_s: float) -> Receipt:
        if self._signer is None:
            return receipt
        signature, key_doc = self._signer.sign(receipts.message(receipt.body))
        return replace(receipt, signature=signature, key_doc=key_doc, signed_at=now_s)
