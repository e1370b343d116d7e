"""Processes of a round stopped where they are, made to go on, or ended: with all that they started.

A round's children are in process groups of their own, so that Ctrl-C reaches only their parent; a
signal to one group would leave the training running. So the table of processes is followed, from
the parent down: a parent that is stopped starts nothing more.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import psutil
from msgspec import Struct

from . import process_table


class Worker(Struct, frozen=True):
    """A process by more than its number, which the system gives again."""

    pid: int
    created: float  # as the system tells it

    @classmethod
    def of(cls, pid: int) -> Worker | None:
        """None if it has ended."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def lives(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1.0
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


def hold(root: int) -> set[int]:
    """Stop a process and all below it; their ids. What starts meanwhile is stopped too."""
    stopped: set[int] = set()
    while fresh := [pid for pid in _tree(root) if pid not in stopped]:
        for pid in fresh:
            _signal(pid, signal.SIGSTOP)
        stopped.update(fresh)
    return stopped


def release(root: int) -> None:
    """Let them go on, the youngest first: a parent finds its children at work."""
    for pid in reversed(_tree(root)):
        _signal(pid, signal.SIGCONT)


def end(root: int) -> None:
    """End them at once; what they had reached is on disk."""
    for pid in hold(root):  # first, or a parent could start another
        _signal(pid, signal.SIGKILL)


async def deliver_end(process: Any) -> None:
    """`end`, as trio.run_process wants it of what is cancelled."""
    end(process.pid)


def _tree(root: int) -> list[int]:
    return process_table.descendants(process_table.rows(), root)


def _signal(pid: int, which: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, or is no longer ours
        os.kill(pid, which)
