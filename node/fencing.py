"""Keeps the tasks of a running node apart: one that fails is started again, and the others go on.

What makes a task fail often lasts (a full disk, a held database), so it waits longer each time,
and says the same thing once with all its places and then in one line: a log would fill the disk.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable

import trio

from . import crash

log = logging.getLogger(__name__)

Task = Callable[[], Awaitable[None]]
WAIT_S, WAIT_S_MAX = 5.0, 300.0


class Fence:
    """Around one task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._name = getattr(task, "__qualname__", str(task))
        self._wait_s = WAIT_S
        self._last = ""  # what it failed of last, since it has worked

    async def keep(self) -> None:
        """Run the task to its end, however often it fails."""
        while True:
            begun = trio.current_time()
            try:
                await self._task()
                return
            except Exception as problem:  # the top of a task: see the rules on errors
                if trio.current_time() - begun > self._wait_s:
                    self._worked()
                await self._failed(problem)

    async def every(self, seconds: float) -> None:
        """Run the task again and again, with a pause between."""
        while True:
            try:
                await self._task()
            except Exception as problem:  # the top of a task: see the rules on errors
                await self._failed(problem)
            else:
                self._worked()
                await trio.sleep(seconds)

    def _worked(self) -> None:
        self._wait_s, self._last = WAIT_S, ""

    async def _failed(self, problem: Exception) -> None:
        failure = _in_words(problem)
        places = "" if failure == self._last else f"\n{crash.at_length(problem)}"
        log.error("task failed task=%s problem=%s%s", self._name, failure, places)
        self._last = failure
        await trio.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, WAIT_S_MAX)


def _in_words(problem: Exception) -> str:
    """The error and its place; what the machine says of itself in full, for it quotes no prompt."""
    words = crash.in_short(problem)
    return f"{words}: {problem}" if isinstance(problem, OSError | sqlite3.Error) else words
