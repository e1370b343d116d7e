"""A bundle from four processes, one of which lies and one stalls, into one that is killed again
and again: how much comes twice, and whether it comes right.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

import bundle_kit as kit  # noqa: E402

from gossip.bundle_files import BundleFiles  # noqa: E402
from gossip.wire import CHUNK_BYTES  # noqa: E402

FOUR = ("honest", "lying", "stalled", "honest")


def swarm(
    folder: Path, size: int, kills: int, seed: int, manners: tuple[str, ...] = FOUR
) -> dict[str, Any]:
    """Fetch once, killing the fetcher `kills` times; see `bundle.py` for the figures."""
    draw = Random(seed)
    data = draw.randbytes(size)
    with contextlib.ExitStack() as stack:
        addresses = []
        for number, manner in enumerate(manners):
            root = kit.add(folder / f"holder-{number}", data)
            holding = kit.holder(folder / f"holder-{number}", root, manner)
            addresses.append(stack.enter_context(holding)[1])
        stops = sorted(draw.uniform(0.05, 0.95) * size for _ in range(kills))
        here = folder / "fetcher"
        began, lost = time.perf_counter(), []
        for stop in [*stops, None]:
            _fetch_until(here, root, size, addresses, stop)
            if stop is not None:
                come = _honest(here, manners)
                lost.append(come - sum(lost) - _on_disk(here, root, data))
        took = time.perf_counter() - began
    exact = BundleFiles(here).path(root).read_bytes() == data
    come = _honest(here, manners)
    return {
        "exact": exact,
        "kills": kills,
        "transferred_ratio": round(come / size, 4),
        "lost_chunks_max": round(max(lost, default=0) / CHUNK_BYTES, 2),
        "lies_mb": round((sum(_counts(here, manners)) - come) / 1e6, 2),
        "seconds": round(took, 1),
    }


def _fetch_until(
    here: Path, root: bytes, size: int, addresses: list[str], stop: float | None
) -> None:
    """Run a fetcher to its end, or kill it with -9 once so many bytes are there."""
    command = [sys.executable, kit.__file__, "fetch", str(here), root.hex(), str(size), *addresses]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if stop is not None and json.loads(line).get("here", 0) >= stop:
                process.kill()
                break
        process.wait(60)
        if stop is None and process.returncode:
            raise RuntimeError(f"the fetch failed: {process.returncode}")


def _counts(here: Path, manners: tuple[str, ...]) -> list[int]:
    return kit.Counter(here / kit.COUNTS, len(manners)).counts()


def _honest(here: Path, manners: tuple[str, ...]) -> int:
    """Bytes of chunks that have come whole from those that do not lie."""
    counts = zip(_counts(here, manners), manners, strict=True)
    return sum(count for count, manner in counts if manner != "lying")


def _on_disk(here: Path, root: bytes, data: bytes) -> int:
    """Bytes of chunks that are whole and right in the part, or in the bundle if it has ended."""
    files = BundleFiles(here)
    path = files.path(root) if files.path(root).exists() else files.part_path(root)
    part = path.read_bytes()
    cuts = range(0, len(data), CHUNK_BYTES)
    pieces = ((part[at : at + CHUNK_BYTES], data[at : at + CHUNK_BYTES]) for at in cuts)
    return sum(len(wanted) for there, wanted in pieces if there == wanted)
