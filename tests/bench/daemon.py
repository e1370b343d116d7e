"""What the running node costs a machine: start, idle memory and CPU, and a call of capture.

    python tests/bench/daemon.py [--json FILE|-] [--idle SECONDS] [--runs N] [--only peers20]

start_s           from starting the process to listening, consent for `capture` given; median of N
idle_rss_mb       resident memory after that, no model loaded; largest of the runs
idle_cpu_pct      of one core, over the idle time; median of N
watching_rss_mb   the same two with a source allowed, and 300 transcripts of it here
watching_cpu_pct
peers20.cpu_pct     idle with 20 connected peers in another process, each with a published table
peers20.rss_mb      and no peer but this one, so that all their reconciliations are with it
peers20.kb_per_min  both directions, 10^3 bytes, with the headers of TCP and IP
peers20.payload_kb_per_min  the same without the headers
capture_us_p50    one `CaptureQueue.offer` with capture on, from one thread
capture_us_p99
off_us            the caller's check with capture off, mean of a million
bare_start_s      a Python that imports nothing, for a ratio that holds on another machine
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import trio

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support_swarm import traffic  # noqa: E402

PEERS = 20
PEERS_SETTLE_S = 45.0  # tables are published and spread, and the first reconciliations are over
PEERS_IDLE_S_MIN = 60.0


def groove(home: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "node.cli", *arguments]
    subprocess.run(command, env=environment(home), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "GROOVE_HOME": str(home),
        "GROOVE_STATE": str(home.parent / "state"),
        "CLAUDE_CONFIG_DIR": str(home.parent / "claude"),
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def running(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node that listens; ended at the end."""
    node = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "run", "--listen", "/ip4/127.0.0.1/tcp/0"],
        env=environment(home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert node.stdout is not None
        while b"listening" not in node.stdout.readline():
            if node.poll() is not None:
                raise SystemExit("the node ended before it listened")
        yield node
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=20)


def idling(process: psutil.Process, idle_s: float) -> tuple[float, float]:
    """(rss_mb, cpu_pct) of a process over this time."""
    before = sum(process.cpu_times()[:2])
    time.sleep(idle_s)
    cpu_pct = 100 * (sum(process.cpu_times()[:2]) - before) / idle_s
    return process.memory_info().rss / 2**20, cpu_pct


def one_run(home: Path, idle_s: float) -> tuple[float, float, float]:
    """Start a node, let it idle, stop it: (start_s, rss_mb, cpu_pct)."""
    began = time.perf_counter()
    with running(home) as node:
        start_s = time.perf_counter() - began
        time.sleep(2)  # what a start leaves to do
        return start_s, *idling(psutil.Process(node.pid), idle_s)


def with_peers(home: Path, idle_s: float) -> dict[str, float | int | None]:
    """Let a node idle while it is connected to peers."""
    with running(home) as node:
        address = json.loads((home / "run.json").read_text())["addresses"][0]
        peers = subprocess.Popen(
            [sys.executable, __file__, "--peers-of", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert peers.stdin is not None and peers.stdout is not None
            if not peers.stdout.readline():
                raise SystemExit("the peers did not start")
            time.sleep(PEERS_SETTLE_S)
            before = traffic(node.pid)
            rss_mb, cpu_pct = idling(psutil.Process(node.pid), idle_s)
            after = traffic(node.pid)
            peers.stdin.close()
            peers.wait(timeout=60)
        finally:
            peers.kill()
            peers.wait()
    figures: dict[str, float | int | None] = {
        "peers": after.connections if after else None,
        "cpu_pct": round(cpu_pct, 2),
        "rss_mb": round(rss_mb, 1),
        "kb_per_min": None,
        "payload_kb_per_min": None,
    }
    if before is not None and after is not None:
        per_min = 60 / idle_s / 1000
        figures["kb_per_min"] = round((after.whole - before.whole) * per_min, 1)
        figures["payload_kb_per_min"] = round((after.payload - before.payload) * per_min, 1)
    return figures


async def be_peers(address: str) -> None:
    """Be peers of a node until the standard input ends."""
    import gossip_kit
    from support_stack import Stack

    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as nodes:
            stacks = [Stack(f"peer-{i}", Path(folder) / str(i), folder) for i in range(PEERS)]
            for stack in stacks:
                await nodes.enter_async_context(stack.running())
                stack.knows(address)
            with trio.fail_after(60):
                while not all(stack.links for stack in stacks):
                    await trio.sleep(0.1)
            for stack in stacks:
                await stack.driver.publish(tuple(map(gossip_kit.card, range(5))), (), ())
            print("connected", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)


def capture_calls(home: Path, calls: int = 20_000) -> tuple[float, float, float]:
    """(p50, p99) of an offer with capture on, and the mean cost of the check with it off; in µs."""
    os.environ.update(environment(home))
    from node import gate

    assert gate.queue is None
    count = 1_000_000
    began = time.perf_counter()
    for _ in range(count):
        if (queue := gate.queue) is not None:
            queue.offer({})
    off_us = (time.perf_counter() - began) / count * 1e6

    groove(home, "consent", "grant", "capture", "--yes")
    on = gate.capture_gate()
    assert on is not None
    item = {
        "session_id": "bench",
        "content": "Write a Python decorator that caches results with a time to live. " * 8,
        "content_type": "prompt",
        "metadata": {"model_name": "bench"},
    }
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        on.offer(item)
        taken.append((time.perf_counter() - began) * 1e6)
        time.sleep(0)  # the worker's turn: the caller of a real node is not in a tight loop
    gate.close_gate(5)
    taken.sort()
    return taken[len(taken) // 2], taken[int(len(taken) * 0.99)], off_us


def watching(home: Path, idle_s: float, runs: int) -> list[tuple[float, float, float]]:
    """`one_run` with Claude Code allowed, and its transcripts here."""
    for number in range(300):
        folder = home.parent / "claude" / "projects" / f"-work-{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        row = {"type": "user", "uuid": f"u{number}", "sessionId": f"s{number}", "cwd": "/work"}
        message = {"role": "user", "content": "Write a decorator that caches."}
        (folder / f"s{number}.jsonl").write_text(json.dumps({**row, "message": message}) + "\n")
    sources = ("--source", "claude-code", "--folder", str(home.parent))
    groove(home, "consent", "grant", "capture", *sources, "--yes")
    return [one_run(home, idle_s) for _ in range(runs)]


def bare_start() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


def measure_peers(idle_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        groove(home, "init")
        return with_peers(home, max(idle_s, PEERS_IDLE_S_MIN))


def measure(idle_s: float, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        groove(home, "init")
        p50, p99, off = capture_calls(home)
        results = [one_run(home, idle_s) for _ in range(runs)]
        watched = watching(home, idle_s, runs)
    return {
        "start_s": round(statistics.median(r[0] for r in results), 3),
        "idle_rss_mb": round(max(r[1] for r in results), 1),
        "idle_cpu_pct": round(statistics.median(r[2] for r in results), 2),
        "watching_rss_mb": round(max(r[1] for r in watched), 1),
        "watching_cpu_pct": round(statistics.median(r[2] for r in watched), 2),
        "peers20": measure_peers(idle_s),
        "capture_us_p50": round(p50, 2),
        "capture_us_p99": round(p99, 2),
        "off_us": round(off, 4),
        "bare_start_s": round(statistics.median(bare_start() for _ in range(5)), 3),
        "runs": runs,
        "idle_s": idle_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of idling in each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["peers20"], help="this alone")
    parser.add_argument("--peers-of", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peers_of:
        trio.run(be_peers, arguments.peers_of)
        return
    if arguments.only:
        figures = {"peers20": measure_peers(arguments.idle), "idle_s": arguments.idle}
    else:
        figures = measure(arguments.idle, arguments.runs)
    text = json.dumps(figures, indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
