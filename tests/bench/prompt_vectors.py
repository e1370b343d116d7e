"""Prompts with their labels and their vectors, for the benches of domains and of routing."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from leaves.model import Matrix, Vector

Row = dict[str, Any]


def say(text: str) -> None:
    print(f"{time.process_time():6.0f} s  {text}", file=sys.stderr, flush=True)


def read(path: Path) -> list[Row]:
    """Return the rows of a file of JSON Lines, gzipped or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def encoded(rows: list[Row], cache: Path) -> Matrix:
    """Encode by the node's encoder; vectors are kept in `cache` by the hash of their text."""
    from node.home import groove_cache
    from router.minilm_encoder import MiniLmEncoder

    encoder = MiniLmEncoder.open(groove_cache())
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"vectors-{encoder.enc8.hex()}.npz"
    kept: dict[bytes, Vector] = {}
    if path.exists():
        with np.load(path) as held:
            kept = dict(zip(held["hashes"].tolist(), held["vectors"], strict=True))
    hashes = [hashlib.sha256(row["text"].encode()).hexdigest()[:32].encode() for row in rows]
    fresh = {key: row["text"] for key, row in zip(hashes, rows, strict=True) if key not in kept}
    if fresh:
        say(f"encoding {len(fresh):,} texts")
        kept.update(zip(fresh, encoder.encode(list(fresh.values())), strict=True))
        np.savez(path, hashes=np.array(list(kept)), vectors=np.stack(list(kept.values())))
    return np.stack([kept[key] for key in hashes])
