"""Answers that are made at once are each what they would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_serving import Desk, adapter_file, adapters, chassis, stepper

from leaves.serving.orders import Made
from leaves.serving.stepping import Segment, Stepper
from leaves.training.hf import HuggingFace

ASKS = ("the tree", "a stone in the river", "one", "rain on the leaves tonight, and wind")


@pytest.fixture(scope="module")
def llama() -> Stepper:
    return stepper()


@pytest.fixture(scope="module")
def other() -> Stepper:
    return stepper("mistral")


def greedy(on: Stepper, prompt: Sequence[int], worn: Any, count: int) -> list[int]:
    memory, made = on.memory(len(prompt) + count), []
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            (logits,) = on.step([Segment(memory, tokens, worn, True)])
            assert logits is not None
            tokens = [int(logits.argmax())]
            made += tokens
    return made


def generated(prompt: Sequence[int], leaf: int | None, count: int, kind: str) -> list[int]:
    """By `transformers.generate`, under PEFT."""
    held = HuggingFace(chassis(kind), torch.float32)
    held.bind(None if leaf is None else adapters(leaf))
    tokens = torch.tensor([list(prompt)])
    out = held.model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return [int(each) for each in out[0, len(prompt) :]]


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("leaf", [None, 1])
def test_greedy_tokens_are_those_of_transformers_generate(
    kind: str, leaf: int | None, llama: Stepper, other: Stepper
) -> None:
    on = llama if kind == "llama" else other
    worn = None if leaf is None else on.put_on(adapter_file(leaf))
    for prompt in ([5, 9, 200, 77], list(range(3, 150))):
        assert greedy(on, prompt, worn, 24) == generated(prompt, leaf, 24, kind)
    if worn is not None:
        on.take_off(worn)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_leaves_in_one_batch_do_not_hear_each_other(
    kind: str, llama: Stepper, other: Stepper
) -> None:
    on = llama if kind == "llama" else other
    alone = {}
    for number, ask in enumerate(ASKS):
        desk = Desk(on)
        desk.ask(0, ask, leaf=number or None)
        desk.finish()
        alone[number] = desk.text(0)
    together = Desk(on)
    for number, ask in enumerate(ASKS):
        together.ask(number, ask, leaf=number or None)
        together.step(number)  # they join one after the other
    together.finish()
    assert {number: together.text(number) for number in alone} == alone
    assert len(set(alone.values())) == len(ASKS), "the leaves say the same"


def test_a_prompt_read_in_parts_is_the_same_prompt(llama: Stepper) -> None:
    long = "the rain of the tree " * 40
    alone, company = Desk(llama), Desk(llama)
    alone.ask(1, long, leaf=1)
    alone.finish()
    company.ask(0, "one", leaf=2, tokens_max=60)
    company.step(2)
    company.ask(1, long, leaf=1)
    before = company.tokens(0)
    company.step(3)
    assert company.tokens(0) == before + 3, "who is being answered waits for no prompt"
    assert company.tokens(1) == 0
    company.finish()
    assert company.text(1) == alone.text(1)


def test_a_short_question_does_not_wait_for_a_long_prompt_nor_the_other_way_round(
    llama: Stepper,
) -> None:
    desk = Desk(llama)
    desk.ask(1, "the rain of the tree " * 80, tokens_max=3)
    for number in range(2, 7):
        desk.ask(number, ASKS[0], leaf=number % 3 or None, tokens_max=3)
    desk.step(5)
    assert [desk.tokens(number) > 0 for number in range(1, 7)] == [False] + [True] * 5
    steps = 0
    while not desk.tokens(1):
        desk.ask(100 + steps, ASKS[0], tokens_max=1)
        desk.step()
        steps += 1
    assert steps < 200


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**63 - 1),
    temperature=st.floats(0.3, 2.0),
    top_p=st.floats(0.1, 1.0),
    company=st.integers(0, 3),
)
def test_the_same_seed_gives_the_same_text_whatever_else_is_answered(
    llama: Stepper, seed: int, temperature: float, top_p: float, company: int
) -> None:
    drawn = {"temperature": temperature, "top_p": top_p, "seed": seed}
    alone, among = Desk(llama), Desk(llama)
    alone.ask(9, ASKS[0], leaf=1, **drawn)
    alone.finish()
    for number in range(company):
        among.ask(number, ASKS[number], leaf=number or None, temperature=1.0, seed=number)
    among.ask(9, ASKS[0], leaf=1, **drawn)
    among.finish()
    assert among.text(9) == alone.text(9)


def test_other_seeds_give_other_texts(llama: Stepper) -> None:
    desk = Desk(llama)
    for number in range(6):
        desk.ask(number, ASKS[0], temperature=1.5, seed=number)
    desk.finish()
    assert len({desk.text(number) for number in range(6)}) == 6


def test_a_small_nucleus_is_greedy(llama: Stepper) -> None:
    desk = Desk(llama)
    desk.ask(1, ASKS[1], leaf=1)
    desk.ask(2, ASKS[1], leaf=1, temperature=1.0, top_p=1e-6, seed=3)
    desk.finish()
    assert desk.text(1) == desk.text(2)


def test_a_cancelled_answer_costs_no_further_token(llama: Stepper) -> None:
    desk = Desk(llama)
    desk.ask(1, ASKS[0], leaf=1, tokens_max=500)
    desk.ask(2, ASKS[1], tokens_max=5)
    desk.step(3)
    desk.cancel(1)
    desk.finish()
    assert (desk.tokens(1), desk.tokens(2)) == (3, 5)


def test_a_cancel_that_comes_before_its_order_is_heard(llama: Stepper) -> None:
    desk = Desk(llama)
    desk.cancel(1)
    desk.ask(1, ASKS[0])
    assert not desk.engine.busy
    assert desk.begun() == []


def test_an_end_token_ends_an_answer_and_is_not_said(llama: Stepper) -> None:
    desk = Desk(llama)
    desk.ask(1, ASKS[0])
    desk.finish()
    ids = greedy(llama, desk.preparing.tokenizer.encode(ASKS[0]).ids, None, 12)
    ended = Desk(llama)
    ended.engine._ends = frozenset({ids[4]})
    ended.ask(1, ASKS[0])
    ended.finish()
    last = ended.said[-1]
    assert isinstance(last, Made)
    first = ids.index(ids[4])
    assert (last.finish, last.tokens) == ("stop", first + 1)
    assert desk.text(1).startswith(ended.text(1))


def test_a_text_is_said_character_by_whole_character(llama: Stepper) -> None:
    desk = Desk(llama)
    desk.ask(1, ASKS[2], temperature=2.0, seed=11, tokens_max=200)
    desk.finish()
    made = [x for x in desk.said if isinstance(x, Made)]
    assert len(made) == 200
    assert made[-1].finish == "length"
    text = desk.text(1)
    assert text.encode().decode() == text


def test_adapters_used_longest_ago_make_room_but_none_that_is_worn(llama: Stepper) -> None:
    desk = Desk(llama, resident=2)
    desk.ask(1, ASKS[0], leaf=1, tokens_max=50)
    for number in (2, 3, 4):
        desk.ask(number, ASKS[0], leaf=number, tokens_max=1)
        desk.step(1)
    assert desk.engine.has("1")
    assert desk.engine.has("4")
    assert not desk.engine.has("2")
    desk.finish()


def test_an_order_whose_adapter_has_gone_meanwhile_is_made_ready_again(llama: Stepper) -> None:
    desk = Desk(llama, resident=1)
    desk.ask(1, ASKS[0], leaf=1, tokens_max=1)
    desk.finish()
    desk.engine.has = lambda _: True  # type: ignore[method-assign] # as it was when it was read
    desk.ask(2, ASKS[0], leaf=2)
    assert [order.id for order in desk.again] == [2]


def test_answers_wait_for_memory_in_the_order_in_which_they_came(llama: Stepper) -> None:
    desk = Desk(llama, memory_bytes=llama.memory_bytes(64))
    for number in range(3):
        desk.ask(number, ASKS[2], tokens_max=40)
    desk.step(5)
    assert [desk.tokens(number) for number in range(3)] == [5, 0, 0]
    desk.cancel(0)
    desk.step(5)
    assert [desk.tokens(number) for number in range(3)] == [5, 5, 0]
    desk.finish()
    assert desk.tokens(2) == 40


def test_numbers_that_are_none_are_the_adapters_fault_and_hurt_nobody_else(
    llama: Stepper,
) -> None:
    desk = Desk(llama)
    desk.ask(1, ASKS[0], leaf=7)
    desk.ask(2, ASKS[1], leaf=1)
    worn: Any = desk.engine._worn["7"]
    worn.lows[0][0].b.fill_(torch.inf)
    desk.finish()
    (refused,) = desk.refused()
    assert (refused.id, refused.adapter) == (1, True)
    assert desk.tokens(2) == 12


def test_bfloat16_weights_choose_between_the_likeliest_in_full_precision() -> None:
    from leaves.serving.opening import open_stepper

    short = open_stepper(chassis(), "bfloat16", 1)[0]
    memory = short.memory(64)
    with torch.no_grad():
        (logits,) = short.step([Segment(memory, [5, 9, 200, 77], None, True)])
    assert logits is not None
    best = logits.topk(32).values
    assert not torch.equal(best, best.bfloat16().float())


class Counted:
    """A stepper that counts the tokens it reads."""

    def __init__(self, held: Stepper) -> None:
        self._held = held
        self.read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)

    def step(self, segments: Sequence[Segment]) -> Any:
        self.read += sum(len(segment.tokens) for segment in segments)
        return self._held.step(segments)


TURNS = "the river and the stone, and the rain on them. "


def test_a_conversations_next_turn_reads_only_what_is_new(llama: Stepper) -> None:
    counted: Any = Counted(llama)
    desk, fresh = Desk(counted), Desk(llama)
    desk.ask(1, TURNS, leaf=1)
    desk.finish()
    longer = TURNS + desk.text(1) + " one"
    fresh.ask(2, longer, leaf=1)
    fresh.finish()
    before = counted.read
    desk.ask(2, longer, leaf=1)
    desk.finish()
    assert desk.text(2) == fresh.text(2)
    assert counted.read - before < 12 + 12, "the answer's tokens, and few of the prompt"


def test_what_was_read_under_another_leaf_or_is_asked_with_a_seed_is_read_again(
    llama: Stepper,
) -> None:
    counted: Any = Counted(llama)
    desk = Desk(counted)
    desk.ask(1, TURNS, leaf=1)
    desk.finish()
    tokens = counted.read - 11
    for number, (leaf, seed) in enumerate([(2, None), (None, None), (1, 5)]):
        before = counted.read
        desk.ask(10 + number, TURNS, leaf=leaf, seed=seed, tokens_max=1)
        desk.finish()
        assert counted.read - before == tokens


def test_texts_that_are_kept_give_way_to_answers(llama: Stepper) -> None:
    desk = Desk(llama, memory_bytes=llama.memory_bytes(100))
    for number in range(12):
        desk.ask(number, TURNS + str(number) * number, tokens_max=30, leaf=number % 3 or None)
        desk.finish()
        assert desk.tokens(number) == 30
    assert desk.engine._free_bytes >= 0


@settings(max_examples=12)
@given(data=st.data())
def test_memory_is_neither_lost_nor_given_twice(llama: Stepper, data: st.DataObject) -> None:
    desk = Desk(llama, memory_bytes=llama.memory_bytes(150), resident=2)
    for number in range(data.draw(st.integers(1, 12))):
        text = TURNS * data.draw(st.integers(0, 1)) + "one " * data.draw(st.integers(1, 9))
        leaf, count = data.draw(st.sampled_from([None, 1, 2, 3])), data.draw(st.integers(1, 40))
        desk.ask(number, text, leaf=leaf, tokens_max=count)
        for _ in range(data.draw(st.integers(0, 9))):
            if desk.engine.busy:
                desk.step()
        if data.draw(st.booleans()):
            desk.cancel(data.draw(st.integers(0, number)))
    desk.finish()
    held = sum(text.bytes for text in desk.engine._kept._texts)
    assert desk.engine._free_bytes + held == llama.memory_bytes(150)
