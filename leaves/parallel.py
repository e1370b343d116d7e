"""Does one thing to many items on an `Executor`, with the result of doing it in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from .ports import Executor, Progress, Report, silent

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # items handed over before the first is done; each may hold a copy of many vectors
TICK_S = 1.0  # between two reports while all items are still worked on


def map_in_order(
    executor: Executor | None,
    fn: Callable[[T], R],
    items: Sequence[T],
    report: Report = silent,
    phase: str = "cluster: parts",
) -> list[R]:
    """Return `[fn(item) for item in items]`, computed by `executor`, or here if it is None.

    The first failure of an item, in their order, is raised; what was not begun is not done then,
    nor when `report` raises. `fn` and the items must be picklable for an executor of processes.
    """
    if executor is None:
        return [_told(fn(item), report, phase, at, len(items)) for at, item in enumerate(items, 1)]
    results: list[R] = []
    underway: deque[Future[R]] = deque()
    rest = iter(items)
    try:
        while len(results) < len(items):
            while len(underway) < AHEAD and (item := next(rest, _END)) is not _END:
                underway.append(executor.submit(fn, item))
            wait([underway[0]], TICK_S, FIRST_COMPLETED)
            if underway[0].done():
                results.append(underway.popleft().result())
            report(Progress(phase, len(results), len(items)))
    finally:
        for future in underway:
            future.cancel()
    return results


_END: object = object()


def _told(result: R, report: Report, phase: str, done: int, total: int) -> R:
    report(Progress(phase, done, total))
    return result
