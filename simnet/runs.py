"""One scenario under one seed, played to its end: the figures, or what broke."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gossip.ports import PeerId

from .faults import Links
from .invariants import STATEMENTS, InvariantError
from .network import Network
from .scenarios import SCENARIOS, Figures
from .watch import Observer

MUTABLE = ("loss", "duplicate", "delay", "flip", "forge", "partition")  # what `without` may name
NO_ERROR = "no error"
_STATEMENT = "nothing that happens makes a core or a scenario raise"
_TRACEBACK_LINES = 12

Observe = Callable[[Network], Observer]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run is a function of, but for the code. The faults are shares of frames."""

    scenario: str
    nodes: int = 20
    seed: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    flip: float = 0.0
    without: tuple[str, ...] = ()  # faults that are kept off, though the scenario asks for them

    @property
    def command(self) -> str:
        """The line that plays it."""
        words = [f"groove-sim run {self.scenario} --nodes {self.nodes} --seed {self.seed}"]
        for share in ("loss", "duplicate", "delay", "flip"):
            if value := getattr(self, share):
                words.append(f"--{share} {value}")
        if self.without:
            words.append(f"--without {','.join(self.without)}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Broken:
    """The first invariant that did not hold. tail: what led to it at that node, oldest first."""

    seed: int
    invariant: str
    text: str
    tail: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.invariant}: {self.text}"


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a plan. `broken` is None if every invariant held to the end."""

    plan: Plan
    trace_hash: str
    events: int
    simulated_s: float
    checks: dict[str, int]  # by invariant
    faults: dict[str, int]  # injected, by kind
    figures: Figures
    broken: Broken | None

    @property
    def scenario(self) -> str:
        return self.plan.scenario

    @property
    def nodes(self) -> int:
        return self.plan.nodes

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def loss(self) -> float:
        return self.plan.loss

    @property
    def replay(self) -> str:
        """The command that plays it again."""
        return self.plan.command

    def as_json(self) -> dict[str, Any]:
        broken = self.broken
        return {
            **{field.name: getattr(self.plan, field.name) for field in fields(Plan)},
            "trace_hash": self.trace_hash,
            "events": self.events,
            "simulated_s": round(self.simulated_s, 3),
            "invariants": {
                name: {"checks": self.checks.get(name, 0), "statement": text}
                for name, text in (*STATEMENTS.items(), (NO_ERROR, _STATEMENT))
            },
            "faults": self.faults,
            "figures": self.figures,
            "broken": broken
            and {"invariant": broken.invariant, "text": broken.text, "tail": list(broken.tail)},
            "replay": self.replay,
        }


def play(
    scenario: str,
    *,
    nodes: int,
    seed: int,
    loss: float = 0.0,
    duplicate: float = 0.0,
    delay: float = 0.0,
    flip: float = 0.0,
    without: tuple[str, ...] = (),
) -> Run:
    """Play a scenario. The same arguments give the same run, on any machine."""
    return carry_out(Plan(scenario, nodes, seed, loss, duplicate, delay, flip, without))


def carry_out(plan: Plan, observe: Sequence[Observe] = ()) -> Run:
    """Play a plan; observers look on, and change nothing.

    A core that raises is a finding as a broken invariant is, and is told with its seed: so whatever
    is raised here ends the run, and is its verdict.
    """
    net = _network(plan)
    for each in observe:
        net.watch(each(net))
    figures: Figures = {}
    broken = None
    try:
        figures = SCENARIOS[plan.scenario](net)
    except InvariantError as error:
        broken = Broken(plan.seed, error.invariant, error.text, tuple(error.tail))
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).splitlines()[-_TRACEBACK_LINES:]
        broken = Broken(plan.seed, NO_ERROR, f"{type(error).__name__}: {error}", tuple(lines))
    return Run(
        plan=plan,
        trace_hash=net.trace_hash(),
        events=net.events,
        simulated_s=net.now,
        checks=dict(sorted(net.checker.checks.items())),
        faults=dict(sorted(net.faults.items())),
        figures=figures | {f"{name}_total": float(n) for name, n in sorted(net.sent.items())},
        broken=broken,
    )


def _network(plan: Plan) -> Network:
    links = Links(loss=plan.loss, duplicate=plan.duplicate, delay=plan.delay, flip=plan.flip)
    if plan.without:
        return _Quieter(plan.without, size=plan.nodes, seed=plan.seed, links=links)
    return Network(size=plan.nodes, seed=plan.seed, links=links)


class _Quieter(Network):
    """A network in which some faults never happen, whatever the scenario asks for."""

    def __init__(self, without: tuple[str, ...], *, size: int, seed: int, links: Links) -> None:
        self._without = without
        super().__init__(size=size, seed=seed, links=self._quiet(links))

    @property
    def links(self) -> Links:
        return self._links

    @links.setter
    def links(self, links: Links) -> None:
        Network.links.__set__(self, self._quiet(links))  # type: ignore[attr-defined]

    def partition(self, sides: dict[PeerId, int]) -> None:
        if "partition" not in self._without:
            super().partition(sides)

    def _quiet(self, links: Links) -> Links:
        off = self._without
        return replace(
            links,
            loss=0.0 if "loss" in off else links.loss,
            duplicate=0.0 if "duplicate" in off else links.duplicate,
            delay=0.0 if "delay" in off else links.delay,
            flip=0.0 if "flip" in off else links.flip,
            forge=0.0 if "forge" in off else links.forge,
        )
