"""An `Encoder` that remembers: what was asked lately is not computed again.

A prompt is encoded when it is routed, again when its session closes, and many prompts are asked
twice. Only hashes and vectors are kept, in memory alone; no text.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from leaves.model import Matrix, Vector
from leaves.ports import Progress, Report, silent

from .ports import Encoder
from .texts import cut

BYTES_MAX = 8 << 20  # of vectors: 4,900 of MiniLM's
_ENTRY_BYTES = 170  # key, array header and place in the order; measured with sys.getsizeof


class CachedEncoder:
    """Wraps an encoder. The least recently used goes first; safe to call from several threads.

    Texts that are equal as far as they are embedded are encoded once, also within a call.
    """

    def __init__(self, encoder: Encoder, bytes_max: int = BYTES_MAX) -> None:
        self._encoder = encoder
        self.entries_max = max(1, bytes_max // (encoder.dimensions * 4 + _ENTRY_BYTES))
        self._rows: OrderedDict[bytes, Vector] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    @property
    def enc8(self) -> bytes:
        return self._encoder.enc8

    @property
    def name(self) -> str:
        return self._encoder.name

    @property
    def dimensions(self) -> int:
        return self._encoder.dimensions

    def __len__(self) -> int:
        return len(self._rows)

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        """Return one unit row per text, in order. Progress counts texts, known ones at once."""
        out = np.empty((len(texts), self.dimensions), np.float32)
        wanted: dict[bytes, list[int]] = {}
        for at, text in enumerate(texts):
            wanted.setdefault(self._key(text), []).append(at)
        missing = [key for key, places in wanted.items() if not self._recall(key, out, places)]
        known = len(texts) - sum(len(wanted[key]) for key in missing)
        if known:
            report(Progress("embed", known, len(texts)))
        if missing:
            firsts = [texts[wanted[key][0]] for key in missing]
            rows = self._encoder.encode(firsts, _shifted(report, known, len(texts)))
            for key, row in zip(missing, rows, strict=True):
                out[wanted[key]] = row
            self._remember(missing, rows)
            if known + len(missing) < len(texts):  # the rest were copies
                report(Progress("embed", len(texts), len(texts)))
        return out

    def encode_one(self, text: str) -> Vector:
        key = self._key(text)
        row = np.empty((1, self.dimensions), np.float32)
        if not self._recall(key, row, [0]):
            row[0] = self._encoder.encode_one(text)
            self._remember([key], row)
        vector: Vector = row[0]
        return vector

    def _key(self, text: str) -> bytes:
        data = cut(text).encode()
        return hashlib.blake2b(self.enc8 + data, digest_size=16).digest()

    def _recall(self, key: bytes, out: Matrix, places: Sequence[int]) -> bool:
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                self.misses += len(places)
                return False
            self._rows.move_to_end(key)
            self.hits += len(places)
        out[places] = row  # rows are never written to, so this needs no lock
        return True

    def _remember(self, keys: Sequence[bytes], rows: Matrix) -> None:
        with self._lock:
            for key, row in zip(keys[-self.entries_max :], rows[-self.entries_max :], strict=True):
                self._rows[key] = row.copy()  # a view would keep the whole matrix
                self._rows.move_to_end(key)
            while len(self._rows) > self.entries_max:
                self._rows.popitem(last=False)


def _shifted(report: Report, done: int, total: int) -> Report:
    return lambda progress: report(Progress(progress.phase, done + progress.done, total))
