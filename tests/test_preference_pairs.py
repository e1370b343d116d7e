"""A leaf's pairs are of its own sessions, and of nothing that must not be learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leaves.ports import Preference
from node.capture import Session
from node.capture.quality import tier
from node.preferences import leaf_preferences, used_by


def session(id_: str, prompt: str, quality: int, **changes: object) -> Session:
    made = Session(
        session_id=id_,
        user_id="u",
        opened=0.0,
        last=0.0,
        prompt=prompt,
        completion=f"answer of {id_}",
        domain="code",
        source="live",
        group="",
        terms_class="open",
        closed=True,
        outcome="accepted",
        quality=quality,
        tier=tier(quality),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


SESSIONS = {
    each.session_id: each
    for each in (
        session("a", "what is a monad", 90, group="g"),
        session("c", "What is a monad?", 10),
        session("elsewhere", "what is a monad", 5),
        session(
            "edited",
            "sort a list",
            60,
            edited="sorted(x)",
            edited_from="x.sort()",
            edited_ask="sort a list",
            edited_terms="own",
        ),
    )
}
OWN = {"a", "c", "edited", "gone"}
EDIT = Preference("sort a list", "sorted(x)", "x.sort()", "", "edited", "edited")
TIERS = Preference("what is a monad", "answer of a", "answer of c", "g", "a", "c")


def test_a_leafs_pairs_are_its_edits_and_its_good_and_poor_answers_to_one_ask() -> None:
    assert leaf_preferences(OWN, SESSIONS) == (EDIT, TIERS)


def test_both_sessions_of_a_pair_belong_to_the_leaf() -> None:
    assert leaf_preferences({"a", "elsewhere"}, SESSIONS)[0].rejected_session == "elsewhere"
    assert leaf_preferences({"a"}, SESSIONS) == ()


@pytest.mark.parametrize("out", ["a", "c"])
def test_a_session_that_is_left_out_is_in_no_pair(out: str) -> None:
    assert leaf_preferences(OWN, SESSIONS, left_out={out}) == (EDIT,)


@pytest.mark.parametrize("side", ["a", "c"])
def test_restricted_answers_are_paired_by_the_owners_word_alone(side: str) -> None:
    sessions = SESSIONS | {side: replace(SESSIONS[side], terms_class="restricted")}
    assert leaf_preferences(OWN, sessions) == (EDIT,)
    assert leaf_preferences(OWN, sessions, restricted_outputs=True) == (EDIT, TIERS)


def test_near_equal_asks_make_a_pair_where_vectors_say_so() -> None:
    sessions = SESSIONS | {"c": replace(SESSIONS["c"], prompt="explain monads")}
    near = {"a": np.array([1, 0], np.float32), "c": np.array([0.96, 0.28], np.float32)}
    assert leaf_preferences(OWN, sessions) == (EDIT,)
    assert leaf_preferences(OWN, sessions, near) == (EDIT, TIERS)


def test_both_sessions_of_a_pair_count_as_used() -> None:
    assert used_by([EDIT, TIERS]) == {"a", "c", "edited"}
