"""Plans that broke an invariant once. Each stays, so that what was mended stays mended.

Append the smallest plan that `groove-sim` found, with what broke; the table of
docs/bugs-found-by-simulation.md tells the cause and the mend.
"""

from __future__ import annotations

from simnet.runs import Plan

KEPT: list[tuple[Plan, str]] = [
    (Plan("swarm", nodes=12, seed=12), "convergence: a table was waited for after a clock fell"),
    (Plan("swarm", nodes=12, seed=24), "convergence: the same"),
    (Plan("swarm", nodes=12, seed=15), "durability: a crash lost that an origin is dead"),
    (Plan("swarm", nodes=8, seed=2), "convergence: tries for one head used up a day's quota"),
]
