"""One adapter out of several is the best of its rank, and the same bytes each time."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from leaves.bundle import AdapterFile, read_adapter
from leaves.training.chassis import Chassis, open_chassis
from leaves.training.merging import Part, merge, truncated
from leaves.training.tensors import pack


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Chassis:
    return open_chassis(tiny_llama.build(tmp_path_factory.mktemp("chassis")))


def adapter(chassis: Chassis, seed: int, *, rank: int = 8, alpha: int = 16) -> AdapterFile:
    rng = np.random.default_rng(seed)
    shapes = chassis.adapter_shapes(rank, chassis.targets)
    tensors = {n: rng.normal(0, 0.02, shape).astype(np.float32) for n, shape in shapes.items()}
    about = {"format": "pt", "rank": str(rank), "alpha": str(alpha)}
    return read_adapter(pack(tensors, about), chassis)


def changes(read: AdapterFile) -> dict[str, np.ndarray]:
    """What an adapter adds to each weight, in full."""
    names = [name.removesuffix(".lora_A.weight") for name in read.tensors if ".lora_A." in name]
    return {
        name: read.alpha
        / read.rank
        * read.tensors[f"{name}.lora_B.weight"].astype(np.float64)
        @ read.tensors[f"{name}.lora_A.weight"].astype(np.float64)
        for name in names
    }


def dense(change: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(change, full_matrices=False)
    best: np.ndarray = (u[:, :rank] * s[:rank]) @ v[:rank]
    return best


def test_a_merger_is_the_truncated_decomposition_of_the_weighted_mean(chassis: Chassis) -> None:
    one, other = adapter(chassis, 1), adapter(chassis, 2)
    merged = changes(read_adapter(merge([Part(one, 300), Part(other, 100)], 8, 16), chassis))
    for name, first in changes(one).items():
        mean = 0.75 * first + 0.25 * changes(other)[name]
        assert np.allclose(merged[name], dense(mean, 8), atol=1e-7), name


def test_a_merger_of_rank_enough_is_exact(chassis: Chassis) -> None:
    one, other = adapter(chassis, 1), adapter(chassis, 2)
    merged = changes(read_adapter(merge([Part(one, 1), Part(other, 1)], 16, 16), chassis))
    for name, first in changes(one).items():
        assert np.allclose(merged[name], (first + changes(other)[name]) / 2, atol=1e-8), name


def test_a_merger_of_one_is_that_one(chassis: Chassis) -> None:
    one = adapter(chassis, 1)
    merged = changes(read_adapter(merge([Part(one, 5)], 8, 16), chassis))
    for name, change in changes(one).items():
        assert np.allclose(merged[name], change, atol=1e-8), name


def test_a_merger_does_not_depend_on_the_order_of_its_parts(chassis: Chassis) -> None:
    parts = [Part(adapter(chassis, seed), 100) for seed in (1, 2, 3)]
    assert merge(parts, 8, 16) == merge(parts[::-1], 8, 16)


def test_parts_of_other_ranks_and_scales_are_merged_by_what_they_add(chassis: Chassis) -> None:
    one, other = adapter(chassis, 1, rank=4, alpha=4), adapter(chassis, 2, rank=8, alpha=32)
    merged = changes(read_adapter(merge([Part(one, 1), Part(other, 1)], 16, 16), chassis))
    for name, first in changes(one).items():
        assert np.allclose(merged[name], (first + changes(other)[name]) / 2, atol=1e-8), name


def test_a_share_that_is_not_positive_is_refused(chassis: Chassis) -> None:
    with pytest.raises(ValueError, match="positive share"):
        merge([Part(adapter(chassis, 1), 0)], 8, 16)
    with pytest.raises(ValueError, match="positive share"):
        merge([], 8, 16)


@given(rank=st.integers(1, 6), inner=st.integers(1, 8), seed=st.integers(0, 99), same=st.booleans())
def test_no_direction_is_dead_and_nothing_nearer_exists(
    rank: int, inner: int, seed: int, same: bool
) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(9, inner)), rng.normal(size=(inner, 11))
    if same:  # of rank 1, whatever the factors' sizes
        left, right = np.ones((9, inner)), np.ones((inner, 11))
    b, a = truncated(left, right, rank)
    assert b.shape == (9, rank) and a.shape == (rank, 11)
    assert np.allclose(b @ a, dense(left @ right, rank), atol=1e-9)
    assert (np.linalg.norm(a, axis=1) > 1e-6).all(), "each can be trained"
