"""How long each page of the dashboard takes at 100,000 sessions and 500 leaves: of `serve.py`.

The home is that of `big_home.py`, in a folder that is kept if one is named. Each page is asked for
some times; the first time, with nothing read yet, is told apart.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import big_home  # noqa: E402
import trio  # noqa: E402
from serve_load import Target, child  # noqa: E402

TIMES = 5
PAGES = ("/", "/leaves", "/map", "/routing", "/rounds", "/mesh", "/rights", "/resources",
         "/endpoint")  # fmt: skip
MS_MAX = 200.0


def pages(home: Path) -> dict[str, Any]:
    """Milliseconds by page: the first time, and the median of the others."""
    if not home.exists():
        big_home.build(home)
    with child("upstream") as other, child("node", str(home), other.url) as node:
        token = (home / "api.token").read_text().strip()
        return trio.run(_all, Target.of(node.url, token), _a_leaf(home))


def _a_leaf(home: Path) -> str:
    from node.app import App

    live = App(home).forests.forest().live()
    return f"/leaves/{max(live, key=lambda leaf: leaf.sessions * (leaf.level > 1)).id}"


async def _all(target: Target, leaf: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in (*PAGES, leaf):
        took: list[float] = []
        status, size = 0, 0
        for _ in range(TIMES + 1):
            begun_s = perf_counter()
            status, size = await _get(target, path)
            took.append((perf_counter() - begun_s) * 1000)
        name = "/leaves/ID" if path == leaf else path
        found[name] = {
            "status": status,
            "first_ms": round(took[0], 1),
            "ms": round(statistics.median(took[1:]), 1),
            "kb": round(size / 1000, 1),
        }
    worst = max(each["ms"] for each in found.values())
    return {**found, "worst_ms": worst, "ok": worst <= MS_MAX}


async def _get(target: Target, path: str) -> tuple[int, int]:
    stream = await trio.open_tcp_stream("127.0.0.1", target.port)
    async with stream:
        head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{target.port}\r\nconnection: close\r\n"
        await stream.send_all(f"{head}authorization: Bearer {target.token}\r\n\r\n".encode())
        data = b""
        with trio.fail_after(60):
            async for part in stream:
                data += part
    return int(data.split(b" ", 2)[1]), len(data)
