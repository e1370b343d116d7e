"""10,000 requests at 50 at a time with faults: nothing leaks, and nothing fails without a cause.

Part of `serve.py`. Of the requests, clients drop one in ten in mid answer, one in ten is no request
at all, the upstream fails one in ten before and one in twenty after its first byte, and so on: see
KINDS. Consent for capture is given, so each answer that was accepted is a session in the end. What
the node holds (file descriptors, tasks, memory) is counted after the first thousand and at the end.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import trio  # noqa: E402
from serve_load import Child, Client, Stand, asked, end  # noqa: E402

from node.app import App  # noqa: E402

AT_ONCE = 50
WARM = 1000  # requests after which the node holds what it will hold
KINDS = {  # share of the requests
    "named": 0.25,
    "streamed": 0.15,
    "passed_on": 0.10,
    "aborted": 0.10,
    "malformed": 0.10,
    "upstream_error": 0.10,
    "upstream_break": 0.05,
    "backend_error": 0.05,
    "backend_break": 0.05,
    "refused_leaf": 0.05,
}
FDS_GROWTH_MAX = 20  # idle connections to the upstream that are kept
LOST = ("recorder", "recorder_busy", "recorder_full", "capture_full")  # answers not recorded
RSS_GROWTH_MB_MAX = 60.0  # of what allocators keep


def faults(where: Stand, node: Child, app: App, requests: int) -> dict[str, Any]:
    """Figures; `ok` is the verdict."""
    rng = random.Random(8)
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=requests)
    warm = min(WARM, requests // 2)
    got: Counter[str] = Counter()
    begun_s = time.perf_counter()
    trio.run(_all, where, kinds[:warm], 0, got)
    before = _settled(node)
    trio.run(_all, where, kinds[warm:], warm, got)
    after = _settled(node)
    took_s = time.perf_counter() - begun_s
    accepted = sum(got[f"{kind} 200"] for kind in ("named", "streamed", "passed_on"))
    accepted += got["refused_leaf 200"]
    unanswered = {key: n for key, n in got.items() if key.endswith(" 500")}
    leaks = {
        "fds": after["fds"] - before["fds"],
        "tasks": after["tasks"] - before["tasks"],
        "rss_mb": round(after["rss_mb"] - before["rss_mb"], 1),
    }
    lost = sum(after["failures"].get(cause, 0) for cause in LOST)
    end(node.process)  # what is still open is closed, and what waits is written
    sessions = len(app.corpus.read_sessions().sessions)
    return {
        "requests": requests,
        "seconds": round(took_s, 1),
        "got": dict(sorted(got.items())),
        "leaks": leaks,
        "rss_mb": after["rss_mb"],
        "failures": after["failures"],
        "fallbacks": after["fallbacks"],
        "aborted": after["aborted"],
        "streams": after["streams"],
        "accepted": accepted,
        "sessions": sessions,
        "not_recorded": lost,
        "ok": not unanswered
        and after["streams"] == 0
        and leaks["fds"] <= FDS_GROWTH_MAX
        and leaks["tasks"] <= 2
        and leaks["rss_mb"] <= RSS_GROWTH_MB_MAX
        and not lost
        and sessions >= accepted,
    }


async def _all(where: Stand, kinds: list[str], start: int, got: Counter[str]) -> None:
    left = iter(enumerate(kinds, start))

    async def work() -> None:
        client = Client(where.node)
        for number, kind in left:
            got[f"{kind} {await _one(client, kind, number)}"] += 1
        await client.close()

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work)


async def _one(client: Client, kind: str, number: int) -> int:
    """The status of one request; 0 if it was broken off."""
    prompt = f"Write function {number} of module {number * 7919 % 10_007}"
    abort: int | None = None
    match kind:
        case "named":
            body: Any = asked("groove/chassis", prompt, "1/3/1", stream=False)
        case "streamed":
            body = asked("groove/chassis", prompt, "1/3/1")
        case "passed_on":
            body = asked("other", prompt, "1/3/1")
        case "aborted":
            name = "groove/chassis" if number % 2 else "other"
            body, abort = asked(name, prompt, "1/50/20"), 40
        case "malformed":
            body = (b"{", b'{"model": 3}', b'{"model": "groove/auto", "messages": "x"}')[number % 3]
        case "upstream_error" | "upstream_break":
            body = asked("other", prompt, kind.removeprefix("upstream_"))
        case "backend_error" | "backend_break":
            fails = kind.removeprefix("backend_")
            body = asked("groove/chassis", prompt, fails, stream=number % 2 == 0)
        case _:
            body = asked("groove/refused", prompt, "1/3/1", stream=False)
    try:
        with trio.fail_after(30):
            return (await client.post(body, abort_after=abort)).status
    except (ConnectionError, trio.BrokenResourceError, trio.TooSlowError):
        await client.close()
        return 0


def _settled(node: Child) -> dict[str, Any]:
    """What it holds once nothing is open that would end by itself."""
    found = node.ask()
    for _ in range(20):
        time.sleep(0.5)
        found, last = node.ask(), found
        if (found["tasks"], found["fds"]) == (last["tasks"], last["fds"]):
            break
    return found
