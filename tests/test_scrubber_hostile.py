"""No text takes the scrubber more than its share of time, however it was made."""

from __future__ import annotations

import time

import pytest
from hostile_texts import hostile

from node.capture.scrubber import PIIScrubber, ScrubError

SMALL = hostile(6_000)
LARGE = hostile(24_000)
scrubber = PIIScrubber()


def seconds(text: str) -> float:
    begun = time.thread_time()
    try:
        once = scrubber.scrub(text)
    except ScrubError:
        once = ""
    spent = time.thread_time() - begun
    assert scrubber.scrub(once) == once
    return spent


@pytest.mark.parametrize("unit", LARGE)
def test_four_times_the_text_takes_about_four_times_as_long(unit: str) -> None:
    large = seconds(LARGE[unit])
    if large < 0.15:
        return  # quick enough on a busy machine, and a square would take far longer
    small = min(seconds(SMALL[unit]) for _ in range(3))
    assert large < 8 * small, f"{small:.3f} s, then {large:.3f} s for four times as much"


@pytest.mark.parametrize(("unit", "megabytes"), [("a", 5), ("1 ", 1), ("a@b.com ", 1), ("%40", 5)])
def test_a_line_of_megabytes_is_scrubbed(unit: str, megabytes: int) -> None:
    text = unit * (megabytes * 1_000_000 // len(unit))
    assert len(scrubber.scrub(text)) <= len(text)
