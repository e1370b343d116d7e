"""Whole gossip stacks (replica, exchange, driver, store, dialer) over real libp2p."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import gossip_kit
import pytest
import trio
from support_stack import Stack

from gossip.driver import Change, Changes
from gossip.events import LeafRetracted
from gossip.transport_config import TransportConfig

TEST_RUN = os.urandom(8).hex()  # so that nodes of two runs at once have different names
pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


def made(name: str, folder: Path, transport: TransportConfig | None = None) -> Stack:
    return Stack(name, folder, TEST_RUN, transport=transport)


async def heard(changes: Changes, change: Change) -> None:
    with trio.fail_after(60):
        async for one in changes:
            if one == change:
                return


async def holds(stack: Stack, of: Stack, *leaves: int) -> None:
    """Wait until a stack holds just these leaves of another's origin."""
    with trio.fail_after(60):
        while True:
            cards = stack.replica.view(of.keys.origin).cards
            if [card.leaf for card in cards] == sorted(map(gossip_kit.leaf, leaves)):
                return
            await anext(stack.changes)


async def links(stack: Stack, number: int) -> None:
    with trio.fail_after(60):
        while len(stack.driver.peers()) < number:
            await trio.sleep(0.02)


async def test_a_leaf_is_published_fetched_from_two_and_retracted(tmp_path: Path) -> None:
    a, b, c = (made(name, tmp_path / name) for name in "abc")
    data = Random(5).randbytes(3_000_000)
    async with a.running(), b.running(), c.running():
        b.knows(a)
        c.knows(a, b)
        for stack in (a, b, c):
            await links(stack, 2)
        root = await a.driver.add_bundle(data)
        await a.driver.publish((gossip_kit.card(1), gossip_kit.card(2)), (), (), urgent=True)
        for stack in (b, c):
            await holds(stack, a, 1, 2)

        await b.driver.fetch(root, len(data))
        await b.driver.serve_bundle(root)
        result = await c.driver.fetch(root, len(data))
        assert result.path.read_bytes() == data
        assert set(result.sources) == {a.transport.peer_id(), b.transport.peer_id()}

        await a.driver.retract(gossip_kit.leaf(1))
        for stack in (b, c):
            await heard(stack.changes, LeafRetracted(a.keys.origin, gossip_kit.leaf(1)))
            await holds(stack, a, 2)
        assert all(not stack.driver.refused for stack in (a, b, c))


async def test_a_node_that_was_away_hears_of_it_when_it_is_back(tmp_path: Path) -> None:
    a, b = (made(name, tmp_path / name) for name in "ab")
    async with a.running():
        async with b.running():
            b.knows(a)
            await links(a, 1)
        await a.driver.publish((gossip_kit.card(1),), (), ())
        await a.driver.publish((gossip_kit.card(1), gossip_kit.card(2)), (), ())
        back = made("b", tmp_path / "b")
        assert back.transport.peer_id() == b.transport.peer_id()
        async with back.running():
            back.knows(a)
            await links(back, 1)
            # Published before anyone could say that no newer head is out, or after: it comes.
            await holds(back, a, 1, 2)
    again = made("b", tmp_path / "b")
    assert len(again.replica.view(a.keys.origin).cards) == 2  # it was on disk
    again.store.close()


async def test_one_of_five_that_is_restarted_is_linked_again_and_hears_what_it_missed(
    tmp_path: Path,
) -> None:
    others = [made(name, tmp_path / name) for name in "abcd"]
    async with AsyncExitStack() as running:
        for stack in others:
            await running.enter_async_context(stack.running())
        first = made("e", tmp_path / "e")
        async with first.running():
            listen = first.transport.addresses()[0]
            for stack in others:
                stack.knows(first)
            await links(first, 4)
            await others[0].driver.publish((gossip_kit.card(1),), (), (), urgent=True)
            await holds(first, others[0], 1)
        await others[0].driver.publish((gossip_kit.card(1), gossip_kit.card(2)), (), ())
        # Where it was before, and it dials nobody: the others find it.
        at = TransportConfig(listen=listen.split("/p2p/")[0])
        back = made("e", tmp_path / "e", at)
        async with back.running():
            await links(back, 4)
            await holds(back, others[0], 1, 2)
