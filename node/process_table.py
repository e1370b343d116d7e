"""What the processes of this machine compute: this node's own, the owner's model server's, all.

One pass over the table of processes gives all three. On Linux it reads one small file for each,
which takes a third of what psutil takes; elsewhere psutil does.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_INTERPRETERS = ("python", "node", "java", "uv", "bun", "ray")
_WORDS = 4  # of a command line: an interpreter's program is among the first


@dataclass(frozen=True, slots=True)
class Row:
    """One process. cpu_s: of itself. reaped_s: of its children that have ended."""

    parent: int
    name: str
    cpu_s: float
    reaped_s: float = 0.0


Rows = Mapping[int, Row]


def rows(proc: Path = Path("/proc")) -> Rows:
    """All processes by id; one that ends meanwhile is left out."""
    return _linux(proc) if sys.platform == "linux" else _any()


def total_s() -> tuple[float, float]:
    """Seconds that all cores together were busy since the start of the machine, and all seconds."""
    times = psutil.cpu_times()
    # Linux counts a guest's time twice: as its own and as the user's.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    whole = sum(times) - guests
    # What a hypervisor took was nobody's work here.
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    return whole - idle, whole


def descendants(table: Rows, root: int) -> list[int]:
    """A process and all that it started, the elders first."""
    children = defaultdict(list)
    for pid, row in table.items():
        children[row.parent].append(pid)
    found = [root] if root in table else []
    for pid in found:
        found += [child for child in children[pid] if child != pid]
    return found


def cpu_s(table: Rows, pids: Iterable[int]) -> float:
    """What these and their children that have ended have computed."""
    return sum(table[pid].cpu_s + table[pid].reaped_s for pid in pids)


def at_work(
    before: Rows,
    now: Rows,
    names: Sequence[str],
    cpu_s_min: float,
    arguments: Callable[[int], Sequence[str]],
) -> str:
    """Which of the named programs computed so much since `before`; "" if none.

    arguments: of a process. An interpreter is called by the program that it runs.
    """
    used: dict[str, float] = defaultdict(float)
    for pid, row in now.items():
        past = before.get(pid)
        spent = row.cpu_s - (past.cpu_s if past and past.cpu_s <= row.cpu_s else 0.0)
        if spent > 0:
            called = _called(row.name, names)
            if not called and spent >= cpu_s_min and _called(row.name, _INTERPRETERS):
                words = (Path(word).name for word in arguments(pid)[:_WORDS])
                called = next(filter(None, (_called(word, names) for word in words)), "")
            if called:
                used[called] += spent
    most = max(used, key=lambda name: used[name], default="")
    return most if most and used[most] >= cpu_s_min else ""


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; none if it has ended or is another user's."""
    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def _called(word: str, names: Sequence[str]) -> str:
    """Which name a word begins with: the system cuts names off after 15 letters."""
    lowered = word.lower()
    # Every word begins with an empty one, which would hide the names after it.
    return next((name for name in names if name and lowered.startswith(name[:15].lower())), "")


def _linux(proc: Path) -> Rows:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    found = {}
    for entry in os.listdir(proc):  # noqa: PTH208 - a third of the time, each second
        if not entry.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            text = (proc / entry / "stat").read_bytes()
            # The name stands in brackets and may hold any byte, brackets too.
            opening, closing = text.index(b"("), text.rindex(b")")
            rest = text[closing + 2 :].split()
            user, system, waited_user, waited_system = map(int, rest[11:15])
            found[int(entry)] = Row(
                parent=int(rest[1]),
                name=text[opening + 1 : closing].decode(errors="replace"),
                cpu_s=(user + system) * tick_s,
                reaped_s=(waited_user + waited_system) * tick_s,
            )
    return found


def _any() -> Rows:
    found = {}
    for process in psutil.process_iter(["pid", "ppid", "name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is None:  # another user's
            continue
        reaped_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        row = Row(
            process.info["ppid"] or 0,
            process.info["name"] or "",
            times.user + times.system,
            reaped_s,
        )
        found[process.info["pid"]] = row
    return found
