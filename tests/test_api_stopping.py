"""A stop string ends a text wherever the pieces are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.api.stopping import Stopping

_TEXTS = st.text(alphabet="ab\n", max_size=30)
_STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


def _said(stopping: Stopping, pieces: list[str]) -> str:
    shown = ""
    for piece in pieces:
        shown += stopping.push(piece)
        if stopping.hit is not None:
            return shown
    return shown + stopping.rest()


@given(pieces=st.lists(_TEXTS, max_size=12), stops=_STOPS)
def test_what_is_shown_does_not_depend_on_how_the_text_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    cut, by_one = Stopping(stops), Stopping(stops)
    shown = _said(cut, pieces)
    assert shown == _said(by_one, list(whole))
    assert cut.hit == by_one.hit
    assert whole.startswith(shown)


@given(pieces=st.lists(_TEXTS, max_size=12), stops=_STOPS)
def test_a_stop_string_is_never_part_of_what_is_shown(pieces: list[str], stops: list[str]) -> None:
    stopping = Stopping(stops)
    shown = _said(stopping, pieces)
    assert not any(stop in shown for stop in stops)
    whole = "".join(pieces)
    if stopping.hit is None:
        assert shown == whole
    else:
        assert whole.startswith(shown + stopping.hit)


@given(text=_TEXTS, stops=_STOPS)
def test_no_more_is_kept_back_than_could_begin_a_stop_string(text: str, stops: list[str]) -> None:
    stopping = Stopping(stops)
    shown = stopping.push(text)
    if stopping.hit is None:
        kept = text[len(shown) :]
        assert not kept or any(stop.startswith(kept) for stop in stops)


def test_without_stop_strings_each_piece_goes_out_as_it_came() -> None:
    assert Stopping(()).push("a") == "a"
    assert Stopping(("",)).push("a") == "a"
