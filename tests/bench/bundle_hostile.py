"""Hostile bundles: how each is refused, how soon, and what the chassis is after those that are not.

    python tests/bench/bundle_hostile.py [--tiny N] [--large N] [--seed N] [--json FILE|-]

A good bundle is changed at random: bits, lengths, header, label, tensors, with and without hashes
that fit again. What passes the check of form is attached to the chassis in the child that judges
peers' leaves, which compares the chassis' weights with what they were after each. `tiny` is a
random Llama of two layers, `large` the default chassis.

{tiny,large}.files            changed files that were tried
{tiny,large}.refused          of them refused by the check of form
{tiny,large}.attached         and attached; `attach_refused` those that the child refused
{tiny,large}.escaped          exceptions other than BundleError; must be 0
{tiny,large}.changed          files after which the chassis was not what it was; must be 0
{tiny,large}.refused_ms_p50   CPU milliseconds of a refusal; `_p99`, `_max`
{tiny,large}.accepted_ms_p50  CPU milliseconds of the check of what passes
{tiny,large}.reasons          how many were refused for which reason
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_llama  # noqa: E402

from leaves.bundle import BundleError, Privacy, check_form, pack, unpack  # noqa: E402
from leaves.model import LeafId  # noqa: E402
from leaves.ports import EvaluateJob, Example  # noqa: E402
from leaves.training.chassis import Chassis, open_chassis, prepare_chassis  # noqa: E402
from leaves.training.child import ChildEvaluator, TrainingError  # noqa: E402
from leaves.training.package import Origin, package  # noqa: E402
from leaves.training.tensors import pack as pack_tensors  # noqa: E402
from node.home import groove_cache  # noqa: E402

EXAMPLE = (Example("s", "what is it?", "a stone"),)
NUMBERS = [0.0, -0.0, 1e-45, 1e30, -3.4e38, float("inf"), float("nan")]


def good_bundle(chassis: Chassis, rank: int, random_: random.Random) -> bytes:
    """A bundle that is accepted: small random adapters on all targets."""
    numbers = np.random.default_rng(random_.randrange(2**32))
    shapes = chassis.adapter_shapes(rank, chassis.targets)
    tensors = {
        name: (numbers.standard_normal(shape) * 0.002).astype(np.float32)
        for name, shape in shapes.items()
    }
    adapter = pack_tensors(tensors, {"format": "pt", "rank": str(rank), "alpha": str(2 * rank)})
    origin = Origin(
        LeafId("ab" * 16), "name", "sft", "float32", 100, Privacy(1, 300, None, "1"), "open"
    )
    return package(adapter, chassis, origin, None)


class Mutator:
    """Changes a good bundle in one of many ways."""

    def __init__(self, blob: bytes, draw: random.Random) -> None:
        parts = unpack(blob)
        self.label, self.adapter = parts.label, parts.adapter
        self.draw = draw
        (size,) = struct.unpack("<Q", self.adapter[:8])
        self.header: dict[str, Any] = json.loads(self.adapter[8 : 8 + size])
        self.body = self.adapter[8 + size :]
        self.ways: list[Callable[[], bytes]] = [
            self.flipped, self.cut, self.lengthened, self.spliced, self.relabelled,
            self.reheaded, self.other_numbers, self.nested, self.renamed, self.other_lengths,
        ]  # fmt: skip

    def one(self) -> bytes:
        return self.draw.choice(self.ways)()

    def fitting(self, adapter: bytes) -> bytes:
        """The adapter under a label that names its hash."""
        label = json.loads(self.label)
        label["adapter"] = hashlib.sha256(adapter).hexdigest()
        return pack(msgspec.json.encode(label, order="sorted"), adapter)

    def with_header(self, header: Any, body: bytes | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return self.fitting(struct.pack("<Q", len(text)) + text + (body or self.body))

    def flipped(self) -> bytes:
        whole = bytearray(pack(self.label, self.adapter))
        for _ in range(self.draw.choice((1, 1, 2, 8))):
            whole[self.draw.randrange(len(whole))] ^= 1 << self.draw.randrange(8)
        return bytes(whole)

    def cut(self) -> bytes:
        whole = pack(self.label, self.adapter)
        return whole[: self.draw.randrange(len(whole))]

    def lengthened(self) -> bytes:
        tail = self.draw.randbytes(self.draw.choice((1, 8, 4096)))
        if self.draw.random() < 0.5:
            return self.fitting(self.adapter + tail)
        return pack(self.label, self.adapter) + tail

    def spliced(self) -> bytes:
        adapter = bytearray(self.adapter)
        at, size = self.draw.randrange(len(adapter)), self.draw.choice((1, 7, 64, 1024))
        adapter[at : at + size] = self.draw.randbytes(self.draw.choice((0, size, size + 1)))
        return self.fitting(bytes(adapter))

    def relabelled(self) -> bytes:
        label = json.loads(self.label)
        key = self.draw.choice(sorted(label))
        label[key] = self.draw.choice(
            [None, True, -1, 0, 1, 2**53 + 1, 1e308, "", "x" * 300, "\u202e", [], [[]], {}, [{}]]
        )
        return pack(json.dumps(label, sort_keys=True).encode(), self.adapter)

    def reheaded(self) -> bytes:
        header = json.loads(json.dumps(self.header))
        name = self.draw.choice(sorted(header))
        entry = header[name]
        value = self.draw.choice([None, True, -1, 0, 2**63, "F64", "F32", [], [1], [2**40, 2**40]])
        if isinstance(entry, dict) and self.draw.random() < 0.8:
            entry[self.draw.choice([*sorted(entry), "more"])] = value
        else:
            header[name] = value
        return self.with_header(header)

    def other_numbers(self) -> bytes:
        body = bytearray(self.body)
        for _ in range(self.draw.choice((1, 4, 64))):
            at = self.draw.randrange(len(body) // 4) * 4
            value = self.draw.choice([*NUMBERS, self.draw.uniform(-1, 1)])
            struct.pack_into("<f", body, at, value)
        return self.with_header(self.header, bytes(body))

    def nested(self) -> bytes:
        depth = self.draw.choice((10, 1_000, 100_000, 400_000))
        return self.with_header(self.draw.choice((b"[", b'{"a":')) * depth)

    def renamed(self) -> bytes:
        header = json.loads(json.dumps(self.header))
        name = self.draw.choice(sorted(header))
        other = self.draw.choice(
            ["base_model.model.model.embed_tokens.weight", "../x", "", name + ".base_layer.weight"]
        )
        entry = header.pop(name) if self.draw.random() < 0.5 else header[name]
        header[other] = entry
        return self.with_header(header)

    def other_lengths(self) -> bytes:
        size = self.draw.choice((0, 1, 2**20, 2**20 + 1, 2**32, 2**63, 2**64 - 1))
        return self.fitting(struct.pack("<Q", size) + self.adapter[8:])


def tried(chassis: Chassis, rank: int, files: int, draw: random.Random) -> dict[str, Any]:
    """Try changed files on one chassis."""
    mutator = Mutator(good_bundle(chassis, rank, draw), draw)
    refused: list[float] = []
    accepted: list[float] = []
    reasons: Counter[str] = Counter()
    counts = Counter(attached=0, attach_refused=0, escaped=0, changed=0)
    evaluator = ChildEvaluator(threads=1, dtype="float32", keep_s=600)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        for number in range(files):
            if number % 1000 == 0:
                print(f"{number:,} of {files:,}", file=sys.stderr, flush=True)
            blob = mutator.one()
            began = time.process_time()
            try:
                checked = check_form(blob, chassis)
            except BundleError as problem:
                refused.append(time.process_time() - began)
                reasons[str(problem)] += 1
                continue
            except Exception as problem:  # that there is none is what is measured
                counts["escaped"] += 1
                reasons[f"ESCAPED {type(problem).__name__}"] += 1
                continue
            accepted.append(time.process_time() - began)
            path.write_bytes(checked.adapter)
            try:
                evaluator.losses(EvaluateJob(chassis.path, EXAMPLE, (("x", path),)))
                counts["attached"] += 1
            except BundleError:
                counts["attach_refused"] += 1
            except TrainingError as problem:
                counts["changed" if "was changed" in str(problem) else "escaped"] += 1
    evaluator.close()
    return {
        "files": files,
        "refused": len(refused),
        **counts,
        **{f"refused_ms_{name}": of(refused, share) for name, share in SHARES},
        "accepted_ms_p50": of(accepted, 0.5),
        "reasons": dict(reasons.most_common()),
    }


SHARES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


def of(seconds: list[float], share: float) -> float | None:
    """A quantile in milliseconds."""
    if not seconds:
        return None
    return round(1000 * sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)], 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", type=int, default=100_000, metavar="N")
    parser.add_argument("--large", type=int, default=1_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="- is standard output")
    args = parser.parse_args()
    figures = measured(args.tiny, args.large, random.Random(args.seed))
    text = json.dumps(figures, indent=1)
    if args.json and args.json != "-":
        Path(args.json).write_text(text + "\n")
    else:
        print(text)


def measured(tiny_files: int, large_files: int, draw: random.Random) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tiny = open_chassis(tiny_llama.build(Path(folder)))
        figures = {"tiny": tried(tiny, 4, tiny_files, draw)}
    if large_files:
        large = open_chassis(prepare_chassis(groove_cache()))
        figures["large"] = tried(large, 8, large_files, draw)
    return figures


if __name__ == "__main__":
    main()
