"""Blocks of arithmetic side by side on all cores, one thread for each block.

Libraries that split one product among threads make all of them wait for the slowest, spinning:
on two cores that others use too, a search took three times as long with two threads as with one.
Whole blocks in threads of their own wait for nothing; numpy and faiss let go of the interpreter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # blocks begun per thread before the first is taken


def side_by_side(work: Callable[[T], R], items: Iterable[T], take: Callable[[R], None]) -> None:
    """Call `take(work(item))` for each item, in their order; `take` in the caller's thread.

    `work` runs in as many threads as OMP_NUM_THREADS allows, or in one per core. If `take`
    raises, what was begun is waited for, a block or two, and nothing more is done.
    """
    import faiss
    from threadpoolctl import threadpool_limits

    threads = faiss.omp_get_max_threads()
    underway: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,))
    with threadpool_limits(1):
        try:
            for item in items:
                underway.append(pool.submit(work, item))
                if len(underway) > AHEAD * threads:
                    take(underway.popleft().result())
            while underway:
                take(underway.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
