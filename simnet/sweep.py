"""Many seeds on all cores, or on Ray: the same runs in the same order, however they were computed.

One run is a function of its plan, so it does not matter which process plays it. Runs come back in
the order of the seeds, so that "the first broken seed" means the same on every machine.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

from leaves.ports import Executor
from node.errors import OwnerError
from node.executors import InlineExecutor, ProcessExecutor

from .runs import Plan, Run, carry_out

if TYPE_CHECKING:
    from .world_story import WorldRun

Kind = Literal["processes", "ray"]
BOUND_MIN = 10  # runs of which a bound is told
AHEAD = 4  # runs handed out for each core before the first of them is back


class SweepError(OwnerError):
    """The sweep cannot be started."""


def sweep(
    scenario: str,
    seeds: Iterable[int],
    nodes: int = 20,
    jobs: int = 0,
    executor: Kind = "processes",
    *,
    keep_going: bool = False,
    **faults: Any,
) -> Generator[Run, None, None]:
    """Yield the run of each seed, in order; the first broken one is the last unless `keep_going`.

    jobs: runs at once, 0 for one a core. faults: as `play` takes them. Raises SweepError.
    """
    plans = (Plan(scenario, nodes, seed, **faults) for seed in seeds)
    return carry_out_all(plans, jobs, executor, keep_going=keep_going)


def carry_out_all(
    plans: Iterable[Plan],
    jobs: int = 0,
    executor: Kind = "processes",
    *,
    keep_going: bool = False,
) -> Generator[Run, None, None]:
    """Yield the run of each plan, in their order. Closing the iterator ends what still runs."""
    count = jobs or os.cpu_count() or 1
    with closing(_executor(executor, count)) as runner:
        waiting: deque[Future[Run]] = deque()
        for plan in plans:
            waiting.append(runner.submit(carry_out, plan))
            if len(waiting) >= (1 if count == 1 and executor == "processes" else AHEAD * count):
                run = waiting.popleft().result()
                yield run
                if run.broken and not keep_going:
                    return
        while waiting:
            run = waiting.popleft().result()
            yield run
            if run.broken and not keep_going:
                return


def _executor(kind: Kind, jobs: int) -> Executor:
    if kind == "ray":
        if importlib.util.find_spec("ray") is None:
            raise SweepError(
                "--executor ray needs Ray, which is not installed",
                unchanged="Nothing was played.",
                next_step="`pip install 'groove-node[ray]'`, or leave --executor out.",
            )
        from node.ray_executor import RayExecutor  # costs seconds and about 1 GB

        return RayExecutor(workers=jobs)
    return ProcessExecutor(jobs) if jobs > 1 else InlineExecutor()


def totals(runs: Sequence[Run | WorldRun]) -> dict[str, Any]:
    """What a sweep amounts to, as it may be quoted."""
    checks: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for run in runs:
        checks.update(run.checks)
        faults.update(run.faults)
    broken = sum(run.broken is not None for run in runs)
    return {
        "scenarios": list(dict.fromkeys(run.scenario for run in runs)),
        "seeds": len({run.seed for run in runs}),
        "runs_played": len(runs),
        "nodes": sorted({run.nodes for run in runs}),
        "simulated_h": round(sum(run.simulated_s for run in runs) / 3600, 1),
        "events": sum(run.events for run in runs),
        "invariant_checks": checks.total(),
        "checks": dict(sorted(checks.items())),
        "faults": dict(sorted(faults.items())),
        "violations": broken,
        "bound": bound(len(runs), broken),
    }


def bound(runs: int, broken: int) -> str | None:
    """What no failure in so many runs shows: the share of which 95 % of such series show some.

    None if there was one, and below ten runs, which show next to nothing.
    """
    if broken or runs < BOUND_MIN:
        return None
    return f"at most {100 * (1 - 0.05 ** (1 / runs)):.2g} % of runs break (95 %)"
