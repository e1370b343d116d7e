"""What the running node costs a machine: start, idle memory and CPU, and a call of capture.

    python tests/bench/daemon.py [--json FILE|-] [--idle SECONDS] [--runs N]

start_s           from starting the process to listening, consent for `capture` given; median of N
idle_rss_mb       resident memory after that, no model loaded; largest of the runs
idle_cpu_pct      of one core, over the idle time; median of N
watching_rss_mb   the same two with a source allowed, and 300 transcripts of it here
watching_cpu_pct
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
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))


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


def one_run(home: Path, idle_s: float) -> tuple[float, float, float]:
    """Start a node, let it idle, stop it: (start_s, rss_mb, cpu_pct)."""
    began = time.perf_counter()
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
        start_s = time.perf_counter() - began
        process = psutil.Process(node.pid)
        time.sleep(2)  # what a start leaves to do
        before = sum(process.cpu_times()[:2])
        time.sleep(idle_s)
        cpu_pct = 100 * (sum(process.cpu_times()[:2]) - before) / idle_s
        return start_s, process.memory_info().rss / 2**20, cpu_pct
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=20)


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
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.idle, arguments.runs), indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
