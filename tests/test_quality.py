"""The score of a session: by its outcome, less for what had to be corrected or failed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.capture.quality import Outcome, score, tier
from node.capture.sessions import quality_of
from node.capture.terms import Terms, terms_of, trainable


@pytest.mark.parametrize(
    ("outcome", "worth", "named"),
    [
        ("accepted", 90, "A"),
        ("modified", 70, "A"),
        ("iterated", 55, "B"),
        ("rejected", 25, "C"),
        ("error", 10, "C"),
    ],
)
def test_an_outcome_has_a_score_and_a_tier(outcome: str, worth: int, named: str) -> None:
    assert (score(outcome), tier(worth)) == (worth, named)


def test_the_tiers_begin_at_their_limits() -> None:
    assert [tier(value) for value in (100, 70, 69, 50, 49, 0)] == ["A", "A", "B", "B", "C", "C"]


@pytest.mark.parametrize("outcome", ["", "splendid", "ACCEPTED"])
def test_an_unknown_outcome_has_neither_score_nor_tier(outcome: str) -> None:
    assert score(outcome) is None and tier(score(outcome)) == ""


@given(
    outcome=st.sampled_from(list(Outcome)),
    corrections=st.integers(0, 99),
    errors=st.integers(0, 99),
)
def test_corrections_and_errors_never_raise_a_score(
    outcome: Outcome, corrections: int, errors: int
) -> None:
    clean = score(outcome)
    spoiled = score(outcome, corrections=corrections, errors=errors)
    assert clean is not None and spoiled is not None
    assert 0 <= spoiled <= clean
    assert (spoiled < clean) == bool(corrections or errors)


@pytest.mark.parametrize(
    ("about", "quality"),
    [
        ({"quality": 83, "outcome": "error"}, 83),
        ({"quality": 140}, 100),
        ({"quality": True, "outcome": "accepted"}, 90),
        ({"quality": None, "outcome": "accepted", "corrections": 2}, 70),
        ({"outcome": "accepted", "corrections": -3, "errors": "many"}, 90),
        ({}, None),
    ],
)
def test_a_stated_quality_stands_and_an_unstated_one_follows_from_the_outcome(
    about: dict[str, object], quality: int | None
) -> None:
    assert quality_of(about) == quality


@pytest.mark.parametrize(
    ("terms", "by_default", "knowingly"),
    [
        (Terms.OWN, True, True),
        (Terms.OPEN, True, True),
        (Terms.RESTRICTED, False, True),
        (Terms.UNKNOWN, False, False),
        ("invented", False, False),
    ],
)
def test_what_is_unknown_is_never_trained_on(terms: str, by_default: bool, knowingly: bool) -> None:
    assert trainable(terms) is by_default
    assert trainable(terms, restricted_outputs=True) is knowingly


@pytest.mark.parametrize(
    ("provider", "model", "terms"),
    [
        ("anthropic", "claude-sonnet-4", Terms.RESTRICTED),
        ("openai", "o3", Terms.RESTRICTED),
        ("openai", "gpt-oss-20b", Terms.OPEN),
        ("ollama", "library/qwen3:8b", Terms.OPEN),
        ("", "gpt-4o", Terms.RESTRICTED),
        ("nobody", "homemade", Terms.UNKNOWN),
        ("", "", Terms.UNKNOWN),
    ],
)
def test_the_terms_of_an_answer_follow_from_who_made_it(
    provider: str, model: str, terms: Terms
) -> None:
    assert terms_of(provider, model) is terms
