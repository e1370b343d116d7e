"""Starts children from one thread that lives as long as this process.

Linux tells a child that its parent is gone when the thread ends that started it, be the process as
alive as ever. The node works in threads that come and go, and its children are to stay.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from subprocess import Popen

Start = Callable[[], "Popen[bytes]"]


class _Spawner:
    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Start, Future[Popen[bytes]]]] = queue.SimpleQueue()
        # A daemon: it ends with the process and not before.
        self._thread = threading.Thread(target=self._work, name="spawner", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False in a fork of the process, which has none of its threads."""
        return self._thread.is_alive()

    def start(self, start: Start) -> Popen[bytes]:
        started: Future[Popen[bytes]] = Future()
        self._asked.put((start, started))
        return started.result()

    def _work(self) -> None:
        while True:
            start, started = self._asked.get()
            try:
                started.set_result(start())
            except BaseException as problem:  # raised where it was asked for
                started.set_exception(problem)


_lock = threading.Lock()
_spawner: _Spawner | None = None


def spawn(start: Start) -> Popen[bytes]:
    """Call `start` in the thread that stays, and return or raise what it does."""
    global _spawner  # one thread of a process, made when it is first needed
    with _lock:
        if _spawner is None or not _spawner.alive:
            _spawner = _Spawner()
        spawner = _spawner
    return spawner.start(start)
