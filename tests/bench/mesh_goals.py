"""The goals of the mesh, and what measures each: one job for each measurement and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import mesh_bulk as bulk
import mesh_flood as flood
import mesh_hostile as hostile
import mesh_urgent as urgent
from mesh_kit import Sample

Measure = Callable[[int, int], Sample]  # nodes, seed


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a measurement and what is asked of it.

    goal, stretch: what it must not exceed, or with `at_least` not fall short of; None: no goal was
    set, the figure explains another. by_worst: the goal is asked of the worst seed, not of the
    median.
    """

    key: str  # "g1.base"
    unit: str
    goal: float | None = None
    stretch: float | None = None
    at_least: bool = False
    by_worst: bool = False

    def holds(self, value: float | None, bound: float | None) -> bool | None:
        if bound is None:
            return None
        if value is None:
            return False
        return value >= bound if self.at_least else value <= bound


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measures several figures of one run.

    seeds_max: fewer where a run is long. nodes_max: fewer where a run does not ask for many.
    """

    measure: Measure
    figures: Mapping[str, Figure]  # by the key in a sample
    seeds_max: int = 100
    nodes_max: int = 100_000

    def nodes(self, wanted: int) -> int:
        return min(wanted, self.nodes_max)

    @property
    def goals(self) -> list[str]:
        return sorted({figure.key.partition(".")[0] for figure in self.figures.values()})


def _at_worst(key: str, unit: str, goal: float, stretch: float | None = None) -> Figure:
    return Figure(key, unit, goal, stretch, by_worst=True)


def _all(key: str) -> Figure:
    """A share that must be 1, whatever the seed."""
    return Figure(key, "share of nodes", 1.0, at_least=True, by_worst=True)


MEASUREMENTS: dict[str, Measurement] = {
    "retraction": Measurement(
        urgent.retraction,
        {
            "took_s": Figure("g1.base", "s", 1.0, 0.6),
            "duplicates": Figure("g3.urgent", "duplicates per delivery", 6.5, 1.0),
        },
    ),
    "retraction-loss20": Measurement(
        partial(urgent.retraction, loss=0.2), {"took_s": Figure("g1.loss20", "s", 2.0)}
    ),
    "retraction-dead30": Measurement(
        partial(urgent.retraction, dead=0.3), {"took_s": Figure("g1.dead30", "s", 5.0)}
    ),
    "mature-leaf": Measurement(urgent.mature_leaf, {"usable_s": Figure("g1.leaf_usable", "s")}),
    "one-record": Measurement(
        partial(bulk.one_record, loss=0.0), {"rounds": _at_worst("g2.loss0", "rounds", 12, 10)}
    ),
    "one-record-loss30": Measurement(
        partial(bulk.one_record, loss=0.3), {"rounds": _at_worst("g2.loss30", "rounds", 20, 18)}
    ),
    "bodies": Measurement(
        bulk.bodies, {"duplicates": Figure("g3.bulk", "duplicates per delivery", 0.05, 0.0)}
    ),
    "night": Measurement(
        bulk.night,
        {
            "mb": Figure("g4.night", "MB received", 6.0, 3.6),
            "mb_most": Figure("g4.busiest_node", "MB received"),
            "kb_per_origin": Figure("g4.per_publishing_origin", "KB received"),
        },
        seeds_max=1,
    ),
    "partition": Measurement(
        partial(bulk.partition, loss=0.0),
        {
            "rounds": _at_worst("g5.loss0", "rounds", 6, 4),
            "lost": _at_worst("g5.lost_records", "records", 0, 0),
        },
        seeds_max=3,
    ),
    "partition-loss30": Measurement(
        partial(bulk.partition, loss=0.3),
        {
            "rounds": _at_worst("g5.loss30", "rounds", 15, 14),
            "lost": _at_worst("g5.lost_records_loss30", "records", 0, 0),
        },
        seeds_max=3,
    ),
    "push-loss40": Measurement(
        partial(urgent.push_alone, loss=0.4), {"reached": _all("g6.push_loss40")}
    ),
    "sync-loss60": Measurement(
        partial(bulk.under_loss, loss=0.6), {"rounds": _at_worst("g6.loss60", "rounds", 40)}
    ),
    "sync-loss70": Measurement(
        partial(bulk.under_loss, loss=0.7),
        {"rounds": Figure("g6.loss70", "rounds", None, 40)},
        seeds_max=2,
    ),
    "churn": Measurement(urgent.churn, {"took_s": _at_worst("g7.churn30", "s", 3.0)}),
    "crash50": Measurement(
        partial(urgent.crash, dead=0.5), {"took_s": _at_worst("g7.crash50", "s", 3.0)}
    ),
    "crash80": Measurement(
        partial(urgent.crash, dead=0.8), {"rounds": _at_worst("g7.crash80", "rounds", 10, 6)}
    ),
    "late-joiner": Measurement(
        bulk.late_joiner,
        {
            "mb": Figure("g8.bytes", "MB in and out", 12.0),
            "round_trips": Figure("g8.round_trips", "round trips", 8),
            "took_s": Figure("g8.time", "s", 30.0),
        },
        seeds_max=3,
    ),
    "fork": Measurement(urgent.fork, {"took_s": Figure("g9.frozen", "s", 2.0, 1.0)}),
    "withdrawal": Measurement(
        urgent.withdrawal,
        {
            "gone_s": Figure("g10.online", "s", 2.0),
            "returning": _at_worst("g10.returning", "of 20 nodes still route", 0),
            "returning_s": Figure("g10.returning_time", "s"),
        },
    ),
    "eclipse": Measurement(
        urgent.eclipse,
        {"hours": _at_worst("g10.eclipsed", "h", 168)},
        seeds_max=2,
        nodes_max=10,
    ),
    "byzantine33": Measurement(
        partial(hostile.byzantine, share=1 / 3),
        {
            "invalid": _at_worst("g11.invalid33", "invariants broken", 0),
            "converged": _all("g11.converged33"),
            "rounds": Figure("g11.rounds33", "rounds"),
        },
        seeds_max=3,
    ),
    "byzantine50": Measurement(
        partial(hostile.byzantine, share=0.5),
        {
            "invalid": Figure("g11.invalid50", "invariants broken", None, 0, by_worst=True),
            "converged": Figure(
                "g11.converged50", "share of nodes", None, 1.0, at_least=True, by_worst=True
            ),
        },
        seeds_max=3,
    ),
    "flood-memory": Measurement(
        flood.flood_memory,
        {
            "mb": _at_worst("g12.memory", "MB", 64.0),
            "kept": _all("g12.honest_origins_kept"),
        },
        seeds_max=1,
    ),
    "flood-delay": Measurement(
        hostile.flood_delay,
        {
            "urgent": Figure("g12.urgent_delay", "times", 2.0),
            "bulk": Figure("g12.bulk_delay", "times"),
        },
        seeds_max=3,
        nodes_max=200,  # what floods say, every node tells every other
    ),
    "bundle": Measurement(
        hostile.bundle,
        {
            "exact": _all("g13.exact"),
            "ratio": _at_worst("g13.fetched", "times the bundle's size, without lies", 1.02),
            "lies": Figure("g13.false_chunks", "chunks"),
        },
        nodes_max=5,
    ),
}

NOT_YET: dict[str, str] = {}  # figure -> why there is no measurement of it
