"""Whether the mesh reaches its goals, in simulated time: G1 to G13, each over several seeds.

    python tests/bench/mesh.py [--json FILE|-] [--nodes 1000] [--seeds 5] [--only g1,g5] [--jobs 2]

The result has a key for each goal, g1 to g13, with its named figures:

value      median over the seeds; null if it did not happen within its time in half of them
worst      of the seeds; null if it did not happen in one
seeds      how many were played, from 0 on; `never`: in how many it did not happen
nodes      how many were simulated
goal       what is asked, and `stretch`, what would be better still; null: nothing is asked of
           this figure, it explains another
met        whether `value` is within the goal, or `worst` where `judged_by` says so; likewise
           `stretch_met`
cpu_s      of one core, mean over the seeds

`missing` names the figures that were not measured, each with the reason. Links take U(20, 200) ms
and lose 1 % of the frames, unless a figure says otherwise.

g1   urgent: a retraction until 99.9 % have heard it; base, 20 % loss, 30 % of the nodes dead;
     leaf_usable: from a mature leaf's head until 99.9 % have its table too
g2   bulk: one record, by comparing alone, until all are equal; 0 % and 30 % loss
g3   duplicates per delivery: urgent frames; bodies (tables and cards)
g4   a night in which every node publishes 5 of its 20 leaves anew: MB received per node
g5   two halves apart for six hours, both publishing: rounds until equal, and records lost
g6   loss: what push alone reaches at 40 %; rounds with comparing at 60 % (and 70 %)
g7   30 % of the nodes an hour crash; 50 % and 80 % crash at once: until all that live have heard
g8   who comes late to tables of 20 leaves of all others, on a line of 10 Mbit/s
g9   both branches of a fork at one node, until 99.9 % hold its key for frozen
g10  a retraction: nodes on line, nodes that come back, a node that is eclipsed
g11  a third of the nodes byzantine: what invalid is accepted, which honest nodes converge
g12  a flood of a hundred times the quota: memory, and what it costs the honest
g13  a bundle of 50 MB from four sources, one lying and one stalled, killed five times

Each measurement says in its docstring what exactly is counted: mesh_urgent, mesh_bulk and the rest.
Every job is a process of its own, at nice 10.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from mesh_goals import MEASUREMENTS, NOT_YET, Figure, Measurement  # noqa: E402
from mesh_kit import Sample  # noqa: E402

GOALS = tuple(f"g{number}" for number in range(1, 14))


@dataclass(frozen=True, slots=True)
class Played:
    """What came of one job: a sample, or why there is none."""

    name: str
    seed: int
    sample: Sample | None
    reason: str
    cpu_s: float


def play(name: str, nodes: int, seed: int) -> Played:
    """Measure once. A measurement that fails is reported by name and seed, and stops no other."""
    began_s = time.process_time()
    sample, reason = None, ""
    try:
        measurement = MEASUREMENTS[name]
        sample = measurement.measure(measurement.nodes(nodes), seed)
    except Exception as error:  # whatever it is, the other figures are wanted
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"seed {seed}: {type(error).__name__}: {error} ({where.name}:{where.lineno})"
    return Played(name, seed, sample, reason, time.process_time() - began_s)


def measured(names: Sequence[str], nodes: int, seeds: int, jobs: int) -> Iterator[Played]:
    """Play all, in processes of their own: seed by seed, the long ones last."""
    order = [
        (seed, name) for seed in range(seeds) for name in names if seed < _seeds_of(name, seeds)
    ]
    order.sort(key=lambda job: MEASUREMENTS[job[1]].seeds_max < seeds)
    context = get_context("spawn")  # so that a job's memory is its own
    with ProcessPoolExecutor(
        jobs, mp_context=context, max_tasks_per_child=1, initializer=_be_nice
    ) as pool:
        futures = [pool.submit(play, name, nodes, seed) for seed, name in order]
        for done in as_completed(futures):
            yield done.result()


def report(played: Sequence[Played], nodes: int, wanted: Sequence[str]) -> dict[str, Any]:
    """Merge what was played into the figures of each goal."""
    of: dict[str, list[Played]] = defaultdict(list)
    for one in played:
        of[one.name].append(one)
    goals: dict[str, dict[str, Any]] = {goal: {} for goal in wanted}
    missing = {key: why for key, why in NOT_YET.items() if key.partition(".")[0] in wanted}
    for name, measurement in MEASUREMENTS.items():
        runs = of[name]
        samples = [one.sample for one in runs if one.sample is not None]
        reasons = [one.reason for one in runs if one.sample is None]
        for short, figure in measurement.figures.items():
            goal, _, key = figure.key.partition(".")
            if goal not in goals:
                continue
            if reasons or not samples:
                missing[figure.key] = reasons[0] if reasons else "not played"
            if samples:
                values = [sample[short] for sample in samples]
                cpu_s = statistics.mean(one.cpu_s for one in runs if one.sample is not None)
                size = measurement.nodes(nodes)
                goals[goal][key] = summary(figure, values, size) | {"cpu_s": round(cpu_s, 1)}
    return {"nodes": nodes, **goals, "missing": missing}


def summary(figure: Figure, values: Sequence[float | None], nodes: int) -> dict[str, Any]:
    """One figure over its seeds. What never happened counts as worse than anything."""
    endless = float("-inf") if figure.at_least else float("inf")
    all_values = [endless if value is None else value for value in values]
    middle = statistics.median_low if figure.at_least else statistics.median_high
    value = _finite(statistics.median(all_values) if None not in values else middle(all_values))
    worst = _finite(min(all_values) if figure.at_least else max(all_values))
    judged = worst if figure.by_worst else value
    return {
        "value": value,
        "worst": worst,
        "seeds": len(values),
        "never": sum(value is None for value in values),
        "nodes": nodes,
        "unit": figure.unit,
        "goal": figure.goal,
        "stretch": figure.stretch,
        "judged_by": "worst" if figure.by_worst else "value",
        "met": figure.holds(judged, figure.goal),
        "stretch_met": figure.holds(judged, figure.stretch),
    }


def _finite(value: float) -> float | None:
    return None if value in (float("inf"), float("-inf")) else round(value, 4)


def _seeds_of(name: str, seeds: int) -> int:
    return min(seeds, MEASUREMENTS[name].seeds_max)


def _be_nice() -> None:
    os.nice(10)


def _wanted(only: str | None) -> list[str]:
    goals = only.split(",") if only else list(GOALS)
    if unknown := [goal for goal in goals if goal not in GOALS]:
        raise SystemExit(f"error: no goal {unknown[0]!r}: g1 to g13")
    return goals


def _names(wanted: Sequence[str]) -> list[str]:
    def needed(measurement: Measurement) -> bool:
        return any(goal in wanted for goal in measurement.goals)

    return [name for name, measurement in MEASUREMENTS.items() if needed(measurement)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="goals, as g1,g5")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    arguments = parser.parse_args()
    wanted = _wanted(arguments.only)
    played: list[Played] = []
    for one in measured(_names(wanted), arguments.nodes, arguments.seeds, arguments.jobs):
        played.append(one)
        print(
            f"{one.cpu_s:7.1f} s  {one.name} seed {one.seed}: {one.reason or one.sample}",
            file=sys.stderr,
        )
        text = json.dumps(report(played, arguments.nodes, wanted), indent=2)
        if arguments.json != "-":  # so that a run which is ended leaves what it has
            Path(arguments.json).write_text(text + "\n")
    if arguments.json == "-":
        print(json.dumps(report(played, arguments.nodes, wanted), indent=2))


if __name__ == "__main__":
    main()
