"""How fast a bundle comes, beside what one py-libp2p stream carries; and how much comes twice.

    python tests/bench/bundle.py [speed] [swarm] [hostile] [--runs 7] [--mb 64] [--json FILE|-]

Without a part named: speed and swarm. `hostile` is `bundle_hostile.py`, with its keys.

speed: two processes on loopback, a holder and this one. In pairs, on the same connection and in
turn: a bundle through everything (files, hashes, exchange, drivers, frames), and as many bytes
without meaning over one stream, read 64 KiB at a time and written in pieces of that size between
64 KiB and 1 MiB which does best here.

mb_per_s             of the bundle, in 10^6 bytes, median over the pairs
raw_stream_mb_per_s  of the bare stream, likewise
ratio                median of the pairs' ratios; `ratio_min`, `ratio_max`
cpu_ratio            the same of the CPU time of both processes, which others' load changes less
write_bytes          the best size of a write; `runs`: how many pairs

swarm: four processes that hold a bundle, one of which has a wrong byte in each chunk and one of
which sends none, and a fifth that fetches it and is killed with -9 five times on the way.

swarm.exact              whether the bundle is byte for byte what it should be
swarm.transferred_ratio  bytes of chunks that came whole into the fetching processes, all lives
                         together, without the lies, by the size of the bundle; worst of the runs
swarm.lost_chunks_max    at one kill: chunks that had come whole and were not on disk after it
swarm.lies_mb            what the liar sent: it is found out anew in each life
swarm.seconds            of one run, starts of the processes included; `runs`: how many
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psutil
import trio

sys.path[:0] = [str(Path(__file__).parent)]

import bundle_kit as kit  # noqa: E402
import bundle_swarm  # noqa: E402

from gossip import libp2p_fence as fence  # noqa: E402

PARTS = ("speed", "swarm", "hostile")
KILLS = 5
WRITE_BYTES = (64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20)


async def timed(pid: int, work: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Return the seconds that it took, and those of CPU here and in the other process."""
    other = psutil.Process(pid)

    def cpu_s() -> float:
        times = other.cpu_times()
        return time.process_time() + times.user + times.system

    cpu, began = cpu_s(), time.perf_counter()
    await work()
    return time.perf_counter() - began, cpu_s() - cpu


async def speed(runs: int, size: int, folder: Path) -> dict[str, Any]:
    root = kit.add(folder / "holder", Random(1).randbytes(size))
    with kit.holder(folder / "holder", root) as (pid, address):
        async with kit.node(folder / "fetcher") as (transport, driver):
            await transport.dial(address)
            raw = partial(kit.pour, transport, fence.peer_of(address), size)
            sizes = {each: min([(await timed(pid, partial(raw, each)))[0] for _ in range(3)])
                     for each in WRITE_BYTES}  # fmt: skip
            write_bytes = min(sizes, key=lambda each: sizes[each])
            pairs = []
            for number in range(runs):
                ways = [partial(raw, write_bytes), partial(_fetch, driver, root, size)]
                order = [0, 1] if number % 2 else [1, 0]
                took = {way: await timed(pid, ways[way]) for way in order}
                pairs.append((took[0], took[1]))
                await driver.remove_bundle(root)
                print(*(f"{size / 1e6 / each[0]:.0f} MB/s" for each in pairs[-1]), file=sys.stderr)
    return _figures(pairs, size) | {"write_bytes": write_bytes}


async def _fetch(driver: Any, root: bytes, size: int) -> None:
    result = await driver.fetch(root, size, by_hand=True)
    assert result.size_bytes == size and not result.resumed_bytes


def _figures(pairs: list[Any], size: int) -> dict[str, Any]:
    ratios = [raw[0] / bundle[0] for raw, bundle in pairs]
    return {
        "mb_per_s": round(size / 1e6 / statistics.median(bundle[0] for _, bundle in pairs), 1),
        "raw_stream_mb_per_s": round(size / 1e6 / statistics.median(r[0] for r, _ in pairs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "cpu_ratio": round(statistics.median(raw[1] / bundle[1] for raw, bundle in pairs), 3),
        "runs": len(pairs),
    }


def swarms(runs: int, size: int) -> dict[str, Any]:
    """The worst of several, each with other moments of death."""
    played = []
    for seed in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            played.append(bundle_swarm.swarm(Path(folder), size, KILLS, seed))
        print(played[-1], file=sys.stderr)
    return {
        "exact": all(each["exact"] for each in played),
        "kills": KILLS,
        "transferred_ratio": max(each["transferred_ratio"] for each in played),
        "lost_chunks_max": max(each["lost_chunks_max"] for each in played),
        "lies_mb": max(each["lies_mb"] for each in played),
        "seconds": statistics.median(each["seconds"] for each in played),
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="pairs; of swarm half")
    parser.add_argument("--mb", type=int, default=64, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="- is standard output")
    args = parser.parse_args()
    logging.getLogger("gossip").setLevel(logging.ERROR)
    parts, size = args.parts or PARTS[:2], args.mb * 1_000_000
    figures: dict[str, Any] = {}
    if "speed" in parts:
        with tempfile.TemporaryDirectory() as folder:
            figures |= trio.run(speed, args.runs, size, Path(folder))
    if "swarm" in parts:
        figures["swarm"] = swarms(max(1, args.runs // 2), size)
    if "hostile" in parts:
        import bundle_hostile

        figures |= bundle_hostile.measured(100_000, 1_000, random.Random(0))
    text = json.dumps(figures, indent=1)
    if args.json and args.json != "-":
        Path(args.json).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
