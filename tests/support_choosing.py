"""A home whose leaves have bundles, and the endpoint's Chooser at work over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import trio
from support_routing import ABLE, Routed, StarterEncoder, leaf_id, towards

from leaves.bundle import Label, Privacy, encode_label, pack
from leaves.model import Adapter, Stage
from node.adapters import Adapters, Pace
from node.api.choosing import Chooser
from node.api.config import ApiConfig
from node.api.counts import Counts
from node.consent import Scope
from node.foreign import State
from node.mesh import ForeignLeaf

CHASSIS = "ab" * 8


class QuickAdapters(Adapters):
    """Looks at the disk as soon as it may."""

    pace = Pace(poll_s=0.01, refresh_s=0.01)


@dataclass
class Desk:
    """A chooser that runs, what it counts, and the home that it chooses for."""

    home: Routed
    chooser: Chooser
    counts: Counts = field(default_factory=Counts)

    async def until(self, name: str, model: str) -> None:
        """Wait until a model is listed, or (name "not") is not."""
        while (model in self.models()) == (name == "not"):
            await trio.sleep(0.005)

    def models(self) -> set[str]:
        return {row["id"] for row in self.chooser.models()}


def bundle_of(home: Routed, topic: str, *, chassis: str = CHASSIS, name: str = "") -> str:
    """Put a bundle with the label of this leaf in the store; its adapter is a few bytes."""
    label = Label(
        leaf=leaf_id(topic),
        name=name or topic,
        chassis=chassis,
        adapter="a" * 64,
        rank=8,
        alpha=16,
        targets=("q_proj",),
        method="sft",
        dtype="float32",
        tokens=1000,
        evaluation=None,
        control_root="",
        control_bytes=0,
        privacy=Privacy(contributors=1, sessions=9, canary_exposure=None, scrub_rules="1"),
        lineage=(),
        licence="Apache-2.0",
        terms="all",
    )
    return home.app.bundles.put(pack(encode_label(label), topic.encode()))


def able(home: Routed, topic: str, *, at: str | None = None, **about: Any) -> str:
    """A leaf with a bundle that is here and its sessions; the bundle's address."""
    bundle = bundle_of(home, topic)
    adapter = Adapter(bundle, "c" * 64, "d" * 64, CHASSIS, 8)
    home.leaf(topic, at=at, **{**ABLE, "stage": Stage.MATURE, "adapter": adapter, **about})
    home.sessions(at or topic, range(300), leaf=topic)
    return bundle


def foreign(home: Routed, topic: str, origin: str, *, name: str = "") -> str:
    """A leaf of a peer that this node has accepted, with its bundle; the bundle's address."""
    home.app.consent.grant(home.app.user_id, [Scope("fetch")])
    bundle = bundle_of(home, f"{topic} of {origin}", name=name or topic)
    leaf = ForeignLeaf(
        origin=origin,
        leaf=leaf_id(topic),
        version=1,
        stage=Stage.MATURE,
        sessions_log2=9,
        root=bundle,
        label="f" * 64,
        size_bytes=10,
        chassis=CHASSIS,
        centroid=towards(topic),
    )
    home.app.foreign.replace_origin(origin, [leaf])
    known = home.app.foreign.get(origin, leaf.leaf)
    assert known is not None
    home.app.foreign.settle(known, State.ACCEPTED, {}, name or topic)
    return bundle


def opened(home: Routed, encoder: type | None = None) -> Any:
    """Its App, with a chassis that is never read and an encoder that a test may break."""
    app: Any = home.app
    app.__dict__["chassis"] = SimpleNamespace(tag8=bytes.fromhex(CHASSIS), path=None)
    app.adapters = QuickAdapters()
    app.encoder = encoder or StarterEncoder
    return app


@asynccontextmanager
async def choosing(home: Routed, **config: Any) -> AsyncIterator[Desk]:
    """The chooser at work, ready."""
    counts = Counts()
    settings = ApiConfig(**{"route_within_ms": 5000.0, **config})
    desk = Desk(home, Chooser(home.app, settings, counts), counts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.chooser.run)
        await desk.chooser.ready.wait()
        yield desk
        nursery.cancel_scope.cancel()
