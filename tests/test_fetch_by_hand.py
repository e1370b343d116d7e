"""Whose turn it is to be fetched: the owner's wish first, and why one could not be had."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

from gossip.downloads import FetchError, FetchResult
from gossip.exchange import NO_HOLDER
from gossip.patience import NO_PROGRESS, TOO_SLOW
from leaves.model import LeafId, Stage, Vector, unit
from leaves.training.chassis import Chassis, Linear
from node.app import App
from node.errors import OwnerError
from node.fetch import WHY, Fetcher
from node.foreign import Known, State
from node.mesh import ForeignLeaf

ORIGIN = "02" * 32
CHASSIS = Chassis(Path(), "d" * 64, {"q_proj": Linear(100, 100, 1.0)}, {})
SIZE = 1000
SLOW, OTHER = 1, 2


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    app = App.open(create=True)
    assert app.origin
    any_app: Any = app
    any_app.chassis = CHASSIS
    mesh = msgspec.structs.replace(app.config.mesh, fetch_delay_s=0.0)
    any_app.config = msgspec.structs.replace(app.config, mesh=mesh)
    app.foreign.replace_origin(ORIGIN, [foreign(SLOW), foreign(OTHER)])
    return app


def root(number: int) -> str:
    return f"{number:064x}"


def foreign(number: int) -> ForeignLeaf:
    drawn = np.random.default_rng(number).normal(size=(1, 384)).astype(np.float32)
    centroid: Vector = unit(drawn)[0]
    leaf, label, tag = LeafId(f"{number:032x}"), "f" * 64, CHASSIS.tag8.hex()
    return ForeignLeaf(
        ORIGIN, leaf, 1, Stage.MATURE, 9, root(number), label, SIZE, tag, centroid
    )  # fmt: skip


def known(app: App, number: int) -> Known:
    found = app.foreign.get(ORIGIN, LeafId(f"{number:032x}"))
    assert found is not None
    return found


class Peers:
    """Stands where the gossip driver stands; unattended, nothing ever comes whole."""

    def __init__(self, app: App, reason: str = NO_HOLDER) -> None:
        self._app = app
        self._reason = reason
        self.asked: list[tuple[int, bool]] = []
        self.begun = trio.Event()

    async def fetch(self, root: bytes, size_bytes: int, *, by_hand: bool = False) -> FetchResult:
        self.asked.append((int(root.hex(), 16), by_hand))
        self._app.bundles.files.part_path(root).write_bytes(b"some")
        self.begun.set()
        if not by_hand:
            await trio.sleep_forever()
        raise FetchError(f"was not fetched: {self._reason}", self._reason)

    async def remove_bundle(self, root: bytes) -> None:
        self._app.bundles.files.remove(root)


async def nothing() -> None:
    pass


def fetcher(app: App, peers: Peers) -> Fetcher:
    driver: Any = peers
    return Fetcher(app, driver, nothing, lambda told: None, Random(0))


@pytest.mark.parametrize("number", [SLOW, OTHER])
async def test_a_fetch_that_nobody_waits_for_gives_way_to_the_owners(app: App, number: int) -> None:
    peers = Peers(app)
    bringing = fetcher(app, peers)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bringing.bring, known(app, SLOW))
            await peers.begun.wait()
            with pytest.raises(OwnerError):
                await bringing.bring(known(app, number), by_hand=True)
    assert peers.asked == [(SLOW, False), (number, True)]
    assert app.bundles.files.part_path(bytes.fromhex(root(SLOW))).exists()  # what has come stays
    assert root(SLOW) in app.foreign.expected()


async def test_what_gave_way_is_tried_again_at_once_and_counts_as_nobodys_failure(
    app: App,
) -> None:
    peers = Peers(app)
    bringing = fetcher(app, peers)
    any_fetcher: Any = bringing
    any_fetcher._wanted = lambda now: [known(app, SLOW)]
    bringing.wake()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bringing.run)
            await peers.begun.wait()
            with pytest.raises(OwnerError):
                await bringing.bring(known(app, OTHER), by_hand=True)
            while len(peers.asked) < 3:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert peers.asked == [(SLOW, False), (OTHER, True), (SLOW, False)]
    assert root(SLOW) not in any_fetcher._tries
    assert any_fetcher._tries[root(OTHER)][0] == any_fetcher._failures[ORIGIN] == 1


async def test_an_unattended_fetch_does_not_begin_while_the_owner_waits(app: App) -> None:
    peers = Peers(app)
    bringing = fetcher(app, peers)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in (SLOW, OTHER):
                nursery.start_soon(bringing.bring, known(app, number))
            await peers.begun.wait()
            with pytest.raises(OwnerError):
                await bringing.bring(known(app, SLOW), by_hand=True)
    unattended = [number for number, by_hand in peers.asked if not by_hand]
    assert len(unattended) == 1


@pytest.mark.parametrize("reason", [NO_HOLDER, NO_PROGRESS, TOO_SLOW])
async def test_a_fetch_by_hand_that_fails_says_why_and_what_to_do(app: App, reason: str) -> None:
    with pytest.raises(OwnerError) as told:
        await fetcher(app, Peers(app, reason)).bring(known(app, OTHER), by_hand=True)
    assert str(told.value) == WHY[reason]
    assert told.value.unchanged and told.value.next_step


async def test_a_leaf_withdrawn_before_its_turn_came_is_named_as_such(app: App) -> None:
    leaf = known(app, OTHER)
    app.foreign.retract(ORIGIN, leaf.leaf.leaf)
    with pytest.raises(OwnerError, match="withdrawn"):
        await fetcher(app, Peers(app)).bring(leaf, by_hand=True)
    assert known_states(app) == {State.HEARD}


def known_states(app: App) -> set[State]:
    return {leaf.state for leaf in app.foreign.all()}
