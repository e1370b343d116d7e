"""How far two divisions agree, held to scikit-learn's figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from leaves.agreement import adjusted_rand, contingency, information
from leaves.grid import Labels

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=60)


def pair(pairs: list[tuple[int, int]]) -> tuple[Labels, Labels]:
    one, other = np.array(pairs, np.int64).T
    return one, other


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_both_indices_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    one, other = pair(pairs)
    assert adjusted_rand(one, other) == pytest.approx(adjusted_rand_score(one, other), abs=1e-9)
    shared, told = information(one, other)
    assert shared == pytest.approx(mutual_info_score(one, other), abs=1e-9)
    assert shared <= told + 1e-9


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_numbering_of_labels_makes_no_difference(pairs: list[tuple[int, int]]) -> None:
    one, other = pair(pairs)
    assert adjusted_rand(5 - one, other) == pytest.approx(adjusted_rand(one, other))
    assert information(5 - one, other) == pytest.approx(information(one, other))


def test_a_contingency_table_counts_rows() -> None:
    table = contingency(np.array([0, 0, 1, 1]), np.array([0, 2, 2, 2]))
    assert table.tolist() == [[1, 0, 1], [0, 0, 2]]
