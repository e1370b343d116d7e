"""Every page of the dashboard at 100,000 sessions and 500 leaves: `python tests/bench/pages.py`.

What is timed is a request to the whole of a page, without the network: once in a thread that has
read nothing yet, then as often as `--times` says, of which the median counts; and once more after
the forest has changed, when all that was read of it is read anew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("GROOVE_STATE", tempfile.mkdtemp(prefix="groove-state-"))

import httpx  # noqa: E402
import msgspec  # noqa: E402
import trio  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from support_pages import grown  # noqa: E402
from support_pictures import FixedClock  # noqa: E402

import node.daemon  # noqa: E402, F401 - a running node has loaded what it is made of
from leaves.model import Stage  # noqa: E402
from node.api.pages import routes  # noqa: E402
from node.api.pages.make_map import make  # noqa: E402
from node.app import App  # noqa: E402


def paths(app: App) -> list[str]:
    """One of each kind of page."""
    leaves = list(app.forests.forest())
    mature = next(leaf for leaf in leaves if leaf.stage is Stage.MATURE)
    gone = next(leaf for leaf in leaves if leaf.stage is Stage.ARCHIVED)
    branch = next(leaf for leaf in leaves if leaf.level == 1)
    theirs = app.foreign.all()[0].leaf.leaf
    each = [f"/leaves/{id_}" for id_ in (mature.id, gone.id, branch.id, theirs)]
    lists = ["/leaves", "/leaves?page=3", "/leaves?at=2026-06-01", "/routing", "/routing?page=5"]
    rest = ["/map", "/rounds", "/rounds?round=1", "/rounds/proposal/1", "/mesh", "/rights"]
    return ["/", "/stop", *lists, *each, *rest, "/resources", "/endpoint"]


async def measure(app: App, times: int) -> dict[str, dict[str, float]]:
    """Milliseconds by page: first, median, of CPU, and after a change of the forest."""
    asgi, found = Starlette(routes=routes(app)), dict[str, dict[str, float]]()
    transport = httpx.ASGITransport(asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:

        async def once(path: str) -> float:
            begun = time.perf_counter()
            reply = await client.get(path)
            took = 1000 * (time.perf_counter() - begun)
            assert reply.status_code == 200, (path, reply.status_code)
            return took

        for path in paths(app):
            found[path] = {"first": await once(path)}
        await trio.sleep(3)  # what was put off is counted
        for path in found:
            begun = time.process_time()
            found[path]["median"] = statistics.median([await once(path) for _ in range(times)])
            found[path]["cpu"] = 1000 * (time.process_time() - begun) / times
        for path in found:
            leaf = next(x for x in app.forests.forest() if x.level > 1)
            app.forests.change(leaf, "drifted", "", app.now())
            found[path]["changed"] = await once(path)
            await trio.sleep(1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--leaves", type=int, default=500)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--map", action="store_true", help="lay the map out first: takes minutes")
    parser.add_argument("--json", help="a file, or - for standard output")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = tuple(f"topic-{n}" for n in range(given.leaves))
        home = Path(folder) / "home"
        app = grown(home, given.sessions, names)
        if given.map:
            make(app)
        found = trio.run(measure, App(home, FixedClock()), given.times)
    document: dict[str, Any] = {
        "sessions": given.sessions,
        "leaves": given.leaves,
        "page_ms_first": round(max(each["first"] for each in found.values()), 1),
        "page_ms_median": round(max(each["median"] for each in found.values()), 1),
        "page_cpu_ms": round(max(each["cpu"] for each in found.values()), 1),
        "page_ms_changed": round(max(each["changed"] for each in found.values()), 1),
        "pages": {path: {k: round(v, 1) for k, v in each.items()} for path, each in found.items()},
    }
    blob = msgspec.json.format(msgspec.json.encode(document)).decode()
    if given.json and given.json != "-":
        Path(given.json).write_text(blob)
    else:
        sys.stdout.write(f"{blob}\n")


if __name__ == "__main__":
    main()
