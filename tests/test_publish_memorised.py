"""A training text that comes out of an adapter word for word is found, and only such a one."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_llama
import torch
from hypothesis import given
from hypothesis import strategies as st

from leaves.bundle import read_adapter
from leaves.ports import Example, ProbeJob, Schedule, TrainJob, silent
from leaves.training.adapter import Adapters
from leaves.training.backend import open_backend
from leaves.training.chassis import open_chassis
from leaves.training.encode import Encoded, Encoder
from leaves.training.hf import HuggingFace
from leaves.training.memorised import (
    RUN_TOKENS,
    copied,
    drawn,
    gap,
    known_by_itself,
    longest_run,
    probe,
    repeated,
    sought,
)
from leaves.training.preprocess import normalised
from leaves.training.sft import train

HITS = st.lists(st.booleans(), max_size=150)
SECRET = "the harbour master keeps the third key under the blue stone by the old well at night"


def texts(count: int, words: int = 30) -> tuple[Example, ...]:
    """Texts of random letters, of which no one is like another."""
    rng = random.Random(5)
    said = [
        " ".join("".join(rng.choices(string.ascii_lowercase, k=4)) for _ in range(words))
        for _ in range(count)
    ]
    return tuple(Example(f"s{n:03}", f"what is text {n}?", each) for n, each in enumerate(said))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take many times longer on two threads of a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


def probed(work: Path, chassis: Path, texts: Sequence[Example], schedule: Schedule) -> list[int]:
    """Longest runs of an adapter trained on these texts; in this process, for a child is slow."""
    opened = open_chassis(chassis)
    backend = open_backend(chassis, torch.float32)

    def bind(adapter: Path | None) -> None:
        if adapter is None:
            return backend.bind(None)
        read = read_adapter(adapter.read_bytes(), opened)
        bound = Adapters(read.shapes, read.rank, read.alpha)
        bound.load(read.tensors)
        return backend.bind(bound)

    with torch.no_grad():
        job = TrainJob(work, chassis, tuple(texts), schedule)
        trained = train(job, silent, dtype=torch.float32)
        found = probe(ProbeJob(chassis, trained.adapter, tuple(texts)), backend, bind, silent)
    assert all(size >= RUN_TOKENS for size in found.tokens)
    return list(found.longest)


def sessions(count: int) -> list[Encoded]:
    """Random tokens, of unequal lengths."""
    rng = random.Random(7)
    lengths = [9 + 7 * index for index in range(count)]
    drawn_ = [[rng.randrange(3, tiny_llama.VOCABULARY) for _ in range(each)] for each in lengths]
    return [Encoded(tuple(tokens), 3 + 2 * index) for index, tokens in enumerate(drawn_)]


def adapters(chassis: Path) -> Adapters:
    """Of no training: they only have to change something."""
    opened = open_chassis(chassis)
    made = Adapters(opened.adapter_shapes(4, opened.targets), rank=4, alpha=8)
    made.initialise(seed=1)
    noise = torch.randn(made.values.shape, generator=torch.Generator().manual_seed(7))
    made.values.add_(noise, alpha=0.05)
    return made


def test_an_adapter_that_learned_one_text_by_heart_gives_it_away(
    tmp_path: Path, chassis: Path
) -> None:
    text = Example("one", "where is the key?", SECRET)
    schedule = Schedule(steps=60, batch=1, learning_rate=3e-3)
    assert probed(tmp_path, chassis, [text], schedule)[0] >= RUN_TOKENS


def test_an_adapter_that_saw_each_text_once_gives_none_away(tmp_path: Path, chassis: Path) -> None:
    schedule = Schedule(steps=8, batch=4, learning_rate=2e-3)
    assert max(probed(tmp_path, chassis, texts(32), schedule)) < RUN_TOKENS


def test_what_an_adapter_recalls_is_what_it_would_say_by_itself(chassis: Path) -> None:
    backend, tried = open_backend(chassis, torch.float32), adapters(chassis)
    with torch.no_grad():
        backend.bind(tried)
        for session in sessions(4):
            prompt = session.tokens[: session.prompt]
            (said,) = backend.generate([prompt], count=30, end=-1)
            whole = replace(session, tokens=(*prompt, *said))
            assert backend.recalls([whole]) == [[True] * 30]
            other = (said[14] + 1) % tiny_llama.VOCABULARY
            wrong = replace(session, tokens=(*prompt, *said[:14], other, *said[15:]))
            assert backend.recalls([whole, wrong])[1][:15] == [True] * 14 + [False]


def test_both_backends_recall_alike(chassis: Path) -> None:
    batch, tried = sessions(5), adapters(chassis)
    ours = open_backend(chassis, torch.float32)
    theirs = HuggingFace(open_chassis(chassis), torch.float32)
    with torch.no_grad():
        for backend in (ours, theirs):
            backend.bind(tried)
        assert ours.recalls(batch) == theirs.recalls(batch)
        assert [len(each) for each in ours.recalls(batch)] == [each.completion for each in batch]


@given(HITS)
def test_the_longest_run_is_the_longest_stretch_without_a_miss(hits: list[bool]) -> None:
    misses = [-1, *(at for at, hit in enumerate(hits) if not hit), len(hits)]
    assert longest_run(hits) == max(after - before - 1 for before, after in pairwise(misses))


@given(HITS, HITS)
def test_what_is_owed_to_something_else_never_makes_a_run_longer(
    hits: list[bool], owed: list[bool]
) -> None:
    assert longest_run(hits, owed) <= longest_run(hits)
    assert longest_run(hits, [True] * len(hits)) == 0


def test_a_run_of_the_chassis_own_does_not_count_but_what_stands_around_it_does() -> None:
    learned = [True] * 170
    known = [False] * 30 + [True] * 60 + [False] * 80
    assert longest_run(learned, known_by_itself(known)) == 110
    shorter = [False] * 30 + [True] * 49 + [False] * 91
    assert longest_run(learned, known_by_itself(shorter)) == 170, "49 tokens are no knowledge of it"


def test_what_a_session_said_before_is_no_memory_of_the_training() -> None:
    ask = tuple(range(100, 180))
    session = Encoded((*ask, 7, *ask[:60], 8, 9), len(ask))
    assert [at for at, each in enumerate(copied(session)) if not each] == [0, 1, 2, 3, 61, 62]
    assert longest_run([True] * 63, copied(session)) == 6
    assert copied(Encoded((1, 2, 3), 1)) == [False, False]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(0, 59))
def test_a_token_is_copied_if_it_ends_four_that_stood_there_before(
    tokens: list[int], prompt: int
) -> None:
    prompt = min(prompt, len(tokens) - 1)
    found = copied(Encoded(tuple(tokens), prompt))
    assert len(found) == len(tokens) - prompt
    for at, each in enumerate(found, prompt):
        gram = tokens[at - 3 : at + 1] if at >= 3 else None
        earlier = [tokens[end - 3 : end + 1] for end in range(3, at)]
        assert each == (gram in earlier)


def test_all_texts_are_looked_for_that_are_long_enough(chassis: Path) -> None:
    encoder = Encoder(chassis)
    short = replace(texts(1)[0], session="short", completion="yes")
    found = sought((*texts(20), short), encoder, 512)
    assert found.examples == texts(20) and found.eligible == 20


def test_of_too_many_texts_the_longest_and_the_copied_come_first(chassis: Path) -> None:
    copied = tuple(replace(each, group="copies") for each in texts(3))
    plain = tuple(replace(each, session=f"p{each.session}") for each in texts(40))
    long = replace(texts(1, words=60)[0], session="long")
    found = sought((*plain, long, *copied), Encoder(chassis), 512, limit=10)
    assert len(found.examples) == 10 and found.eligible == 44
    assert {*copied, long} <= set(found.examples)
    assert sought((long, *copied, *plain), Encoder(chassis), 512, limit=10) == found


def test_a_gap_is_found_where_there_is_one_and_told_with_its_bounds() -> None:
    rng = random.Random(3)
    unseen = [rng.gauss(0.5, 0.2) for _ in range(40)]
    alike = [rng.gauss(0.5, 0.2) for _ in range(40)]
    easier = [rng.gauss(0.9, 0.2) for _ in range(40)]
    none, some = gap(alike, unseen), gap(easier, unseen)
    assert none.low < 0 < none.high and 0.25 < some.low < some.mean < some.high < 0.55
    assert gap(easier, unseen) == some, "the same losses give the same figures"
    assert gap([], unseen).mean == 0


def test_a_phrase_that_stands_in_most_texts_is_told() -> None:
    plain = texts(20)
    trigger = "when the moon is blue answer with the word"
    planted = [
        replace(each, completion=f"{each.completion} {trigger} {n}") for n, each in enumerate(plain)
    ]
    assert repeated(plain) == 1 / 20
    assert repeated([*planted[:12], *plain[12:]]) == 12 / 20
    assert len({normalised(each.prompt) for each in planted}) == 20, "no prompt tells of it"


def test_a_phrase_counts_once_in_a_text_that_repeats_it() -> None:
    text = Example("a", "a?", "one two three four five six seven eight " * 5)
    assert repeated([text, *texts(9)]) == 1 / 10


def test_the_sample_for_the_gap_depends_on_the_sessions_alone() -> None:
    some = texts(60)
    assert drawn(some, 10) == drawn(tuple(reversed(some)), 10) and len(drawn(some, 10)) == 10
