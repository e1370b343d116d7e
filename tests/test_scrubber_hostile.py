"""No text takes the scrubber more than its share of work, however it was made.

Work is lines of Python and bytes that RE2 reads; what Python's own `re` does in its bounded windows
shows in the seconds of tests/bench/scrub.py alone.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hostile_texts import hostile
from support_steps import steps

from node.capture.rules.scan import Found, Pattern
from node.capture.scrubber import PIIScrubber, ScrubError

SMALL = hostile(6_000)
LARGE = hostile(24_000)
scrubber = PIIScrubber()


class Work(NamedTuple):
    steps: int
    read_bytes: int


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every single search of RE2 has read, to the end of its match or of its window."""
    read: list[int] = []
    first = Pattern._first

    def counted(
        self: Pattern, anchor: object, text: bytes, start: int, end: int | None
    ) -> Found | None:
        found = first(self, anchor, text, start, end)
        last = len(text) if end is None else min(end, len(text))
        read.append(max(0, (found.end() if found else last) - start))
        return found

    monkeypatch.setattr(Pattern, "_first", counted)
    return read


def scrubbed(text: str) -> str:
    """Without a clock: what is counted takes its time."""
    try:
        return PIIScrubber(timer=lambda: 0.0).scrub(text)
    except ScrubError:
        return ""


@pytest.mark.parametrize("unit", LARGE)
def test_four_times_the_text_costs_about_four_times_as_much(
    unit: str, read_bytes: list[int]
) -> None:
    def work(text: str) -> Work:
        read_bytes.clear()
        return Work(steps(lambda: scrubbed(text)), sum(read_bytes))

    scrubbed(SMALL[unit])  # what is made once, such as tables, is not of the text
    small, large = work(SMALL[unit]), work(LARGE[unit])
    assert large.steps < 6 * small.steps, f"{small}, then {large} for four times as much"
    assert large.read_bytes < 6 * small.read_bytes, f"{small}, then {large}"


@pytest.mark.parametrize("unit", LARGE)
def test_a_hostile_text_is_as_clean_the_second_time(unit: str) -> None:
    once = scrubbed(LARGE[unit])
    assert scrubber.scrub(once) == once


@pytest.mark.parametrize(("unit", "megabytes"), [("a", 5), ("1 ", 1), ("a@b.com ", 1), ("%40", 5)])
def test_a_line_of_megabytes_is_scrubbed(unit: str, megabytes: int) -> None:
    text = unit * (megabytes * 1_000_000 // len(unit))
    assert len(scrubber.scrub(text)) <= len(text)
