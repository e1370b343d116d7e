"""What capture costs: an offer on the hot path, a record into the corpus, an import of transcripts.

    python tests/bench/capture.py [--json FILE|-] [--lines N] [--records N]

offer_us_p50, offer_us_p99  one `CaptureQueue.offer` while 8 threads offer at once
off_us                      the caller's check with capture off, mean of a million
records_per_s               through the queue into the corpus, durable, scrubbing apart (CPU time)
records_per_s_wall          the same by the clock on the wall
untagged_per_s              the same without the domain tagger
import_lines, import_s      generated Claude Code transcripts into the corpus, embedding apart
import_cpu_s
again_s                     the same import a second time, which adds nothing
known_s, known_mb           reading which records are known, and what that holds in memory
naive_json_s                json.loads of the same lines, for a ratio that holds on another machine
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("GROOVE_STATE", tempfile.mkdtemp(prefix="groove-state-"))

from node.capture import (  # noqa: E402
    CaptureItem,
    CaptureQueue,
    CaptureSession,
    ConsentManager,
    DomainTagger,
    PIIScrubber,
    TrainingCorpus,
    TrainingDataIntake,
)

USER = "f8e7d6c5b4a3f8e7d6c5b4a3f8e7d6c5"
THREADS = 8
TEXT = "Write a Python decorator that caches results with a time to live. "


class Untouched(PIIScrubber):
    """Scrubbing apart: what goes in comes out."""

    def scrub(self, text: str) -> str:
        return text

    def scrub_value(self, value: Any) -> Any:
        return value


class Untagged(DomainTagger):
    def tag(self, text: str) -> str:
        return "general"


def consent(home: Path) -> ConsentManager:
    manager = ConsentManager(home / "consent.db")
    manager.record_consent(USER, opted_in=True, consent_version="1.0")
    return manager


def queue_of(home: Path, scrubber: PIIScrubber, tagger: DomainTagger) -> CaptureQueue:
    manager, corpus = consent(home), TrainingCorpus(home / "training_data")

    def open_session(session_id: str) -> CaptureSession:
        return CaptureSession(USER, session_id, manager, corpus, scrubber, tagger)

    return CaptureQueue(open_session, on_close=corpus.close)


def offers(home: Path, calls: int = 5_000) -> tuple[float, float]:
    """(p50, p99) in µs of offers by 8 threads at once, the worker scrubbing and writing beside."""
    queue = queue_of(home, PIIScrubber(), DomainTagger()).start()
    taken: list[list[int]] = [[] for _ in range(THREADS)]
    together = threading.Barrier(THREADS)

    def caller(number: int) -> None:
        item = CaptureItem(f"session-{number}", TEXT * 8, "prompt", {"model_name": "bench"})
        mine = taken[number]
        together.wait()
        for _ in range(calls):
            begun = time.perf_counter_ns()
            queue.offer(item)
            mine.append(time.perf_counter_ns() - begun)
            time.sleep(0)  # whoever captures does something else between two prompts

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close(0)
    queue.close(30)
    every = sorted(each / 1e3 for mine in taken for each in mine)
    return every[len(every) // 2], every[int(len(every) * 0.99)]


def off(loops: int = 1_000_000) -> float:
    from node import gate

    begun = time.perf_counter()
    for _ in range(loops):
        if (queue := gate.queue) is not None:
            queue.offer({})
    return (time.perf_counter() - begun) / loops * 1e6


def throughput(home: Path, tagger: DomainTagger, records: int) -> tuple[float, float]:
    """(records per CPU-second, per second) from the queue to durable lines."""
    queue = queue_of(home, Untouched(), tagger)
    for number in range(records):
        item = CaptureItem(f"session-{number // 4}", TEXT * 2, "prompt", {"model_name": "bench"})
        while not queue.offer(item):  # full: the worker is begun, and makes room
            if not queue.running:
                queue.start()
            time.sleep(0.001)
    cpu, wall = time.process_time(), time.perf_counter()
    before = queue.counters.captured
    if not queue.running:
        queue.start()
    queue.close(300)
    done = queue.counters.captured - before
    return done / (time.process_time() - cpu), done / (time.perf_counter() - wall)


def transcripts(root: Path, lines: int, per_file: int = 400) -> int:
    """Write Claude Code transcripts of about so many lines; asks, answers, tool calls, results."""
    rng = random.Random(7)
    words = [
        "cache",
        "token",
        "parser",
        "socket",
        "thread",
        "buffer",
        "schema",
        "index",
        "query",
        "retry",
    ]
    written = 0
    for file in range(-(-lines // per_file)):
        folder = root / f"-work-project-{file % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        session, parent = str(uuid.UUID(int=rng.getrandbits(128))), None
        with (folder / f"{session}.jsonl").open("w") as out:
            for number in range(per_file):
                line = _line(rng, words, session, parent, number, f"/work/project-{file % 5}")
                parent = line["uuid"]
                out.write(json.dumps(line) + "\n")
                written += 1
    return written


def _line(
    rng: random.Random, words: list[str], session: str, parent: str | None, number: int, cwd: str
) -> dict[str, Any]:
    text = " ".join(rng.choices(words, k=40))
    content: Any
    match number % 4:
        case 0:
            kind, content = "user", f"Please mend the {text}"
        case 1:
            kind, content = (
                "assistant",
                [
                    {"type": "text", "text": f"I look at it first: {text}"},
                    {
                        "type": "tool_use",
                        "id": f"t{number}",
                        "name": "Read",
                        "input": {"path": text},
                    },
                ],
            )
        case 2:
            result = {"type": "tool_result", "tool_use_id": f"t{number - 1}", "content": text * 8}
            kind, content = "user", [result]
        case _:
            kind, content = "assistant", [{"type": "text", "text": f"Done: {text * 2}"}]
    message = {"role": kind, "content": content, "model": "claude-sonnet-4-5"}
    return {
        "parentUuid": parent,
        "isSidechain": False,
        "userType": "external",
        "cwd": cwd,
        "sessionId": session,
        "version": "2.0.14",
        "gitBranch": "main",
        "type": kind,
        "message": message,
        "uuid": str(uuid.UUID(int=rng.getrandbits(128))),
        "timestamp": f"2026-04-{1 + number % 28:02d}T12:{number // 60 % 60:02d}:{number % 60:02d}Z",
    }


def imports(home: Path, lines: int) -> dict[str, float]:
    from node.capture.sources.claude_code import ClaudeCode
    from node.capture.sources.held import HeldRecords
    from node.capture.sources.importing import import_sessions

    root = home / "transcripts"
    lines = transcripts(root, lines)
    manager = consent(home)
    manager.allow(USER, sources=["claude-code"], folders=[Path("/work")])
    corpus = TrainingCorpus(home / "training_data")
    intake = TrainingDataIntake(manager, corpus, PIIScrubber(), DomainTagger())
    claude = ClaudeCode()

    def bring() -> int:
        files = claude.files(root)
        found = (session for path in files for session in claude.read(path).sessions)
        return import_sessions(found, intake, USER, claude.name).records

    records, wall, cpu = timed(bring)
    none, again, _ = timed(bring)
    assert records >= lines // 2 and none == 0, (records, none)
    tracemalloc.start()
    held = HeldRecords(corpus)
    _, read_s, _ = timed(lambda: held.catch_up() or 0)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    every = [line for path in claude.files(root) for line in path.read_bytes().splitlines()]
    _, naive, _ = timed(lambda: len([json.loads(line) for line in every]))
    return {
        "import_lines": lines,
        "import_records": records,
        "import_s": round(wall, 2),
        "import_cpu_s": round(cpu, 2),
        "again_s": round(again, 2),
        "known_s": round(read_s, 2),
        "known_mb": round(held_bytes / 2**20, 2),
        "naive_json_s": round(naive, 2),
    }


def timed(work: Callable[[], int]) -> tuple[int, float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    done = work()
    return done, time.perf_counter() - wall, time.process_time() - cpu


def measure(lines: int, records: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        off_us = off()
        p50, p99 = offers(home / "offers")
        cpu_rate, wall_rate = throughput(home / "tagged", DomainTagger(), records)
        untagged, _ = throughput(home / "untagged", Untagged(), records)
        return {
            "offer_us_p50": round(p50, 2),
            "offer_us_p99": round(p99, 2),
            "offer_threads": THREADS,
            "off_us": round(off_us, 4),
            "records_per_s": round(cpu_rate),
            "records_per_s_wall": round(wall_rate),
            "untagged_per_s": round(untagged),
            **(imports(home / "import", lines) if lines else {}),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--lines", type=int, default=100_000, help="of transcripts; 0 for none")
    parser.add_argument("--records", type=int, default=50_000)
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.lines, arguments.records), indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
