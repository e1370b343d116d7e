"""Bundles in simulated time: byte-exact past liars, stalls and kills; little is fetched twice."""

from __future__ import annotations

from random import Random

import pytest

from gossip.wire import CHUNK_BYTES
from simnet.bundles import FOUR, Fetched, bundle_spread, fetch_under_fire
from simnet.network import Network
from simnet.sharing import HONEST, Conduct, Content, Part

SMALL = 8_000_000


def thrifty(fetched: Fetched) -> bool:
    """No more than 1.02 of the size, a chunk for each lie, and what went with a kill."""
    spare = fetched.false_bytes + fetched.lost_bytes
    twice = max(0.02 * fetched.size_bytes, CHUNK_BYTES)  # one of the last chunks may be late
    return fetched.fetched_bytes <= fetched.size_bytes + twice + spare


@pytest.mark.parametrize("seed", range(6))
def test_fifty_megabytes_come_whole_past_a_liar_a_staller_and_five_kills(seed: int) -> None:
    fetched = fetch_under_fire(seed)
    assert fetched.exact, f"seed {seed}: {fetched}"
    assert fetched.kills == 5, f"seed {seed}: {fetched}"
    assert thrifty(fetched), f"seed {seed}: {fetched}"
    # Between two effects at most one chunk has come and is not yet on disk.
    assert fetched.lost_bytes <= 5 * CHUNK_BYTES, f"seed {seed}: {fetched}"


@pytest.mark.slow
def test_fifty_megabytes_come_whole_on_a_hundred_seeds() -> None:
    for seed in range(100, 200):
        fetched = fetch_under_fire(seed)
        assert fetched.exact and thrifty(fetched), f"seed {seed}: {fetched}"


@pytest.mark.parametrize("seed", range(10))
def test_a_bundle_comes_whole_though_the_disk_forgets_what_was_not_synced(seed: int) -> None:
    fetched = fetch_under_fire(seed, size_bytes=SMALL, death="power lost")
    assert fetched.exact and fetched.kills == 5, f"seed {seed}: {fetched}"


@pytest.mark.parametrize("seed", range(10))
def test_one_honest_holder_among_all_sorts_suffices(seed: int) -> None:
    holders = {
        "honest": HONEST,
        "liar": Conduct(lies=1.0),
        "lister": Conduct(false_lists=1.0),
        "crawler": Conduct(crawls_bytes_s=1.0),
        "vanisher": Conduct(vanishes_after=2),
        "staller": Conduct(stalls_after=0),
    }
    fetched = fetch_under_fire(seed, size_bytes=SMALL, holders=holders, kills=2)
    assert fetched.exact and thrifty(fetched), f"seed {seed}: {fetched}"


def test_without_an_honest_holder_nothing_is_taken_for_whole() -> None:
    fetched = fetch_under_fire(
        1, size_bytes=1_000_000, holders={"liar": Conduct(lies=1.0)}, kills=0, within_s=600.0
    )
    assert not fetched.exact
    assert fetched.lies > 0


def test_the_same_seed_gives_the_same_fetch_and_another_seed_another() -> None:
    first, again, other = (fetch_under_fire(seed, size_bytes=SMALL) for seed in (5, 5, 6))
    assert first == again
    assert first.trace_hash != other.trace_hash


def test_nothing_is_fetched_twice_where_nothing_goes_wrong() -> None:
    holders = dict.fromkeys(FOUR, HONEST)
    fetched = fetch_under_fire(3, size_bytes=SMALL, holders=holders, kills=0)
    assert fetched.fetched_bytes == SMALL


def test_a_kill_loses_nothing_that_was_written_and_a_loss_of_power_what_was_not_synced() -> None:
    content = Content(20 * CHUNK_BYTES, "disk")
    part = Part()
    for index in range(10):
        part.write(index, content.chunks[index])
    part.sync()
    for index in range(10, 20):
        part.write(index, content.chunks[index])
    assert part.die("killed", Random(1)) == 0
    assert part.good(content.list.hashes) == frozenset(range(20))
    for index in range(10, 20):
        part.write(index, content.chunks[index])
    lost = part.die("power lost", Random(1)) // CHUNK_BYTES
    assert lost > 0
    good = part.good(content.list.hashes)
    assert len(good) == 20 - lost
    assert good >= frozenset(range(10))


@pytest.mark.parametrize("seed", range(4))
def test_a_bundle_spreads_through_a_mesh_once_a_head_announces_it(seed: int) -> None:
    net = Network(size=12, seed=seed)
    figures = bundle_spread(net)
    assert net.checker.checks["bundle"] == 11, f"seed {seed}"
    # The others serve each other: the author alone would have to send it eleven times.
    assert figures["from_author_bundle_sizes"] < 11, f"seed {seed}: {figures}"
    # Late chunks of slow lines are asked for twice, and what a crash took is fetched again.
    assert figures["fetched_bundle_sizes"] < 1.2, f"seed {seed}: {figures}"


def test_a_spread_is_the_same_under_the_same_seed() -> None:
    def trace() -> str:
        net = Network(size=8, seed=9)
        bundle_spread(net)
        return net.trace_hash()

    assert trace() == trace()
