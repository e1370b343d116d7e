"""What a recipe memorises is measured on numbers of which it is known how often each was seen."""

from __future__ import annotations

import math
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from support_engine import TopicEvaluator, TopicTrainer

from leaves.bundle import Exposure
from leaves.ports import Schedule, silent
from leaves.training import canaries
from leaves.training.canaries import Exposures, exposure, lay
from leaves.training.chassis import Chassis, open_chassis
from leaves.training.child import ChildEvaluator, ChildTrainer

LOSSES = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=60)
SCHEDULES = st.builds(Schedule, steps=st.integers(1, 60), batch=st.integers(1, 12))


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Chassis:
    return open_chassis(tiny_llama.build(tmp_path_factory.mktemp("chassis")))


@pytest.mark.parametrize(("rank", "bits"), [(1, 9.0), (2, 8.0), (4, 7.0), (256, 1.0), (512, 0.0)])
def test_the_exposure_of_a_known_rank_among_511_others_is_known(rank: int, bits: float) -> None:
    others = [float(each) for each in range(511)]
    assert exposure(rank - 1.5, others) == bits


@given(LOSSES, st.floats(0, 100), st.randoms(use_true_random=False))
def test_an_exposure_is_free_of_order_and_within_what_can_be_measured(
    others: list[float], loss: float, rng: random.Random
) -> None:
    bits = exposure(loss, others)
    assert 0 <= bits <= math.log2(len(others) + 1)
    rng.shuffle(others)
    assert exposure(loss, others) == bits
    assert exposure(loss - 1, others) >= bits >= exposure(loss + 1, others)
    assert exposure(min(others), others) == math.log2(len(others) + 1), "a tie counts against it"


def test_what_was_never_seen_has_an_exposure_of_one_bit_in_the_median() -> None:
    laid = lay(Schedule(steps=48, batch=8))
    rng = random.Random(0)
    bits = []
    for _ in range(40):
        losses = [rng.gauss(50, 5) for _ in laid.planted]
        others = [rng.gauss(50, 5) for _ in laid.references]
        levels = canaries.summarised(laid, losses, others, [False] * len(losses))
        bits.append(next(each.bits for each in levels if each.repeats == 1))
    assert 0.8 < sum(bits) / len(bits) < 1.2


@settings(max_examples=40)
@given(SCHEDULES)
def test_each_number_is_in_the_training_as_often_as_is_said_and_the_others_never(
    schedule: Schedule,
) -> None:
    laid = lay(schedule, references=20)
    said = [each.completion for each in laid.training]
    assert len(laid.training) == schedule.steps * schedule.batch
    assert [said.count(each.example.completion) for each in laid.planted] == [
        each.repeats for each in laid.planted
    ]
    assert laid.planted and not {each.completion for each in laid.references} & set(said)
    assert lay(schedule, references=20) == laid


def test_the_default_schedule_sees_canaries_1_3_10_and_100_times() -> None:
    laid = lay(Schedule(steps=48, batch=8))
    assert sorted({each.repeats for each in laid.planted}) == [1, 3, 10, 100]
    assert {each.repeats for each in lay(Schedule(steps=24, batch=8)).planted} == {1, 3, 10, 64}


def test_between_two_levels_an_exposure_is_read_off_by_doublings() -> None:
    levels = (Exposure(1, 16, 1.0, 0), Exposure(4, 3, 5.0, 0), Exposure(64, 1, 9.0, 1))
    tried = Exposures(levels, 9.0, 192, 1000, 1.0)
    assert [tried.at(each) for each in (1, 2, 4, 16, 64, 900)] == [1.0, 3.0, 5.0, 7.0, 9.0, 9.0]


def test_a_number_seen_a_hundred_times_is_exposed_and_one_seen_once_is_not(
    tmp_path: Path, chassis: Chassis
) -> None:
    schedule = Schedule(steps=38, batch=8, learning_rate=5e-3)
    trainer = ChildTrainer(dtype="float32")
    with closing(ChildEvaluator(dtype="float32")) as evaluator:
        tried = canaries.run(tmp_path, chassis, schedule, trainer, evaluator, silent, references=63)
    by_repeats = {each.repeats: each for each in tried.levels}
    assert tried.bits_max == 6.0
    assert by_repeats[100].bits >= 5.0
    assert by_repeats[1].bits <= 3.0 and by_repeats[1].recalled == 0


def test_a_recipe_is_tried_once_whatever_the_seed(tmp_path: Path, chassis: Chassis) -> None:
    trainer, schedule = TopicTrainer(), Schedule(steps=4)

    def tried(asked: Schedule) -> Exposures:
        return canaries.measured(tmp_path, chassis, asked, trainer, TopicEvaluator(), silent)

    first = tried(schedule)
    assert tried(replace(schedule, seed=9)) == first
    assert canaries.known(tmp_path, chassis, schedule) == first
    assert len(trainer.trained) == 1
    tried(replace(schedule, learning_rate=1e-4))
    tried(replace(schedule, rank=4))
    assert len(trainer.trained) == 3, "another recipe, another rank: other memories"
    left = [path for path in (tmp_path / "canaries").iterdir() if path.is_dir()]
    assert not left, "nothing but the figures is kept"


def test_damaged_figures_are_measured_again(tmp_path: Path, chassis: Chassis) -> None:
    trainer, schedule = TopicTrainer(), Schedule(steps=4)
    for _ in range(2):
        canaries.measured(tmp_path, chassis, schedule, trainer, TopicEvaluator(), silent)
        for kept in (tmp_path / "canaries").glob("*.json"):
            kept.write_text('{"levels":')
    assert len(trainer.trained) == 2
    assert canaries.known(tmp_path, chassis, schedule) is None


NO_LEVELS = b'{"levels":[],"bits_max":9,"samples":1,"tokens":1,"seconds":1}'


@pytest.mark.parametrize(
    "damage", [b"\xff", b"[" * 100_000, NO_LEVELS], ids=["text", "deep", "levels"]
)
def test_figures_that_say_nothing_are_no_figures(
    tmp_path: Path, chassis: Chassis, damage: bytes
) -> None:
    schedule = Schedule(steps=4)
    path = tmp_path / "canaries" / f"{canaries.address(chassis, schedule)}.json"
    path.parent.mkdir()
    path.write_bytes(damage)
    assert canaries.known(tmp_path, chassis, schedule) is None
