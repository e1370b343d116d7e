"""What is done to texts before a model sees them: the cut, and the division into batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.ports import ENCODED_CHARS
from router.texts import batches, cut

LENGTHS = st.lists(st.integers(2, 64), max_size=40)


def padded(lengths: list[int], batch: list[int]) -> int:
    return len(batch) * max(lengths[at] for at in batch)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 50))
def test_every_text_is_in_one_batch_that_fits(lengths: list[int], most: int, cost: int) -> None:
    found = batches(lengths, most, cost)
    assert sorted(at for batch in found for at in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or padded(lengths, batch) <= most for batch in found)
    flat = [lengths[at] for batch in found for at in batch]
    assert flat == sorted(flat)


@given(LENGTHS, st.integers(1, 12))
def test_no_batches_of_a_fixed_number_cost_less(lengths: list[int], count: int) -> None:
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    fixed = [order[at : at + count] for at in range(0, len(order), count)]
    found = batches(lengths, 10_000, 8)
    cost = sum(8 + padded(lengths, batch) for batch in found)
    assert cost <= sum(8 + padded(lengths, batch) for batch in fixed)


def test_texts_of_one_length_share_batches_in_their_order() -> None:
    assert batches([5, 5, 5, 5, 5], 15) == [[0, 1], [2, 3, 4]]
    assert batches([40, 5, 40, 5], 100) == [[1, 3], [0, 2]]


@given(st.text(st.characters(), max_size=ENCODED_CHARS + 5))
def test_a_cut_text_is_sound_and_no_longer(text: str) -> None:
    head = cut(text)
    head.encode()
    assert len(head) <= ENCODED_CHARS
    assert cut(head) == head
    assert head == text[:ENCODED_CHARS]


def test_lone_halves_are_replaced_and_pairs_joined() -> None:
    assert cut("a\ud800b") == "a\ufffdb"
    assert cut("a\udc00b\udc00") == "a\ufffdb\ufffd"
    assert cut("\ud83d\ude42") == "\U0001f642"
