"""The cache around an encoder: what is asked again is not computed again, and memory is bounded."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaves.model import Matrix, Vector, unit
from leaves.ports import Progress, Report, silent
from router.encoding_cache import CachedEncoder
from router.ports import ENCODED_CHARS


class Counting:
    """Vectors by hash, and which texts were asked for."""

    enc8 = b"counting"
    name = "counting"
    dimensions = 8

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        out = np.empty((len(texts), self.dimensions), np.float32)
        for at, text in enumerate(texts):
            out[at] = self.encode_one(text)
            report(Progress("embed", at + 1, len(texts)))
        return out

    def encode_one(self, text: str) -> Vector:
        self.asked.append(text)
        digest = hashlib.sha256(text[:ENCODED_CHARS].encode("utf-8", "replace")).digest()
        row: Vector = unit(np.frombuffer(digest, np.uint8)[None, :8].astype(np.float32) - 127.5)[0]
        return row


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=8), st.integers(1, 900))
def test_the_cache_changes_no_vector(calls: list[list[str]], bytes_max: int) -> None:
    cached, plain = CachedEncoder(Counting(), bytes_max), Counting()
    for texts in calls:
        assert (cached.encode(texts) == plain.encode(texts)).all()
        for text in texts[:1]:
            assert (cached.encode_one(text) == plain.encode_one(text)).all()
        assert len(cached) <= cached.entries_max


def test_what_is_known_is_not_computed_again() -> None:
    inner = Counting()
    cached = CachedEncoder(inner)
    cached.encode(["a", "b", "a", "a"])
    cached.encode_one("b")
    cached.encode(["a", "c"])
    assert inner.asked == ["a", "b", "c"]
    assert (cached.hits, cached.misses) == (2, 5)


def test_texts_are_the_same_if_they_are_as_far_as_they_are_embedded() -> None:
    inner = Counting()
    cached = CachedEncoder(inner)
    cached.encode(["x" * ENCODED_CHARS, "x" * ENCODED_CHARS + "y", "x" * 10_000_000])
    assert len(inner.asked) == 1


def test_the_longest_unused_goes_first() -> None:
    inner = Counting()
    cached = CachedEncoder(inner, bytes_max=2 * (8 * 4 + 170))
    assert cached.entries_max == 2
    for text in "abac":
        cached.encode_one(text)
    inner.asked.clear()
    for text in "ab":
        cached.encode_one(text)
    assert inner.asked == ["b"]


def test_a_caller_that_writes_to_its_vector_spoils_no_others() -> None:
    cached = CachedEncoder(Counting())
    for _ in range(2):
        cached.encode_one("a")[:] = 0
        cached.encode(["a"])[:] = 0
    assert (cached.encode_one("a") == Counting().encode_one("a")).all()


def test_no_text_is_kept() -> None:
    cached = CachedEncoder(Counting())
    cached.encode(["a secret of the owner"])
    assert "secret" not in repr(vars(cached))


def test_progress_counts_texts_and_ends_at_all() -> None:
    cached = CachedEncoder(Counting())
    cached.encode(["a"])
    told: list[Progress] = []
    cached.encode(["a", "b", "a", "c", "c"], told.append)
    assert [(p.done, p.total) for p in told] == [(2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_call_that_is_cancelled_leaves_the_cache_as_it_was() -> None:
    cached = CachedEncoder(Counting())

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached.encode(["a", "b"], stop)
    assert len(cached) == 0


def test_many_threads_may_ask_at_once() -> None:
    cached = CachedEncoder(Counting(), bytes_max=10 * 202)
    wrong: list[str] = []

    def ask(seed: int) -> None:
        rng, plain = np.random.default_rng(seed), Counting()
        for _ in range(200):
            texts = [str(n) for n in rng.integers(0, 30, 5)]
            if not (cached.encode(texts) == plain.encode(texts)).all():
                wrong.extend(texts)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(cached) == 10
