"""One scenario under one seed, played to its end: the figures, or what broke."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .faults import Links
from .invariants import STATEMENTS, InvariantError
from .network import Network
from .scenarios import SCENARIOS, Figures


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run. `broken` is None if every invariant held to the end."""

    scenario: str
    nodes: int
    seed: int
    loss: float
    trace_hash: str
    events: int
    simulated_s: float
    checks: dict[str, int]  # by invariant
    faults: dict[str, int]  # by kind
    figures: Figures
    broken: InvariantError | None

    @property
    def replay(self) -> str:
        """The command that plays it again."""
        line = f"groove-sim run {self.scenario} --nodes {self.nodes} --seed {self.seed}"
        return f"{line} --loss {self.loss}" if self.loss else line

    def as_json(self) -> dict[str, Any]:
        broken = self.broken
        return {
            "scenario": self.scenario,
            "nodes": self.nodes,
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
            and {"invariant": broken.invariant, "text": broken.text, "tail": broken.tail},
        }


def play(scenario: str, *, nodes: int, seed: int, loss: float = 0.0) -> Run:
    """Play a scenario. The same arguments give the same run, on any machine."""
    net = Network(size=nodes, seed=seed, links=Links(loss=loss))
    figures: Figures = {}
    broken = None
    try:
        figures = SCENARIOS[scenario](net)
    except InvariantError as error:
        broken = error
    return Run(
        scenario=scenario,
        nodes=nodes,
        seed=seed,
        loss=loss,
        trace_hash=net.trace_hash(),
        events=net.events,
        simulated_s=net.now,
        checks=dict(sorted(net.checker.checks.items())),
        faults=dict(sorted(net.faults.items())),
        figures=figures | {f"{name}_total": float(n) for name, n in sorted(net.sent.items())},
        broken=broken,
    )
