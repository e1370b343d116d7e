"""Bundles between real processes, one of which is killed on the way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "bench"))

import bundle_swarm

pytestmark = pytest.mark.network


def test_a_fetcher_killed_midway_goes_on_and_fetches_at_most_a_chunk_again(tmp_path: Path) -> None:
    came = bundle_swarm.swarm(tmp_path, 8_000_000, 1, 1, ("honest",))
    assert came["exact"] and came["lost_chunks_max"] <= 1, came


@pytest.mark.slow
def test_a_bundle_comes_right_past_a_liar_a_staller_and_three_kills(tmp_path: Path) -> None:
    came = bundle_swarm.swarm(tmp_path, 32_000_000, 3, 2)
    assert came["exact"] and came["lost_chunks_max"] <= 1, came
    assert came["transferred_ratio"] <= 1.04, came
