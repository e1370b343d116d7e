"""Preference training: the gradient is DPO's, a kill costs nothing, and the gate tells a gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import tiny_llama
import torch
from torch.nn import functional

from leaves.model import PreferenceEvaluation, Verdict
from leaves.ports import (
    EvaluateJob,
    Example,
    Preference,
    PreferenceJob,
    Progress,
    Report,
    Schedule,
    TrainJob,
    silent,
)
from leaves.training.adapter import Adapters
from leaves.training.backend import Backend, open_backend
from leaves.training.chassis import open_chassis
from leaves.training.child import ChildTrainer, TrainingError
from leaves.training.dpo import ANCHOR, objective, prefer, weights
from leaves.training.encode import Encoded, Encoder
from leaves.training.evaluate import measure
from leaves.training.files import warm_start
from leaves.training.hf import HuggingFace
from leaves.training.preference import PairLosses, answers, judge_preferences, paired, split_pairs
from leaves.training.sft import train

SCHEDULE = Schedule(steps=10, batch=4, learning_rate=2e-3)
BETA = 5.0
LIKED, DISLIKED = ("north", "gold", "day", "up"), ("south", "lead", "night", "down")
NOUNS = ("apple", "bridge", "candle", "desert", "engine", "forest", "garden", "harbour", "island")


def pair(number: int, better: str, worse: str) -> Preference:
    noun = NOUNS[number % len(NOUNS)]
    return Preference(
        prompt=f"{noun} {number}: what of it?",
        chosen=f"take the {noun} {better}",
        rejected=f"take the {noun} {worse}",
        session=f"a{number:03}",
        rejected_session=f"c{number:03}",
    )


def planted(count: int) -> tuple[Preference, ...]:
    """A preference that shows in the last word alone: of each two, one is always liked better."""
    random = Random(4)
    return tuple(
        pair(number, random.choice(LIKED), random.choice(DISLIKED)) for number in range(count)
    )


def shuffled(count: int) -> tuple[Preference, ...]:
    """The same answers, but which of two is liked hangs on a coin."""
    random = Random(5)
    return tuple(
        replace(each, chosen=each.rejected, rejected=each.chosen) if random.random() < 0.5 else each
        for each in planted(count)
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in a child, so that the bytes of both are the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory, chassis: Path) -> Path:
    """An adapter that knows the form of the answers, and both last words."""
    examples = tuple(
        Example(f"s{number}", each.prompt, each.chosen if number % 2 else each.rejected)
        for number, each in enumerate(planted(64))
    )
    job = TrainJob(tmp_path_factory.mktemp("sft"), chassis, examples, Schedule(steps=24, batch=8))
    with torch.no_grad():
        return train(job, silent, dtype=torch.float32).adapter


def job(
    work: Path, chassis: Path, warm: Path, pairs: tuple[Preference, ...], **changes: object
) -> PreferenceJob:
    made = PreferenceJob(work, chassis, pairs, SCHEDULE, warm, BETA)
    return replace(made, **changes)  # type: ignore[arg-type]


def encoded(chassis: Path, pairs: Sequence[Preference]) -> list[Encoded]:
    return Encoder(chassis).encode_all(answers(pairs), tokens_max=512)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", ["own", "transformers"])
def test_the_gradient_is_that_of_dpo_written_down_with_autograd(
    chassis: Path, supervised: Path, kind: str
) -> None:
    opened = open_chassis(chassis)
    adapters = Adapters(opened.adapter_shapes(8, opened.targets), rank=8, alpha=16)
    warm_start(supervised, adapters, opened)
    backend: Backend = (
        HuggingFace(opened, torch.float32)
        if kind == "transformers"
        else open_backend(chassis, torch.float32)
    )
    backend.bind(adapters)
    sessions = encoded(chassis, planted(6))
    known = paired(backend.losses(sessions))
    moved = torch.randn(adapters.values.shape, generator=torch.Generator().manual_seed(3))
    adapters.values.add_(moved, alpha=0.02)
    backend.refresh()
    with torch.no_grad():
        losses = backend.learn(sessions, weights(known, BETA, len(known)))
    expected_loss, expected = by_autograd(chassis, adapters, sessions, known)
    assert sum(objective(losses, known, BETA)) / 6 == pytest.approx(expected_loss, abs=1e-4)
    assert torch.cosine_similarity(adapters.grads, expected, dim=0) > 1 - 1e-4
    assert adapters.grads.norm() == pytest.approx(expected.norm().item(), rel=1e-3)


def by_autograd(
    chassis: Path, adapters: Adapters, sessions: Sequence[Encoded], known: Sequence[PairLosses]
) -> tuple[float, torch.Tensor]:
    """The textbook's form, on transformers and PEFT: log-probabilities and backward()."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_pretrained(chassis, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=sorted(adapters.pairs))
    model = get_peft_model(bare, config)
    modules = dict(bare.named_modules())
    parameters = []
    for name, pair in adapters.pairs.items():
        for side, values in (("lora_A", pair.a), ("lora_B", pair.b)):
            parameter = getattr(modules[name], side)["default"].weight
            parameter.data.copy_(values)
            parameters.append(parameter)
    logps = []
    for session in sessions:
        tokens = torch.tensor([session.tokens])
        logits = model(input_ids=tokens, use_cache=False).logits[0].log_softmax(-1)
        said = logits[session.prompt - 1 : -1].gather(1, tokens[0, session.prompt :, None])
        logps.append(said.mean())
    chosen, rejected = torch.stack(logps).chunk(2)
    before = -torch.tensor(known)
    margin = (chosen - before[:, 0]) - (rejected - before[:, 1])
    loss = (-functional.logsigmoid(BETA * margin) - ANCHOR * chosen).mean()
    torch.autograd.backward(loss)
    return float(loss.detach()), torch.cat([each.grad.reshape(-1) for each in parameters])


class StoppedError(Exception):
    """Raised from a report, where a process would be killed."""


def at(phase: str, done: int, end: Callable[[], None]) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if (progress.phase, progress.done) == (phase, done):
            end()

    return report


def stop() -> None:
    raise StoppedError


def run(asked: PreferenceJob, report: Report = silent) -> bytes:
    with torch.no_grad():
        return prefer(asked, report, dtype=torch.float32).adapter.read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, chassis: Path, supervised: Path) -> bytes:
    """The adapter of a preference training that nothing interrupted."""
    work = tmp_path_factory.mktemp("unbroken")
    told: list[Progress] = []
    made = run(job(work, chassis, supervised, planted(24)), told.append)
    assert [p.done for p in told if p.phase == "prefer"] == list(range(1, SCHEDULE.steps + 1))
    assert "tokens/s" in told[-1].detail and "s left" in told[-1].detail
    assert {path.name for path in work.iterdir()} == {"adapter.safetensors", "result.json"}
    return made


def test_a_child_killed_half_way_and_run_again_ends_in_the_same_bytes(
    tmp_path: Path, chassis: Path, supervised: Path, unbroken: bytes
) -> None:
    trainer = ChildTrainer(dtype="float32")
    asked = job(tmp_path / "work", chassis, supervised, planted(24))
    with pytest.raises(TrainingError, match="signal 9"):
        trainer.prefer(asked, at("prefer", 6, trainer.stop))
    told: list[Progress] = []
    trained = trainer.prefer(asked, told.append)
    assert next(p.done for p in told if p.phase == "prefer") == 5, "it went on"
    assert [p.done for p in told if p.phase == "reference"] == [24], "the reference was kept"
    assert trained.adapter.read_bytes() == unbroken
    assert trained.loss_last < trained.loss_first


@pytest.mark.parametrize(("phase", "done"), [("reference", 24), ("prefer", 1), ("prefer", 9)])
def test_a_training_stopped_anywhere_ends_in_the_same_bytes_and_is_not_done_twice(
    tmp_path: Path, chassis: Path, supervised: Path, unbroken: bytes, phase: str, done: int
) -> None:
    asked = job(tmp_path, chassis, supervised, planted(24))
    with pytest.raises(StoppedError):
        run(asked, at(phase, done, stop))
    told: list[Progress] = []
    assert run(asked, told.append) == unbroken
    assert [p.done for p in told if p.phase == "reference"] == [24], "the reference was kept"
    again: list[Progress] = []
    assert run(asked, again.append) == unbroken
    assert not again


def test_what_a_killed_training_leaves_holds_no_text(
    tmp_path: Path, chassis: Path, supervised: Path
) -> None:
    asked = job(tmp_path, chassis, supervised, planted(24))
    with pytest.raises(StoppedError):
        run(asked, at("prefer", 5, stop))
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.keys() == {"checkpoint.safetensors", "reference.safetensors"}
    for data in (*left.values(), repr(asked).encode()):
        assert b"north" not in data and b"apple" not in data


def test_pairs_that_were_changed_are_measured_and_trained_anew(
    tmp_path: Path, chassis: Path, supervised: Path, unbroken: bytes
) -> None:
    with pytest.raises(StoppedError):
        run(job(tmp_path, chassis, supervised, shuffled(24)), at("prefer", 5, stop))
    told: list[Progress] = []
    assert run(job(tmp_path, chassis, supervised, planted(24)), told.append) == unbroken
    assert (told[0].phase, told[0].done) == ("reference", 0)


def test_without_a_step_the_warm_start_stays_as_it_is(
    tmp_path: Path, chassis: Path, supervised: Path
) -> None:
    still = replace(SCHEDULE, steps=1, learning_rate=0.0)
    asked = job(tmp_path, chassis, supervised, planted(4), schedule=still)
    assert run(asked) == supervised.read_bytes()


def test_a_warm_start_of_another_rank_is_refused(
    tmp_path: Path, chassis: Path, supervised: Path
) -> None:
    smaller = replace(SCHEDULE, rank=4, alpha=8)
    with pytest.raises(ValueError, match="the schedule asks rank 4"):
        run(job(tmp_path, chassis, supervised, planted(4), schedule=smaller))


Gate = Callable[[tuple[Preference, ...]], PreferenceEvaluation]


@pytest.fixture
def gate(tmp_path: Path, chassis: Path, supervised: Path) -> Gate:
    """Split, train and judge, as a round does."""

    def judged(pairs: tuple[Preference, ...]) -> PreferenceEvaluation:
        split = split_pairs(pairs)
        assert not split.too_few
        model = open_backend(chassis, torch.float32)
        opened = open_chassis(chassis)
        adapters = Adapters(opened.adapter_shapes(8, opened.targets), rank=8, alpha=16)

        def bind(path: Path | None) -> None:
            assert path is not None
            warm_start(path, adapters, opened)
            model.bind(adapters)

        own = tuple(
            Example(f"s{n}", each.prompt, each.chosen if n % 2 else each.rejected)
            for n, each in enumerate(planted(24))
        )
        run(job(tmp_path, chassis, supervised, split.train))
        adapters_of = (("before", supervised), ("after", tmp_path / "adapter.safetensors"))
        asked = EvaluateJob(chassis, answers(split.held_out) + own, adapters_of)
        with torch.no_grad():
            losses = measure(asked, model, bind, silent).by_label
        count = 2 * len(split.held_out)
        return judge_preferences(
            paired(losses["before"][:count]),
            paired(losses["after"][:count]),
            losses["before"][count:],
            losses["after"][count:],
            split.groups,
        )

    return judged


def test_a_planted_preference_passes_the_gate(gate: Gate) -> None:
    judged = gate(planted(160))
    assert judged.verdict is Verdict.BETTER
    assert judged.accuracy_after > 0.9
    assert judged.gain.low > 0


def test_a_preference_by_a_coin_does_not(gate: Gate) -> None:
    judged = gate(shuffled(160))
    assert judged.verdict is Verdict.NOT_BETTER
    assert judged.gain.low <= 0
