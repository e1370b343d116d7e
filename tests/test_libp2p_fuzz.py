"""Mutated frames of every protocol at a whole node: it refuses them and stays as it was."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support_fuzz import PROTOCOLS, bombard
from support_libp2p import LOOPBACK
from support_stack import Stack

from gossip.transport_config import TransportConfig

pytestmark = pytest.mark.network
# As often as it likes: what is let in is what is to be seen here.
OPEN_DOOR = TransportConfig(
    listen=LOOPBACK, accept_per_s=1000.0, accept_burst=10_000, faults_max=100_000
)


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


async def answers(victim: Stack, folder: Path) -> None:
    """A peer that has never been there connects, and learns what the victim has published."""
    fresh = Stack("fresh", folder / "fresh", os.urandom(8).hex())
    async with fresh.running():
        fresh.knows(victim.transport.addresses()[0])
        with trio.fail_after(60):
            while victim.keys.origin not in fresh.replica.origins():
                await trio.sleep(0.01)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_mutated_frames_neither_end_nor_deafen_a_node(protocol: str, tmp_path: Path) -> None:
    frames = {"multistream": 300, "noise": 60}.get(protocol, 3000)
    victim = Stack("victim", tmp_path / "victim", os.urandom(8).hex(), transport=OPEN_DOOR)
    async with victim.running():
        await victim.driver.publish((), (), (), urgent=True)
        address = victim.transport.addresses()[0]
        offered = await bombard(protocol, address, seed=1, frames=frames, seconds=20)
        assert offered.frames >= frames // 10, offered
        await answers(victim, tmp_path)
        standing = victim.transport.standing()
        assert (standing["lives"], standing["last_death"]) == (1, "")
        with trio.fail_after(60):
            while victim.links:
                await trio.sleep(0.01)
