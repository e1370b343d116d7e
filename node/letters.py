"""What the running node does with the mailbox: each letter carried out once, answered when it can.

Another program may hold the database, and the disk may be full. So the database is read and
written in a thread, with a short wait; and an answer that cannot be written is kept until it can,
while its letter counts as carried out. Only a node that ends before that carries such letters out
again, in their order, which comes to the same: every order says how things are to be, not what is
to be added to them.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from .app import App
from .errors import OwnerError
from .mailbox import Fetch, Letter

log = logging.getLogger(__name__)

T = TypeVar("T")
LOOKS = 2  # at an unchanged file: two writings in one tick of the file system's clock look alike
BUSY_S = 1.0  # how long a thread waits for who holds the database; the end of the node waits for it


class Letters:
    """The orders of one home, as its running node carries them out."""

    def __init__(self, app: App, carry_out: Callable[[Letter], Awaitable[dict[str, Any]]]) -> None:
        self._app = app
        self._mailbox = app.mailbox
        self._mailbox.wait_at_most(BUSY_S)
        self._carry_out = carry_out
        self._at_work: set[int] = set()  # until the answer is written
        self._answers: dict[int, dict[str, Any]] = {}  # not yet written
        self._problem = ""  # of the mailbox, since all went well: it is logged once
        self._well = True
        self._stamp: object = None  # of the mailbox's files, as they were before the last look
        self._same = 0  # looks since they changed

    async def look(self, fetches: trio.Nursery | None = None) -> None:
        """Carry out what waits. A fetch takes minutes, and nothing may wait for it.

        Answers are written here alone: a letter read as waiting cannot have been answered since.
        While nothing is at work and nobody writes, the files are not even opened.
        """
        if self._unchanged():
            return
        self._well = True
        await self._write()
        for letter in await self._ask(self._mailbox.waiting) or ():
            if letter.id in self._at_work:
                continue
            if isinstance(letter.order, Fetch) and fetches is not None:
                self._at_work.add(letter.id)
                fetches.start_soon(self._fetch, letter)
            else:
                self._answers[letter.id] = await self._tried(letter)
                self._at_work.add(letter.id)
        await self._write()
        if self._well:
            self._problem = ""

    def _unchanged(self) -> bool:
        """True if there is nothing to do, by the size and the time of the files alone."""
        stamp = self._mailbox.stamp()
        self._same = self._same + 1 if stamp == self._stamp and self._well else 0
        self._stamp = stamp
        return self._same > LOOKS and not self._at_work and not self._answers

    async def _fetch(self, letter: Letter) -> None:
        """A fetch fails alone, whatever it fails of: the owner can ask for it again."""
        try:
            answer = await self._tried(letter)
        except Exception as problem:  # the top of a task: see the rules on errors
            log.exception("order failed letter=%d", letter.id)
            answer = {"error": f"it failed: {problem}"}
        self._answers[letter.id] = answer

    async def _tried(self, letter: Letter) -> dict[str, Any]:
        """Carry an order out; one that is refused is answered too, or it would block all others.

        Any other failure goes to the fence, and the letter stays: a retraction is never given up.
        """
        try:
            return await self._carry_out(letter)
        except (OwnerError, ValueError, OSError) as problem:
            log.warning("order failed letter=%d reason=%s", letter.id, type(problem).__name__)
            return {"error": f"it failed: {problem}"}

    async def _write(self) -> None:
        """Write all answers at once: what a crash leaves unwritten is then the end of a row."""
        if not self._answers:
            return
        answers, now_s = dict(self._answers), self._app.clock.now_s()
        if await self._ask(lambda: self._mailbox.answer_all(answers, now_s)):
            for letter in answers:
                del self._answers[letter]
            self._at_work -= set(answers)

    async def _ask(self, work: Callable[[], T]) -> T | None:
        """The mailbox's answer, or None if it cannot be used now."""
        try:
            return await self._app.adapters.in_thread(work)
        except sqlite3.Error as problem:
            if str(problem) != self._problem:
                log.warning("mailbox cannot be used, tried again problem=%s", problem)
            self._problem, self._well = str(problem), False
            return None
