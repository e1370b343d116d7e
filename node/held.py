"""Processes of a round stopped where they are, made to go on, or ended: with all that they started.

A round's children are in process groups of their own, so that Ctrl-C reaches only their parent; a
signal to one group would leave the training running. So the table of processes is followed, from
the parent down: a parent that is stopped starts nothing more.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
from msgspec import Meta, Struct

from . import process_table

PID_MAX = 2**31 - 1
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STATE, _STARTED = 0, 19  # among the fields of a process's stat that follow its name
_ENDED = (b"Z", b"X")


class Worker(Struct, frozen=True):
    """A process by more than its number, which the system gives again."""

    pid: Annotated[int, Meta(gt=1, le=PID_MAX)]  # what lies below is the whole machine's
    # Ticks since the boot that is named, for a clock that is set moves all times of the wall;
    # without a boot (not on Linux), Unix seconds.
    created: Annotated[float, Meta(ge=0)]
    boot: Annotated[str, Meta(max_length=64)] = ""

    @classmethod
    def of(cls, pid: int) -> Worker | None:
        """None if it has ended."""
        started = _started(pid)
        return None if started is None else cls(pid, *started)

    def lives(self) -> bool:
        started = _started(self.pid)
        if started is None or started[1] != self.boot:
            return False
        return abs(started[0] - self.created) < 1.0


def _started(pid: int) -> tuple[float, str] | None:
    """When a process started, and in which boot; None if there is none that works."""
    if not 1 < pid <= PID_MAX:
        return None
    try:
        return _on_linux(pid) if sys.platform == "linux" else _elsewhere(pid)
    except (OSError, ValueError, psutil.Error):
        return None


def _on_linux(pid: int) -> tuple[float, str] | None:
    text = Path(f"/proc/{pid}/stat").read_bytes()
    fields = text[text.rindex(b")") + 2 :].split()  # a name may hold any byte
    if fields[_STATE] in _ENDED:
        return None
    return float(fields[_STARTED]), _BOOT.read_text(encoding="ascii").strip()


def _elsewhere(pid: int) -> tuple[float, str] | None:
    process = psutil.Process(pid)
    ended = process.status() == psutil.STATUS_ZOMBIE
    return None if ended else (process.create_time(), "")


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
