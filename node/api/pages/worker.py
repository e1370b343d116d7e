"""The one thread in which pages read and buttons act: the loop waits for no disk, and SQLite's
connections stay with the thread that opened them.

One at a time is also the bound: who asks for pages faster than they are made waits in a short
line, and is refused when it is full.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")
WAITING_MAX = 64  # pages and buttons that were asked for and not begun


class WorkerBusyError(Exception):
    """More is asked for than can wait."""


@dataclass(slots=True)
class _Job(Generic[T]):
    """One piece of work, and whom to wake when it is done."""

    work: Callable[[], T]
    loop: trio.lowlevel.TrioToken
    done: trio.Event = field(default_factory=trio.Event)
    result: T | None = None
    problem: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as problem:  # whatever it is, it is raised where it is waited for
            self.problem = problem
        with suppress(trio.RunFinishedError):  # the loop has ended, and with it whoever waited
            self.loop.run_sync_soon(self.done.set)


class Worker:
    """Starts its thread with the first piece of work; the thread ends with the process."""

    def __init__(self, meanwhile: Callable[[], bool] = lambda: False) -> None:
        """meanwhile: does a bit of what is due while nobody waits; False if there was nothing."""
        self._meanwhile = meanwhile
        self._jobs: queue.Queue[_Job[Any]] = queue.Queue(WAITING_MAX)
        self._thread: threading.Thread | None = None

    async def do(self, work: Callable[[], T]) -> T:
        """Have something done in the thread. Raises WorkerBusyError, or what `work` raises.

        Cancelled, it is not waited for; a thread cannot be stopped, so it is done all the same.
        """
        job = _Job(work, trio.lowlevel.current_trio_token())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise WorkerBusyError from None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pages", daemon=True)
            self._thread.start()
        await job.done.wait()
        if job.problem is not None:
            raise job.problem
        return job.result  # type: ignore[return-value]  # T may be None itself

    def _run(self) -> None:
        while True:
            self._jobs.get().run()
            while self._jobs.empty() and self._meanwhile():
                pass
