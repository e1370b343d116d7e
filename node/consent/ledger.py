"""Decisions on their way into the consent store: in turn, chained, signed, and remembered outside.

`node.consent` knows what a decision means; this knows how one is written, so that a crash at any
step leaves a store whose last word is certain or which counts as off. See `witness`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from node.clock import Clock
from node.errors import OwnerError

from . import receipts
from .receipts import DECISION, SUSPENSION, Decision, Receipt, Signer
from .store import EMPTY, Chain, ConsentGoneError, ConsentStore, Row
from .witness import Step, Witness, WitnessBusyError

log = logging.getLogger(__name__)

LOST = "the store was replaced, by a backup or by hand"


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
        self._is_gone = False  # said in the log once, not at every text

    # ---- reading ---------------------------------------------------------------------------------

    def latest(self, user_id: str) -> tuple[Row, Step] | None:
        """A user's last decision, and how the store stands; a withdrawal is not judged."""
        with self.lock:
            chain = self._chain()
            row = chain.latest.get(user_id)
            if row is None:
                return None
            if not row.decision.opted_in or self._judge(chain) is Step.IN_STEP:
                return row, Step.IN_STEP
            chain, step = self._settled()
            row = chain.latest.get(user_id)
            return (row, step) if row else None

    def in_force(self) -> list[Decision]:
        """Each user's last decision; none if the store is not the one that was written last."""
        with self.lock:
            chain, step = self._settled()
        if step is not Step.IN_STEP:
            return []
        return [row.decision for row in chain.latest.values() if row.proven]

    def unnoted(self) -> str:
        """The folder where this process could not note its last decision, nor remove the note of
        before, which a backup that is put back may fit; empty if there is none.
        """
        return str(self._witness.folder) if self._witness.outdated else ""

    def problems(self, origin: bytes | None) -> list[str]:
        """What is wrong with the receipts; origin: of the node that must have signed."""
        with self.lock:
            step = self._settled()[1]
            kept = self.store.receipts()
            differing = self.store.differing()
        found = receipts.problems(kept, origin)
        found += [f"receipt {n}: the row beside it says something else" for n in differing]
        if step is not Step.IN_STEP and (kept or self._witness.number):
            found.append(f"the last receipt: {step.value}")
        return found

    def _chain(self) -> Chain:
        """What the store says: nothing, once it was taken away."""
        try:
            chain, self._is_gone = self.store.chain(), False
        except ConsentGoneError as problem:
            if not self._is_gone:
                log.warning("consent is off reason=%s", problem.what)
            chain, self._is_gone = EMPTY, True
        return chain

    def _judge(self, chain: Chain) -> Step:
        step = self._witness.judge(chain.head)
        return Step.EDITED if step is Step.IN_STEP and not chain.sound else step

    def _settled(self) -> tuple[Chain, Step]:
        """What the store says, and how it stands.

        Out of step, it is looked at again when nobody is writing: between the steps of a decision
        the store and what is remembered do not agree.
        """
        chain = self._chain()
        step = self._judge(chain)
        if step is not Step.IN_STEP and not self._in_turn:
            with suppress(WitnessBusyError), self.turn():  # busy for seconds: then it is off
                chain = self._chain()
                step = self._judge(chain)
        return chain, step

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
        held = self.store.chain()
        head, users = held.head, held.latest.values()
        broken = self.broken()
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
            if stands and self._chain().head == head:
                self._witness.settle(first - 1, head)
            elif isinstance(problem, OwnerError):
                problem.unchanged = "It was not recorded; until it is, nothing at all is allowed."
            raise
        self._witness.settle(last, end)

    def broken(self) -> str:
        """Why the last decision is not in force, in turn; empty if it is, or there was none."""
        chain = self._chain()
        if not chain.latest:
            return LOST if self._witness.number else ""
        match self._judge(chain):
            case Step.IN_STEP:
                return ""
            case Step.INTERRUPTED:
                return "a change of consent was interrupted"
            case Step.UNKNOWN:
                return "the home was moved here, or what is remembered outside it was lost"
            case Step.OTHER:
                return LOST
            case Step.EDITED:
                return "a row was edited by hand"

    def mend(self) -> None:
        """After a crash between two steps that left no doubt, finish what is remembered."""
        if self._witness.is_settled():
            return
        with self.turn():
            head = self.store.chain().head
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
