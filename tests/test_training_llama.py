"""Our own Llama is held to transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llama
import torch

from leaves.training.adapter import Adapters
from leaves.training.backend import open_backend
from leaves.training.chassis import open_chassis
from leaves.training.encode import Encoded, chunks
from leaves.training.hf import HuggingFace

RANDOM = torch.Generator().manual_seed(7)


def sessions(count: int) -> list[Encoded]:
    """Random tokens, of unequal lengths."""
    made = []
    for index in range(count):
        length = 9 + 7 * index
        tokens = torch.randint(3, tiny_llama.VOCABULARY, (length,), generator=RANDOM)
        made.append(Encoded(tuple(tokens.tolist()), 3 + 2 * index))
    return made


def adapters(chassis: Path, targets: tuple[str, ...] | None = None) -> Adapters:
    opened = open_chassis(chassis)
    shapes = opened.adapter_shapes(4, targets or opened.targets)
    made = Adapters(shapes, rank=4, alpha=8)
    made.initialise(seed=1)
    made.values.add_(torch.randn(made.values.shape, generator=RANDOM), alpha=0.05)
    return made


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("targets", [None, ("q_proj", "up_proj", "v_proj")])
def test_losses_and_gradients_are_those_of_transformers_and_peft(
    chassis: Path, dtype: torch.dtype, tolerance: float, targets: tuple[str, ...] | None
) -> None:
    batch = sessions(5)
    ours, theirs = open_backend(chassis, dtype), HuggingFace(open_chassis(chassis), dtype)
    made = adapters(chassis, targets)
    gradients = []
    for backend in (ours, theirs):
        backend.bind(made)
        made.grads.zero_()
        loss = backend.train(batch, 1 / len(batch))
        assert loss == pytest.approx(sum(backend.losses(batch)) / len(batch), abs=5 * tolerance)
        gradients.append((loss, made.grads.clone()))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=tolerance)
    cosine = torch.cosine_similarity(gradients[0][1], gradients[1][1], dim=0)
    assert cosine > 1 - tolerance
    assert gradients[0][1].norm() == pytest.approx(gradients[1][1].norm().item(), rel=3 * tolerance)


def test_an_adapter_changes_nothing_once_it_is_taken_off(chassis: Path) -> None:
    batch = sessions(3)
    for backend in (
        open_backend(chassis, torch.float32),
        HuggingFace(open_chassis(chassis), torch.float32),
    ):
        bare = backend.losses(batch)
        backend.bind(adapters(chassis))
        assert backend.losses(batch) != bare
        backend.bind(None)
        assert backend.losses(batch) == bare


def test_the_company_of_other_sessions_does_not_change_a_loss(chassis: Path) -> None:
    batch = sessions(6)
    backend = open_backend(chassis, torch.float32)
    alone = [backend.losses([session])[0] for session in batch]
    assert backend.losses(batch) == pytest.approx(alone, abs=1e-5)


def test_greedy_answers_are_those_of_transformers(chassis: Path) -> None:
    prompt = sessions(4)[3].tokens
    made = adapters(chassis)
    answers = []
    for backend in (
        open_backend(chassis, torch.float32),
        HuggingFace(open_chassis(chassis), torch.float32),
    ):
        backend.bind(made)
        answers.append(backend.generate(prompt, count=24, end=2))
    assert answers[0] == answers[1]
    assert answers[0]


def test_chunks_hold_every_session_once_and_no_more_rows_than_allowed() -> None:
    batch = [Encoded((1,) * length, 1) for length in (500, 3, 700, 90, 512, 20, 9)]
    parts = list(chunks(batch))
    assert sorted(index for part in parts for index in part) == list(range(len(batch)))
    assert all(sum(len(batch[index].tokens) for index in part) <= 1024 for part in parts)
