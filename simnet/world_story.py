"""Thirty nights of a world: what its owners and its misfortunes are, and what must come of it.

Each evening the owners have asked, each night the nodes work, each morning everything is looked
at. Which node is killed when, which night the mesh is in two parts, who withdraws what and which
leaf is retracted follow from the seed. `play_world` is one whole run, as `groove-sim` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from gossip.ports import PeerId
from leaves.model import Leaf, Stage
from node.consent import Scope
from node.usage import by_others

from .invariants import InvariantError
from .runs import Broken, raised
from .world import HOUR_S, Node, World, lived
from .world_checks import STATEMENTS, WorldChecks

EVENING_H, MORNING_H = 20, 33  # hours after the midnight before: sessions come in, all is checked
MINUTE_S = 60.0
ORDER_S = 310.0  # until an owner's order is polled
KILLS = 0.15  # of a node in a night


@dataclass(frozen=True, slots=True)
class WorldRun:
    """What came of a world. `broken` is None if everything held to the end."""

    nodes: int
    nights: int
    seed: int
    trace_hash: str
    events: int
    simulated_s: float
    checks: dict[str, int]
    faults: dict[str, int]
    figures: dict[str, float]
    broken: Broken | None

    scenario = "world"

    @property
    def replay(self) -> str:
        """The command that plays it again."""
        return f"groove-sim world --nodes {self.nodes} --nights {self.nights} --seed {self.seed}"

    @property
    def headline(self) -> str:
        """What was played, and how much of it."""
        return (
            f"world  seed {self.seed}  {self.nodes} nodes  {self.nights} nights  "
            f"{self.events:,} events  {sum(self.checks.values()):,} checks  "
            f"trace {self.trace_hash[:12]}"
        )

    @property
    def results(self) -> dict[str, float]:
        """What became of leaves and owners, without what all frames come to."""
        return {key: value for key, value in self.figures.items() if not key.endswith("_frames")}

    def as_json(self) -> dict[str, Any]:
        broken = self.broken
        return {
            "scenario": self.scenario,
            "nodes": self.nodes,
            "nights": self.nights,
            "seed": self.seed,
            "trace_hash": self.trace_hash,
            "events": self.events,
            "simulated_s": round(self.simulated_s, 3),
            "invariants": {
                name: {"checks": self.checks.get(name, 0), "statement": text}
                for name, text in STATEMENTS.items()
            },
            "faults": self.faults,
            "figures": self.figures,
            "broken": broken
            and {
                "invariant": broken.invariant,
                "statement": broken.statement,
                "text": broken.text,
                "tail": list(broken.tail),
            },
            "replay": self.replay,
        }


@dataclass
class Nights:
    """The story, night by night. `faulty`: with kills, partitions and withdrawals."""

    faulty: bool = True
    tell: Callable[[int], None] = lambda night: None  # how many nights are over
    checks: WorldChecks | None = None
    world: World | None = None
    sessions: int = 0
    retractions: int = 0
    used: int = 0  # most usage records that were published at once, of all origins
    relied_on: int = 0  # most own leaves at one node that others say they use
    withheld: dict[int, int] = field(default_factory=dict)  # node -> night on which it may again

    async def __call__(self, world: World, nursery: trio.Nursery) -> None:
        self.world, self.checks = world, WorldChecks(world)
        chance = Random(f"{world.seed}/story")
        for node in world.nodes:
            await world.start(node, nursery)
        for night in range(world.nights):
            self.tell(night)
            await _until(night * 24 + EVENING_H)
            for node in world.nodes:
                self.sessions += world.ask(node, night)
            if self.faulty:
                await self._misfortunes(world, chance, night, nursery)
            await _until(night * 24 + MORNING_H - 1)
            world.medium.apart = lambda a, b: False
            for node in world.nodes:
                await world.start(node, nursery)
            await _until(night * 24 + MORNING_H)
            self.checks.morning()
            self._look_at_usage(world)
            if night >= 2 and night % 5 == 4:
                await self._retraction(world, chance, self.checks)

    def _look_at_usage(self, world: World) -> None:
        rows = 0
        for node in world.up():
            assert node.daemon is not None and node.app is not None
            rows += len(node.daemon.replica.view(node.origin).usage)
            self.relied_on = max(self.relied_on, len(by_others(node.app)))
        self.used = max(self.used, rows)

    async def _misfortunes(
        self, world: World, chance: Random, night: int, nursery: trio.Nursery
    ) -> None:
        if night % 6 == 5:  # two halves do not hear of each other until the morning
            half = {node.adapters.peer for node in world.nodes[: world.size // 2]}

            def apart(a: PeerId, b: PeerId) -> bool:
                return (a in half) != (b in half)

            world.medium.apart = apart
            world.medium.part()
            world.faults["F6 partition"] += 1
        for node in world.nodes:
            if chance.random() < KILLS:
                nursery.start_soon(
                    self._killed, world, node, chance.uniform(0, 6 * HOUR_S), nursery
                )
            elif chance.random() < KILLS:
                node.kill_after = chance.randrange(60)
        if night % 4 == 3:
            node = chance.choice(world.nodes)
            if node.number not in self.withheld:
                scopes = (Scope.PUBLISH,) if chance.random() < 0.5 else (Scope.PUBLISH, Scope.FETCH)
                self.withheld[node.number] = night + 3
                nursery.start_soon(self._withdraws, world, node, chance.uniform(0, HOUR_S), scopes)
        for number in [n for n, until in self.withheld.items() if until <= night]:
            del self.withheld[number]
            world.grant(world.nodes[number], *Scope)

    async def _killed(
        self, world: World, node: Node, after_s: float, nursery: trio.Nursery
    ) -> None:
        """Kill a node at any moment, and start it again from its home a while later."""
        await trio.sleep(after_s)
        if node.up:
            await world.kill(node)
            await trio.sleep(10 * MINUTE_S)
            await world.start(node, nursery)

    async def _withdraws(
        self, world: World, node: Node, after_s: float, scopes: tuple[Scope, ...]
    ) -> None:
        await trio.sleep(after_s)
        world.faults["F26 consent withdrawn"] += 1
        await world.revoke(node, *scopes)

    async def _retraction(self, world: World, chance: Random, checks: WorldChecks) -> None:
        """An owner takes back a leaf that others may use."""
        owners = [(node, leaf) for node in world.up() for leaf in offered(node)]
        if not owners:
            return
        node, leaf = chance.choice(owners)
        assert leaf.adapter is not None
        roots = {leaf.adapter.bundle, leaf.adapter.control}
        world.retract(node, leaf.id)
        self.retractions += 1
        await trio.sleep(ORDER_S + MINUTE_S)
        checks.retracted(node, leaf.id, roots)
        for other in world.up():
            checks.router(other)


def offered(node: Node) -> list[Leaf]:
    """The leaves whose bundles a node offers now."""
    if node.app is None or node.daemon is None or not node.app.allows("publish"):
        return []
    cards = node.daemon.replica.view(node.origin).cards
    shown = {card.leaf.hex() for card in cards if card.bundle is not None}
    leaves = node.app.forests.forest().live()
    return [leaf for leaf in leaves if leaf.id in shown and leaf.stage is Stage.MATURE]


async def _until(hours: float) -> None:
    await trio.sleep_until(hours * HOUR_S)


def play_world(
    nodes: int,
    nights: int,
    seed: int,
    *,
    faulty: bool = True,
    tell: Callable[[int], None] = lambda night: None,
    **traffic: int,
) -> WorldRun:
    """Play a world to its end. The same arguments give the same run.

    tell: is called with how many nights are over. What a node raises is a finding, as is a check
    that fails.
    """
    story = Nights(faulty, tell)
    broken: Broken | None = None
    try:
        lived(nodes, nights, seed, story, **traffic)
    except InvariantError as error:
        statement = STATEMENTS.get(error.invariant, "")
        broken = Broken(seed, error.invariant, error.text, tuple(error.tail), statement)
    except Exception as error:
        if story.world is None:  # it never began
            raise
        broken = raised(seed, error)
    world, checks = story.world, story.checks
    assert world is not None and checks is not None
    figures = {
        "sessions": float(story.sessions),
        "retractions": float(story.retractions),
        "usage_records": float(story.used),
        "relied_on": float(story.relied_on),
        **{name: float(count) for name, count in world.told.items()},
        **{f"{name}_frames": float(n) for name, n in world.medium.frames.items()},
    }
    return WorldRun(
        nodes,
        nights,
        seed,
        world.trace_hash(),
        world.events,
        world.mock.current_time(),
        dict(sorted(checks.checks.items())),
        dict(sorted(world.faults.items())),
        dict(sorted(figures.items())),
        broken,
    )
