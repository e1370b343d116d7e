"""Our own Llama is held to transformers and PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import torch

from leaves.training.adapter import Adapters
from leaves.training.backend import open_backend
from leaves.training.chassis import open_chassis
from leaves.training.encode import Encoded, chunks
from leaves.training.hf import HuggingFace
from leaves.training.llama import Llama

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
@pytest.mark.parametrize(
    "weights", [(0.2,) * 5, (0.5, -0.25, 0.0, 1.0, -0.75)], ids=["equal", "unequal"]
)
def test_losses_and_gradients_are_those_of_transformers_and_peft(
    chassis: Path,
    dtype: torch.dtype,
    tolerance: float,
    targets: tuple[str, ...] | None,
    weights: tuple[float, ...],
) -> None:
    batch = sessions(5)
    ours, theirs = open_backend(chassis, dtype), HuggingFace(open_chassis(chassis), dtype)
    made = adapters(chassis, targets)
    losses, gradients = [], []
    for backend in (ours, theirs):
        backend.bind(made)
        made.grads.zero_()
        losses.append(backend.learn(batch, lambda _: weights))
        assert losses[-1] == pytest.approx(backend.losses(batch), abs=5 * tolerance)
        gradients.append(made.grads.clone())
    assert losses[0] == pytest.approx(losses[1], abs=5 * tolerance)
    cosine = torch.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert cosine > 1 - tolerance
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=3 * tolerance)


def test_weights_are_asked_for_once_with_the_losses_of_all_sessions(chassis: Path) -> None:
    batch = sessions(4)
    made = adapters(chassis)
    for backend in (
        open_backend(chassis, torch.float32),
        HuggingFace(open_chassis(chassis), torch.float32),
    ):
        backend.bind(made)
        asked: list[list[float]] = []

        def weigh(losses: Sequence[float], asked: list[list[float]] = asked) -> list[float]:
            asked.append(list(losses))
            return [0.0] * len(losses)

        made.grads.zero_()
        assert backend.learn(batch, weigh) == asked[0] and len(asked) == 1
        assert not made.grads.any(), "sessions of no weight teach nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("layers_kept", "recomputed"), [(0, 2), (1, 1)], ids=["none", "one"])
def test_layers_that_may_keep_nothing_give_the_same_gradients_to_the_bit(
    chassis: Path, dtype: torch.dtype, layers_kept: int, recomputed: int
) -> None:
    batch = sessions(5)
    backend = open_backend(chassis, dtype)
    assert isinstance(backend, Llama)
    made = adapters(chassis)
    backend.bind(made)
    forwards = 0
    kept_bytes = 0

    def watch(layer: Any) -> None:
        forward = layer.forward

        def counted(*given: Any) -> Any:
            nonlocal forwards, kept_bytes
            forwards += 1
            result = forward(*given)
            kept_bytes = result[1].nbytes
            return result

        layer.forward = counted

    for layer in backend.layers:
        watch(layer)
    results = []
    for limit in (1 << 40, None):
        backend.kept_bytes_max = layers_kept * kept_bytes if limit is None else limit
        forwards = 0
        made.grads.zero_()
        results.append((backend.learn(batch, lambda losses: [0.2] * len(losses)), made.grads + 0))
    assert forwards == len(backend.layers) + recomputed
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_a_session_without_completion_has_no_loss_and_spoils_no_gradient(
    chassis: Path, kind: str
) -> None:
    opened = open_chassis(chassis)
    ours = kind == "ours"
    backend = open_backend(chassis, torch.float32) if ours else HuggingFace(opened, torch.float32)
    made = adapters(chassis)
    backend.bind(made)
    full, bare, one = Encoded((5, 6, 7, 8), 2), Encoded((5, 6), 2), Encoded((9,), 1)
    gradients = []
    for batch in ([full], [full, bare, one], [one, bare]):
        made.grads.zero_()
        losses = backend.learn(batch, lambda losses: [1.0] * len(losses))
        assert losses == pytest.approx(backend.losses(batch), abs=1e-5)
        assert [loss > 0 for loss in losses] == [session is full for session in batch]
        gradients.append(made.grads.clone())
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not gradients[2].any()


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
    prompts = [session.tokens for session in sessions(4)]
    made = adapters(chassis)
    answers = []
    for backend in (
        open_backend(chassis, torch.float32),
        HuggingFace(open_chassis(chassis), torch.float32),
    ):
        backend.bind(made)
        answers.append(backend.generate(prompts, count=24, end=2))
    assert answers[0] == answers[1]
    assert all(answers[0])


def test_the_company_of_other_prompts_does_not_change_an_answer(chassis: Path) -> None:
    prompts = [session.tokens for session in sessions(6)]
    backend = open_backend(chassis, torch.float32)
    backend.bind(adapters(chassis))
    alone = [backend.generate([prompt], count=24, end=-1)[0] for prompt in prompts]
    assert backend.generate(prompts, count=24, end=-1) == alone
    end = alone[2][5]  # ends some answers early, and others not
    cut = [made[: made.index(end)] if end in made else made for made in alone]
    assert backend.generate(prompts, count=24, end=end) == cut
    assert len({len(made) for made in cut}) > 1
    assert backend.generate(prompts, count=0, end=end) == [[]] * len(prompts)


def test_chunks_hold_every_session_once_and_no_more_rows_than_allowed() -> None:
    batch = [Encoded((1,) * length, 1) for length in (500, 3, 700, 90, 512, 20, 9)]
    parts = list(chunks(batch))
    assert sorted(index for part in parts for index in part) == list(range(len(batch)))
    assert all(sum(len(batch[index].tokens) for index in part) <= 1024 for part in parts)
