"""Nodes over real libp2p on loopback that know one other, and become a mesh, and stay one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support_peers import Seeker, until, whole

from gossip.addresses import Source

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


async def test_five_nodes_that_know_one_are_linked_with_each_other_and_again_after_restarts(
    tmp_path: Path,
) -> None:
    nodes = [Seeker(name, tmp_path) for name in "abcde"]
    first, *others = nodes
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.live)
        for node in others:
            node.knows(first)
        await until(lambda: whole(nodes))
        assert all(not node.driver.refused for node in nodes)
        # Each tells its own address, and of others only those that it was linked with.
        told = {news.peer for node in nodes for news in node.learned}
        assert told == {node.peer for node in nodes}

        await nodes[2].end()
        await until(lambda: all(nodes[2].peer not in n.linked for n in nodes if n is not nodes[2]))
        await nursery.start(nodes[2].live)
        await until(lambda: whole(nodes))

        for node in nodes:
            await node.end()
        for entry in list(first.book):
            assert entry.source is Source.LEARNED  # it knows them by their own word
        for node in nodes:
            await nursery.start(node.live)
        await until(lambda: whole(nodes))
        nursery.cancel_scope.cancel()


async def test_after_waking_a_peer_in_its_longest_pause_is_dialled_at_once_and_links_live(
    tmp_path: Path,
) -> None:
    a, b, c = (Seeker(name, tmp_path) for name in "abc")
    async with trio.open_nursery() as nursery:
        for node in (a, b, c):
            await nursery.start(node.live)
        a.knows(b, c)
        await until(lambda: len(a.linked) == 2)
        await b.end()
        await until(lambda: len(a.linked) == 1)
        (entry,) = (each for each in a.book if each.address == b.address)
        await until(lambda: entry.failures >= 3)
        await nursery.start(b.live)
        a.dialing.woke()
        await until(lambda: len(a.linked) == 2)
        assert entry.failures == 0
        assert c.peer in a.linked  # it has answered, and was not cut off
        nursery.cancel_scope.cancel()
