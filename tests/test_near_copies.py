"""Near-copies are found by their words, also where very many texts share most of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leaves.ports import Example
from leaves.training.near_copies import NearCopies, likeness, sketch

WORDS = [f"word{n}" for n in range(400)]


def text(start: int, count: int = 40) -> str:
    return " ".join(WORDS[start : start + count])


def example(id_: str, body: str) -> Example:
    return Example(id_, "", body)


def test_a_text_is_like_itself_whatever_its_case_and_marks() -> None:
    assert (
        likeness(sketch("Bake the bread, until golden!"), sketch("bake THE bread until golden"))
        == 1
    )
    assert likeness(sketch(text(0)), sketch(text(200))) == 0


def test_a_short_text_is_compared_as_a_whole() -> None:
    assert likeness(sketch("ls -la"), sketch("ls -la")) == 1
    assert likeness(sketch("ls -la"), sketch("ls -l")) == 0


def test_texts_that_share_most_runs_are_near_and_others_are_not() -> None:
    copies = NearCopies(
        [example("a", text(0)), example("b", text(5)), example("c", text(20)), example("d", "x")]
    )
    assert copies.of("a", {"b", "c", "d"}) == {"b"}
    assert not copies.near("a", {"c", "d"}), "who is not among them is not asked"


def test_one_of_a_thousand_copies_is_found_though_all_share_every_run() -> None:
    crowd = [example(f"s{n:04}", text(0)) for n in range(1000)]
    assert NearCopies(crowd).near("s0999", {each.session for each in crowd[:-1]})


def test_a_copy_is_found_behind_a_form_that_everything_shares() -> None:
    form = text(0, 60)
    others = [example(f"o{n}", f"{form} {text(100 + n, 3)}") for n in range(200)]
    twin = " ".join(WORDS[300:380])
    copies = NearCopies([*others, example("one", f"{twin} tail"), example("two", f"{twin} end")])
    assert copies.of("one", {"two", *(each.session for each in others)}) == {"two"}


@given(shift=st.integers(0, 40), count=st.integers(5, 60))
def test_likeness_of_short_texts_is_the_jaccard_index_of_their_runs(shift: int, count: int) -> None:
    one, other = text(0, count), text(shift, count)
    runs = [
        {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))}
        for words in (one.split(), other.split())
    ]
    wanted = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
    if len(runs[0] | runs[1]) <= 64:
        assert abs(likeness(sketch(one), sketch(other)) - wanted) < 1e-9
