"""Feedback: it moves a leaf a little, the right way, and never beyond its bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leaves.model import LeafId
from router.weights import BOUND, PRIOR, REMEMBERED, weigh

A, B = LeafId("a" * 32), LeafId("b" * 32)
OUTCOMES = st.lists(st.tuples(st.sampled_from([A, B]), st.booleans()), max_size=300)


def test_a_leaf_without_outcomes_has_no_weight() -> None:
    assert weigh([]) == {}
    assert weigh([(A, True), (A, False)]) == {A: 0.0}


@given(OUTCOMES)
def test_no_flood_of_outcomes_moves_a_leaf_to_its_bound(
    outcomes: list[tuple[LeafId, bool]],
) -> None:
    flood = [*outcomes, *[(A, True)] * 2_000, *[(B, False)] * 2_000]
    weights = weigh(flood)
    assert 0 < weights[A] < BOUND and -BOUND < weights[B] < 0
    assert all(abs(weight) < BOUND for weight in weigh(outcomes).values())


@given(OUTCOMES)
def test_accepted_never_lowers_and_rejected_never_raises(
    outcomes: list[tuple[LeafId, bool]],
) -> None:
    before = weigh(outcomes)
    assert weigh([*outcomes, (A, True)])[A] >= before.get(A, 0.0) - 1e-12
    assert weigh([*outcomes, (A, False)])[A] <= before.get(A, 0.0) + 1e-12
    assert weigh([*outcomes, (A, True)]).get(B) == before.get(B)


def test_ten_in_a_row_move_a_leaf_by_a_third_of_the_bound() -> None:
    assert weigh([(A, True)] * 10)[A] == BOUND * 10 / (10 + PRIOR)


def test_what_is_long_past_no_longer_counts() -> None:
    bad_start = [(A, False)] * 1_000
    assert weigh([*bad_start, *[(A, True)] * REMEMBERED]) == weigh([(A, True)] * REMEMBERED)


@given(st.permutations([(A, True)] * 3 + [(A, False)] * 2 + [(B, True)]))
def test_the_order_of_a_few_outcomes_does_not_matter(order: list[tuple[LeafId, bool]]) -> None:
    assert weigh(order) == weigh([(A, True)] * 3 + [(A, False)] * 2 + [(B, True)])
