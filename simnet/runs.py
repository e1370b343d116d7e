"""One scenario under one seed, played to its end: the figures, or what broke."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from .faults import Links
from .invariants import STATEMENTS, InvariantError
from .network import Network
from .scenarios import SCENARIOS, Figures
from .watch import Watcher

MUTABLE = ("loss", "duplicate", "delay", "flip", "forge", "partition")  # what `without` may name
NO_ERROR = "no error"
_STATEMENT = "nothing that happens makes a core or a scenario raise"
_TRACEBACK_LINES = 12
_TOTAL = "_total"  # how the names of figures end that count all frames and bytes

Observe = Callable[[Network], Watcher]


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
    statement: str = ""  # what should have held
    raised: str = ""  # if it is an exception: its type, and the two innermost frames

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.invariant}: {self.text}"

    def is_like(self, other: Broken) -> bool:
        """True if it is the same fault at another place or time, as far as can be told."""
        return (self.invariant, self.raised) == (other.invariant, other.raised)


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
        """The command that plays it again, on code of this version."""
        return self.plan.command

    @property
    def headline(self) -> str:
        """What was played, and how much of it."""
        return (
            f"{self.scenario}  seed {self.seed}  {self.nodes} nodes  {self.events:,} events  "
            f"{self.simulated_s / 3600:.1f} h simulated  trace {self.trace_hash[:12]}"
        )

    @property
    def results(self) -> Figures:
        """What the scenario is about, without what all frames and bytes come to."""
        return {key: value for key, value in self.figures.items() if not key.endswith(_TOTAL)}

    def as_json(self) -> dict[str, Any]:
        broken = self.broken
        return {
            **{field.name: getattr(self.plan, field.name) for field in fields(Plan)},
            "version": version("groove-node"),
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
            and {
                "invariant": broken.invariant,
                "statement": broken.statement,
                "text": broken.text,
                "tail": list(broken.tail),
            },
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
        statement = STATEMENTS.get(error.invariant, "")
        broken = Broken(plan.seed, error.invariant, error.text, tuple(error.tail), statement)
    except Exception as error:
        broken = raised(plan.seed, error)
    return Run(
        plan=plan,
        trace_hash=net.trace_hash(),
        events=net.events,
        simulated_s=net.now,
        checks=dict(sorted(net.checker.checks.items())),
        faults=dict(sorted(net.faults.items())),
        figures=figures | {f"{name}{_TOTAL}": float(n) for name, n in sorted(net.sent.items())},
        broken=broken,
    )


def raised(seed: int, error: Exception) -> Broken:
    """An exception as a finding: whatever happens, nothing may raise."""
    lines = "".join(traceback.format_exception(error)).splitlines()[-_TRACEBACK_LINES:]
    # What tells one exception from another: a smaller network may raise for reasons of its own.
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    at = " < ".join(f"{PurePath(f.filename).name}:{f.lineno}" for f in reversed(frames))
    kind = type(error).__name__
    return Broken(seed, NO_ERROR, f"{kind}: {error}", tuple(lines), _STATEMENT, f"{kind} at {at}")


def _network(plan: Plan) -> Network:
    links = Links(loss=plan.loss, duplicate=plan.duplicate, delay=plan.delay, flip=plan.flip)
    return Network(size=plan.nodes, seed=plan.seed, links=links, without=plan.without)
