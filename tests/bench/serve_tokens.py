"""Speed and memory of the built-in back end, against a plain `transformers.generate` under PEFT.

    python tests/bench/serve_tokens.py [--json] [--runs N] [--tokens N] [--leaves N] [--threads N]

Both answer the same prompt with the same adapter, greedily, in turn, `--runs` times: ours through
its port, pipes, text and all; the peer in a process of its own, which has loaded the same chassis
by `from_pretrained` and is measured within `generate` alone. It runs twice, in float32, which
`from_pretrained` chooses, and in the type that ours chose; ratios are over the better one.

tokens_ratio       our tokens/s over the peer's, from the request to the last token; median of runs
first_token_ratio  our time to the first token over the peer's; median of runs
cpu_ratio          our tokens per second of CPU over the peer's; median of runs
switch_ms          what it costs the first token that the leaf before was another; median and worst
load_ms            the same for a leaf that is not in memory yet: found, checked and put on
at_once.N          tokens/s of N streams together, each with a leaf of its own
adapters_mb        what `--leaves` adapters take of the child's resident memory
start_ms           from the first request to its first token, the child and the chassis included
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import trio  # noqa: E402

from leaves.bundle import Privacy  # noqa: E402
from leaves.model import LeafId  # noqa: E402
from leaves.training import launch  # noqa: E402
from leaves.training.chassis import Chassis, open_chassis  # noqa: E402
from leaves.training.package import Origin, package  # noqa: E402
from node.api.backends.builtin import AT_ONCE, BuiltIn  # noqa: E402
from node.api.config import ApiConfig  # noqa: E402
from node.api.ports import Adapter, Ask  # noqa: E402
from node.app import App  # noqa: E402

PROMPT = "Write a Python function that adds two numbers, and explain it in detail, line by line."
RANK, ALPHA = 8, 16


@dataclass(frozen=True, slots=True)
class Run:
    """One answer."""

    tokens: int
    first_s: float
    whole_s: float
    cpu_s: float
    text: str

    @property
    def rate(self) -> float:
        return self.tokens / self.whole_s


def adapter_file(chassis: Chassis, seed: int) -> bytes:
    """Random, as large as a trained one and as strong."""
    import torch

    from leaves.training.adapter import Adapters

    made = Adapters(chassis.adapter_shapes(RANK, chassis.targets), RANK, ALPHA)
    made.initialise(seed)
    noise = torch.randn(made.values.shape, generator=torch.Generator().manual_seed(seed))
    made.values.add_(noise, alpha=0.003)
    return made.file()


def leaf(app: App, seed: int) -> Adapter:
    """A leaf in the home's store."""
    privacy = Privacy(contributors=1, sessions=1, canary_exposure=None, scrub_rules="1")
    origin = Origin(LeafId(f"{seed:032x}"), f"leaf {seed}", "sft", "float32", 1, privacy, "all")
    blob = package(adapter_file(app.chassis, seed), app.chassis, origin, None)
    return Adapter(origin.leaf, origin.name, app.bundles.put(blob))


# Ours


async def ours(backend: BuiltIn, ask: Ask) -> Run:
    before, begun, first = cpu_of(backend), time.perf_counter(), 0.0
    text, tokens = "", 0
    async with backend.answer(ask) as pieces:
        async for piece in pieces:
            first = first or time.perf_counter() - begun
            text += piece.text
            tokens = piece.usage.completion_tokens if piece.usage else 0
    whole = time.perf_counter() - begun
    return Run(tokens, first, whole, cpu_of(backend) - before, text)


def cpu_of(backend: BuiltIn) -> float:
    child = backend._child
    if child is None or child.process is None:
        return 0.0
    times = psutil.Process(child.process.pid).cpu_times()
    return float(times.user + times.system)


async def switches(backend: BuiltIn, one: Adapter, two: Adapter, turns: int) -> list[float]:
    """What another leaf costs, in ms: its first token's time over that of the same leaf again."""
    ask = Ask(messages=messages(), tokens_max=1, temperature=0.0)
    costs = []
    for _ in range(turns):
        for adapter in (one, two):
            changed = await ours(backend, replace(ask, adapter=adapter))
            same = await ours(backend, replace(ask, adapter=adapter))
            costs.append((changed.first_s - same.first_s) * 1000)
    return costs


async def together(backend: BuiltIn, asks: list[Ask]) -> float:
    """Tokens per second of all streams."""
    runs: list[Run] = []

    async def one(ask: Ask) -> None:
        runs.append(await ours(backend, ask))

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for ask in asks:
            nursery.start_soon(one, ask)
    return sum(run.tokens for run in runs) / (time.perf_counter() - begun)


def messages() -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": PROMPT},)


# The peer


class Peer:
    """`transformers.generate` in a child."""

    def __init__(self, chassis: Path, dtype: str, threads: int, tokens: int) -> None:
        order = {"chassis": str(chassis), "dtype": dtype, "threads": threads, "tokens": tokens}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--peer", json.dumps(order)],
            env=launch.environment(threads=threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask()  # once, to warm up

    def run(self) -> Run:
        return Run(**self._ask())

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def peers(chassis: Path, dtypes: set[str], threads: int, tokens: int) -> Iterator[dict[str, Peer]]:
    opened = {each: Peer(chassis, each, threads, tokens) for each in sorted(dtypes)}
    try:
        yield opened
    finally:
        for peer in opened.values():
            peer.close()


def be_peer(order: dict[str, Any]) -> None:
    """Load as anybody would, and generate for each line of input."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer

    from leaves.bundle import read_adapter
    from leaves.training.adapter import Adapters
    from leaves.training.hf import HuggingFace
    from leaves.training.preprocess import render

    torch.set_num_threads(order["threads"])
    chassis = open_chassis(Path(order["chassis"]))
    tokenizer = AutoTokenizer.from_pretrained(chassis.path)
    del AutoModelForCausalLM
    held = HuggingFace(chassis, getattr(torch, order["dtype"]))
    read = read_adapter(adapter_file(chassis, 1), chassis)
    made = Adapters(read.shapes, read.rank, read.alpha)
    made.load(read.tensors)
    held.bind(made)
    ids = tokenizer(render(PROMPT), add_special_tokens=False, return_tensors="pt")

    class First(BaseStreamer):
        """Hears of the prompt first, then of each token."""

        def __init__(self) -> None:
            self.heard: list[float] = []

        def put(self, value: Any) -> None:
            self.heard.append(time.perf_counter())

        def end(self) -> None:
            pass

    for _ in sys.stdin:
        streamer = First()
        cpu, begun = time.process_time(), time.perf_counter()
        with torch.no_grad():
            out = held.model.generate(
                **ids, max_new_tokens=order["tokens"], do_sample=False, streamer=streamer
            )
        whole = time.perf_counter() - begun
        said = out[0, ids["input_ids"].shape[1] :]
        run = {
            "tokens": len(said),
            "first_s": streamer.heard[1] - begun,
            "whole_s": whole,
            "cpu_s": time.process_time() - cpu,
            "text": tokenizer.decode(said, skip_special_tokens=True),
        }
        sys.stdout.write(json.dumps(run) + "\n")
        sys.stdout.flush()


# All together


async def measure(app: App, *, runs: int = 5, tokens: int = 64, leaves: int = 20) -> dict[str, Any]:
    """Every figure, by the names of this module's first lines."""
    all_leaves = [leaf(app, seed) for seed in range(1, leaves + 2)]
    backend = BuiltIn(app, ApiConfig(adapters_resident=leaves + 1))
    ask = Ask(messages=messages(), tokens_max=tokens, temperature=0.0, adapter=all_leaves[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.run)
        await trio.lowlevel.checkpoint()
        started = await ours(backend, ask)
        dtype = (await backend.look())["dtype"]
        figures: dict[str, Any] = {"dtype": dtype, "start_ms": started.first_s * 1000}
        with peers(app.chassis.path, {dtype, "float32"}, app.threads(), tokens) as opened:
            mine, theirs = [], {each: [] for each in opened}
            for _ in range(runs):
                mine.append(await ours(backend, ask))
                for each, peer in opened.items():
                    theirs[each].append(peer.run())
        figures |= compared(mine, theirs)
        await backend.warm(all_leaves[1])
        costs = await switches(backend, all_leaves[0], all_leaves[1], max(10, runs))
        figures["switch_ms"] = statistics.median(costs)
        figures["switch_ms_worst"] = max(costs)
        figures |= await resident(backend, all_leaves)
        for count in (2, 4, AT_ONCE):
            asks = [replace(ask, adapter=each) for each in all_leaves[:count]]
            figures[f"at_once.{count}"] = await together(backend, asks)
        nursery.cancel_scope.cancel()
    return figures


def compared(mine: list[Run], theirs: dict[str, list[Run]]) -> dict[str, Any]:
    best = {name: max(runs, key=lambda run: run.rate).rate for name, runs in theirs.items()}
    dtype = max(best, key=lambda each: statistics.median(run.rate for run in theirs[each]))
    pairs = list(zip(mine, theirs[dtype], strict=True))
    figures: dict[str, Any] = {
        "tokens_ratio": statistics.median(one.rate / two.rate for one, two in pairs),
        "first_token_ratio": statistics.median(one.first_s / two.first_s for one, two in pairs),
        "cpu_ratio": statistics.median(
            (one.tokens / one.cpu_s) / (two.tokens / two.cpu_s) for one, two in pairs
        ),
        "peer": dtype,
        "runs": len(mine),
        "tokens_per_s": statistics.median(run.rate for run in mine),
        "first_token_ms": statistics.median(run.first_s for run in mine) * 1000,
        "same_text": {
            name: sum(a.text == b.text for a, b in zip(mine, runs, strict=True))
            for name, runs in theirs.items()
        },
    }
    for name, runs in theirs.items():
        figures[f"peer.{name}.tokens_per_s"] = statistics.median(run.rate for run in runs)
        figures[f"peer.{name}.first_token_ms"] = (
            statistics.median(run.first_s for run in runs) * 1000
        )
    return figures


async def resident(backend: BuiltIn, leaves: list[Adapter]) -> dict[str, float]:
    """What adapters take, and how long each takes to be loaded; the first two are at hand."""
    before = (await backend.look())["memory_bytes"]
    took = []
    for each in leaves[2:]:
        begun = time.perf_counter()
        await backend.warm(each)
        took.append((time.perf_counter() - begun) * 1000)
    after = await backend.look()
    count = len(leaves) - 1
    assert after["adapters"] == len(leaves)
    grown = (after["memory_bytes"] - before) / 1e6
    return {
        "adapters_mb": grown * count / max(1, len(took)),
        "adapters": count,
        "load_ms": statistics.median(took),
        "load_ms_worst": max(took),
    }


def run(*, runs: int = 5, tokens: int = 64, leaves: int = 20, threads: int = 0) -> dict[str, Any]:
    """Measure in a home of its own; the chassis is the default one."""
    with tempfile.TemporaryDirectory(prefix="groove-serve-") as home:
        Path(home, "groove.toml").write_text(f"[training]\nthreads = {threads}\n")
        work = App(Path(home))
        return trio.run(lambda: measure(work, runs=runs, tokens=tokens, leaves=leaves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE|-")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--leaves", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        be_peer(json.loads(given.peer))
        return
    figures = run(runs=given.runs, tokens=given.tokens, leaves=given.leaves, threads=given.threads)
    figures["cores"] = os.cpu_count()
    if given.json == "-":
        print(json.dumps(figures, indent=1))
        return
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=1))
    for name, value in figures.items():
        print(f"{name:28} {value:.3f}" if isinstance(value, float) else f"{name:28} {value}")


if __name__ == "__main__":
    main()
