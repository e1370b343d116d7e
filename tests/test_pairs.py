"""Which answers are paired, which never are, and that the choice does not hang on chance."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from support_capture import NOON, record

from leaves.model import Vector, unit
from node.capture import Session, TrainingCorpus
from node.capture.pairs import PER_CHOSEN_MAX, Pair, PairKind, preference_pairs
from node.capture.quality import tier


def session(id_: str, prompt: str, quality: int, **changes: object) -> Session:
    made = Session(
        session_id=id_,
        user_id="u",
        opened=NOON,
        last=NOON,
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


def pairs(sessions: Iterable[Session], **how: object) -> list[Pair]:
    kept = {each.session_id: each for each in sessions}

    def read(only: Collection[str] | None) -> list[Session]:
        return [each for id_, each in kept.items() if only is None or id_ in only]

    return list(preference_pairs(read, **how))  # type: ignore[arg-type]


def ids(found: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.chosen_session, pair.rejected_session) for pair in found]


def near(vector: Vector, cosine: float) -> Vector:
    """A unit vector at this cosine."""
    aside = np.zeros_like(vector)
    aside[int(np.argmin(np.abs(vector)))] = 1
    aside -= (aside @ vector) * vector
    aside /= np.linalg.norm(aside)
    made: Vector = (cosine * vector + np.sqrt(1 - cosine**2) * aside).astype(np.float32)
    return made


def test_an_a_answer_is_chosen_over_a_c_answer_to_the_same_ask_but_for_case_and_marks() -> None:
    (pair,) = pairs([session("c", "what is  a Monad", 10), session("a", "What is a monad?", 90)])
    assert (pair.kind, pair.cosine) == (PairKind.TIERS, 1.0)
    assert (pair.chosen, pair.rejected) == ("answer of a", "answer of c")
    assert pair.prompt == "What is a monad?"
    assert "monad" not in repr(pair) and "answer" not in repr(pair)


def test_b_answers_and_answers_of_which_nothing_is_known_are_not_paired() -> None:
    unknown = replace(session("u", "ask", 0), quality=None, tier="")
    assert pairs([session("b", "ask", 55), session("a", "ask", 90), unknown]) == []


@pytest.mark.parametrize("side", ["a", "c"])
@pytest.mark.parametrize("terms", ["restricted", "unknown"])
def test_a_pair_needs_terms_that_allow_training_on_both_sides(side: str, terms: str) -> None:
    both = {"a": session("a", "ask", 90), "c": session("c", "ask", 10)}
    both[side] = replace(both[side], terms_class=terms)
    assert pairs(both.values()) == []
    knowingly = pairs(both.values(), restricted_outputs=True)
    assert len(knowingly) == (terms == "restricted")


@pytest.mark.parametrize("flagged", ["a", "c"])
def test_what_the_second_scan_left_out_is_in_no_pair(flagged: str) -> None:
    both = [session("a", "ask", 90), session("c", "ask", 10)]
    assert pairs(both, flagged={flagged}) == []


def test_near_asks_are_paired_by_their_vectors_from_the_limit_on() -> None:
    centre = unit(np.ones((1, 8), np.float32))[0]
    vectors = {"a": centre, "c": near(centre, 0.97), "d": near(centre, 0.90)}
    asked = [session(id_, f"ask {id_}", 90 if id_ == "a" else 10) for id_ in "acd"]
    (pair,) = pairs(asked, vectors=vectors, cosine_min=0.95)
    assert (pair.chosen_session, pair.rejected_session) == ("a", "c")
    assert pair.cosine == pytest.approx(0.97, abs=1e-6)
    assert pairs(asked) == []


def test_an_equal_ask_comes_before_a_nearer_vector_and_the_best_answer_first() -> None:
    centre = unit(np.ones((1, 8), np.float32))[0]
    vectors = dict.fromkeys(("a1", "a2", "a3", "c"), centre)
    asked = [session("a1", "other", 100), session("a2", "ask", 80), session("a3", "ask", 95)]
    assert ids(pairs([*asked, session("c", "ask", 10)], vectors=vectors)) == [("a3", "c")]


def test_one_chosen_answer_is_in_a_few_pairs_at_most() -> None:
    poor = [session(f"c{number}", "ask", 10) for number in range(10)]
    assert len(pairs([session("a", "ask", 90), *poor])) == PER_CHOSEN_MAX


def test_equal_answers_teach_nothing() -> None:
    same = [session("a", "ask", 90, completion="x"), session("c", "ask", 10, completion=" x ")]
    assert pairs(same) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_sessions_does_not_matter(seed: int) -> None:
    rng = Random(seed)
    drawn = np.random.default_rng(seed).normal(size=(60, 8)).astype(np.float32)
    vectors = {f"{number:02d}": row for number, row in enumerate(unit(drawn))}
    asked = [session(id_, f"ask {rng.randrange(20)}", rng.choice([10, 60, 90])) for id_ in vectors]
    first = pairs(asked, vectors=vectors, cosine_min=0.5)
    rng.shuffle(asked)
    assert pairs(asked, vectors=vectors, cosine_min=0.5) == first != []


def test_an_accepted_edit_is_chosen_over_the_answer_that_it_was_made_of(tmp_path: Path) -> None:
    def said(number: int, kind: str, text: str, **more: object) -> object:
        return record(number, session_id="s", content_type=kind, content=text, **more)

    corpus = TrainingCorpus(tmp_path / "c")
    corpus.add_records(
        [
            said(1, "prompt", "first ask"),
            said(2, "completion", "first answer", terms_class="restricted"),
            said(3, "prompt", "second ask"),
            said(4, "completion", "second answer", terms_class="open"),
            said(5, "workflow", "the owner's answer", metadata={"event": "EDIT"}),
        ]  # type: ignore[arg-type]
    )
    (pair,) = preference_pairs(corpus.sessions)
    assert (pair.kind, pair.prompt) == (PairKind.EDIT, "second ask")
    assert (pair.chosen, pair.rejected) == ("the owner's answer", "second answer")


@pytest.mark.parametrize(
    ("terms", "edited"), [("restricted", "better"), ("open", "answer "), ("open", " ")]
)
def test_an_edit_that_says_nothing_new_or_may_not_be_trained_on_is_no_pair(
    terms: str, edited: str
) -> None:
    made = session(
        "s", "ask", 90, edited=edited, edited_from="answer", edited_ask="ask", edited_terms=terms
    )
    assert pairs([made]) == []
