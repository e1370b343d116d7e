"""Peers' bundles on disk: which make room, which stay, and what the owner's pin is worth."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

from gossip.downloads import FetchError, FetchResult
from gossip.events import LeafRetracted
from leaves.model import LeafId, Stage, Vector, unit
from leaves.training.chassis import Chassis, Linear
from node import overview
from node.app import App
from node.errors import OwnerError
from node.fetch import EVICTED, Fetcher
from node.following import Follower
from node.foreign import Known, State
from node.mesh import ForeignLeaf
from node.shelf import FILE, Shelf

ORIGIN = "02" * 32
CHASSIS = Chassis(Path(), "d" * 64, {"q_proj": Linear(100, 100, 1.0)}, {})
SIZE = 1000


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    app = App.open(create=True)
    assert app.origin
    any_app: Any = app
    any_app.chassis = CHASSIS
    mesh = msgspec.structs.replace(app.config.mesh, cache_bytes_max=3 * SIZE)
    any_app.config = msgspec.structs.replace(app.config, mesh=mesh)
    any_app.deploy = lambda: 0
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


def shelved(app: App, *numbers: int) -> None:
    """Leaves whose bundles are here, used in this order, one an hour; and one that is not."""
    app.foreign.replace_origin(ORIGIN, [*map(foreign, numbers), foreign(99)])
    for hour, number in enumerate(numbers):
        path = app.bundles.files.path(bytes.fromhex(root(number)))
        path.write_bytes(bytes(SIZE))
        os.utime(path, (1e9 + 3600 * hour, 1e9 + 3600 * hour))
        app.foreign.expect(root(number), SIZE)
        app.foreign.settle(known(app, number), State.ACCEPTED, {"control_root": ""})


def known(app: App, number: int) -> Known:
    found = app.foreign.get(ORIGIN, LeafId(f"{number:032x}"))
    assert found is not None
    return found


def here(app: App) -> set[int]:
    return {int(path.stem, 16) for path in (app.home / "bundles").glob("*.bundle")}


class Peers:
    """Stands where the gossip driver stands; no peer gives anything."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def fetch(self, root: bytes, size_bytes: int, *, by_hand: bool = False) -> FetchResult:
        self._app.bundles.files.part_path(root).write_bytes(bytes(size_bytes))
        raise FetchError("no holder left")

    async def remove_bundle(self, root: bytes) -> None:
        self._app.bundles.files.remove(root)


async def nothing() -> None:
    pass


def fetcher(app: App, serve: Callable[[], Awaitable[None]] = nothing) -> Fetcher:
    driver: Any = Peers(app)
    return Fetcher(app, driver, serve, lambda told: None, Random(0))


# ---- room ----------------------------------------------------------------------------------------


async def test_what_was_used_longest_ago_makes_room_and_comes_back_by_hand_alone(app: App) -> None:
    shelved(app, 1, 2, 3)
    Shelf.of(app).used(root(1))
    served: list[set[str]] = []

    async def serve() -> None:
        served.append(app.foreign.roots((State.ACCEPTED,)))

    await fetcher(app, serve).bring(known(app, 99))
    assert here(app) == {1, 3}
    assert served == [{root(1), root(3)}]  # before it went
    evicted = known(app, 2)
    assert evicted.state is State.HEARD and evicted.detail[EVICTED]
    with pytest.raises(OwnerError, match="no holder left"):
        await fetcher(app).bring(evicted, by_hand=True)
    assert not known(app, 2).detail[EVICTED]


async def test_a_pinned_bundle_makes_room_for_no_other(app: App) -> None:
    shelved(app, 1, 2, 3)
    Shelf.of(app).pin(known(app, 1))
    await fetcher(app).bring(known(app, 99))
    assert here(app) == {1, 3}
    for number in (1, 3):
        Shelf.of(app).pin(known(app, number))
    app.foreign.expect(root(2), 2 * SIZE)  # something else has come in the place of the second
    before = here(app)
    await fetcher(app).bring(known(app, 99))
    assert here(app) == before


async def test_an_own_bundle_makes_no_room_though_a_peer_names_it(app: App) -> None:
    shelved(app, 1, 2, 3)
    any_app: Any = app
    any_app.own_roots = lambda: {root(1)}
    await fetcher(app).bring(known(app, 99))
    assert here(app) == {1, 3}


async def test_what_has_no_room_at_all_costs_nobody_a_bundle(app: App) -> None:
    shelved(app, 1, 2, 3)
    any_app: Any = app
    mesh = msgspec.structs.replace(app.config.mesh, cache_bytes_max=SIZE - 1)
    any_app.config = msgspec.structs.replace(app.config, mesh=mesh)
    await fetcher(app).bring(known(app, 99))
    assert here(app) == {1, 2, 3}


def test_serving_a_chunk_counts_as_use(app: App) -> None:
    shelved(app, 1, 2)
    shelf, files = Shelf.of(app), app.bundles.files
    assert shelf.oldest_first([root(1), root(2)]) == [root(1), root(2)]
    assert files.read_chunk(bytes.fromhex(root(1)), 0) == bytes(SIZE)
    assert shelf.oldest_first([root(1), root(2), root(7)]) == [root(7), root(2), root(1)]


# ---- when ----------------------------------------------------------------------------------------


async def test_what_nobody_waits_for_is_fetched_when_it_may_be_and_then_the_fetcher_rests(
    app: App,
) -> None:
    shelved(app)
    may = [False]
    asked: list[str] = []
    driver: Any = Peers(app)
    bringing = Fetcher(app, driver, nothing, lambda told: None, Random(0), may=lambda: may[0])
    any_fetcher: Any = bringing

    async def bring(leaf: Known) -> Known:
        asked.append(leaf.leaf.leaf)
        return leaf

    any_fetcher.bring = bring
    any_fetcher._wanted = lambda now: app.foreign.all()
    mesh = msgspec.structs.replace(app.config.mesh, fetch_delay_s=0.0)
    any_app: Any = app
    any_app.config = msgspec.structs.replace(app.config, mesh=mesh)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bringing.run)
            await bringing.at_rest()
            for allowed in (False, True):
                may[0] = allowed
                bringing.wake()
                await bringing.at_rest()
                assert len(asked) == int(allowed) and not bringing.by_hand
            nursery.cancel_scope.cancel()


# ---- what goes, and what stays -------------------------------------------------------------------


async def test_a_leaf_gone_from_its_origins_table_takes_its_bundle_along_unless_pinned(
    app: App,
) -> None:
    shelved(app, 1, 2)
    Shelf.of(app).pin(known(app, 1))
    gone = app.foreign.replace_origin(ORIGIN, [])
    await fetcher(app).let_go(gone)
    assert here(app) == {1}
    assert overview.pinned(app, root(1)[-32:]).roots == (root(1),)
    Shelf.of(app).unpin(ORIGIN, LeafId(f"{1:032x}"))
    await fetcher(app).tidy()
    assert here(app) == set()


@pytest.mark.parametrize("still_in_the_table", [True, False])
async def test_a_retracted_leaf_takes_its_bundle_along_though_it_is_pinned(
    app: App, still_in_the_table: bool
) -> None:
    shelved(app, 1, 2)
    for number in (1, 2):
        Shelf.of(app).pin(known(app, number))
    if not still_in_the_table:
        app.foreign.replace_origin(ORIGIN, [])
    done = trio.Event()

    async def changes() -> AsyncIterator[LeafRetracted]:
        yield LeafRetracted(bytes.fromhex(ORIGIN), bytes.fromhex(f"{1:032x}"))
        done.set()

    nobody: Any = type("Replica", (), {"origins": lambda self: []})()
    publisher: Any = type("Publisher", (), {"serve_bundles": lambda self: nothing()})()
    heard: Any = changes()
    any_app: Any = app
    any_app.deploy_if_routed = lambda: None
    say: Any = lambda *args, **more: None  # noqa: E731
    await Follower(app, nobody, heard, fetcher(app), publisher, say).run()
    assert done.is_set() and here(app) == {2}
    assert [pin.leaf for pin in Shelf.of(app).pins()] == [f"{2:032x}"]


async def test_a_pin_follows_its_leaf_to_the_bundle_of_its_next_version(app: App) -> None:
    shelved(app, 1)
    Shelf.of(app).pin(known(app, 1))
    app.foreign.replace_origin(ORIGIN, [replace(foreign(1), version=2, root=root(5))])
    app.bundles.files.path(bytes.fromhex(root(5))).write_bytes(bytes(SIZE))
    app.foreign.expect(root(5), SIZE)
    await fetcher(app).tidy()
    assert here(app) == {5}
    await fetcher(app).let_go(app.foreign.replace_origin(ORIGIN, []))
    assert here(app) == {5}


async def test_a_damaged_file_of_pins_stops_the_owner_but_no_running_node(app: App) -> None:
    shelved(app, 1)
    app.foreign.replace_origin(ORIGIN, [])
    (app.home / FILE).write_bytes(b"[{]")
    with pytest.raises(OwnerError, match="cannot be read"):
        Shelf.of(app).pins()
    await fetcher(app).tidy()
    assert here(app) == set() and (app.home / FILE).read_bytes() == b"[{]"


def test_a_pin_is_set_once_and_shown(app: App) -> None:
    shelved(app, 1)
    shelf = Shelf.of(app)
    assert overview.describe(app, root(1)[-32:])[1]["pinned"] is False
    shelf.pin(known(app, 1))
    shelf.pin(known(app, 1))
    assert len(shelf.pins()) == 1
    assert overview.describe(app, root(1)[-32:])[1]["pinned"] is True
    assert shelf.unpin(ORIGIN, LeafId(f"{1:032x}"))
    assert not shelf.unpin(ORIGIN, LeafId(f"{1:032x}"))
