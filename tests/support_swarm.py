"""Swarms of worker processes, and what they cost: for the measurements and the soak."""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

WORKER = Path(__file__).parent / "swarm_worker.py"
HEADERS_BYTES = 52  # of a segment: IPv4, TCP, and its timestamps

Told = dict[str, Any]


class Worker:
    """One process of nodes. told: where all of its lines go, with itself."""

    def __init__(
        self,
        run: str,
        folder: Path,
        names: Iterable[str],
        told: queue.Queue[Told],
        *,
        links: int = 8,
        prefix: tuple[str, ...] = (),
    ) -> None:
        command = [*prefix, sys.executable, str(WORKER), run, str(folder), "--links", str(links)]
        self.names = list(names)
        self.process = subprocess.Popen(
            [*command, *self.names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder.parent / f"{folder.name}.log").open("ab"),
            text=True,
        )
        self._told = told
        threading.Thread(target=self._read, daemon=True).start()

    def order(self, at: str, do: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"at": at, "do": do, **more}) + "\n")
        self.process.stdin.flush()

    def cpu_s(self) -> float:
        return float(sum(psutil.Process(self.process.pid).cpu_times()[:2]))

    def stop(self) -> None:
        """End it in order, as far as it can be."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=30)
        except (subprocess.TimeoutExpired, OSError):
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._told.put(json.loads(line))


class Swarm:
    """Nodes by name, in as many processes as their names are given in groups."""

    def __init__(self, run: str, folder: Path, groups: Iterable[list[str]], links: int = 8) -> None:
        self.told: queue.Queue[Told] = queue.Queue()
        self.addresses: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self.workers = [
            Worker(run, folder / group[0], group, self.told, links=links) for group in groups
        ]
        self.of = {name: worker for worker in self.workers for name in worker.names}
        for told in self.wait("up", len(self.of), 120):
            self.addresses[told["at"]] = told["address"]
            self.origins[told["at"]] = told["origin"]

    def order(self, at: str, do: str, **more: Any) -> None:
        self.of[at].order(at, do, **more)

    def wait(
        self,
        what: str,
        count: int,
        limit_s: float,
        fits: Callable[[Told], bool] = lambda told: True,
    ) -> list[Told]:
        """The next so many lines of this kind; fewer if they do not come in time."""
        found: list[Told] = []
        deadline = time.monotonic() + limit_s
        while len(found) < count and (left := deadline - time.monotonic()) > 0:
            try:
                told = self.told.get(timeout=left)
            except queue.Empty:
                break
            if told["told"] == what and fits(told):
                found.append(told)
        return found

    def ask(self, what: str, limit_s: float = 60) -> dict[str, Told]:
        """What each node answers."""
        for name in self.of:
            self.order(name, what)
        return {told["at"]: told for told in self.wait(what, len(self.of), limit_s)}

    def linked(self, at_least: int, limit_s: float = 120) -> None:
        """Wait until each node has so many links."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if all(told["links"] >= at_least for told in self.ask("links").values()):
                return
            time.sleep(0.5)
        raise SystemExit(f"not every node had {at_least} links within {limit_s:.0f} s")

    def cpu_s(self) -> float:
        """CPU seconds of all processes."""
        return sum(worker.cpu_s() for worker in self.workers)

    def sent_bytes(self) -> int | None:
        """What all of them have sent over what is open now, with headers."""
        found = [traffic(worker.process.pid) for worker in self.workers]
        if None in found:
            return None
        return sum(each.sent for each in found if each is not None)

    def close(self) -> None:
        threads = [threading.Thread(target=worker.stop) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Traffic:
    """Bytes over a process's open TCP connections, from the kernel's counters.

    payload: both directions; whole: with the headers of TCP and IP; sent: one direction, with them.
    """

    def __init__(self, lines: list[str]) -> None:
        self.connections = len(lines)
        self._text = "\n".join(lines)
        self.payload = self._sum("bytes_sent") + self._sum("bytes_received")
        segments = self._sum("segs_out") + self._sum("segs_in")
        self.whole = self.payload + HEADERS_BYTES * segments
        self.sent = self._sum("bytes_sent") + HEADERS_BYTES * self._sum("segs_out")

    def _sum(self, name: str) -> int:
        return sum(map(int, re.findall(rf"\b{name}:(\d+)", self._text)))


def traffic(pid: int) -> Traffic | None:
    """None where there is no `ss`."""
    if shutil.which("ss") is None:
        return None
    shown = subprocess.run(["ss", "-tinpOH"], capture_output=True, text=True, check=True).stdout
    return Traffic([line for line in shown.splitlines() if f"pid={pid}," in line])
