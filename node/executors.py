"""CPU work away from the caller: at once, or in child processes that can be killed.

Why children: Leiden, faiss and the encoder compute in C for seconds and do not look up. A thread
cannot be ended there, and Ctrl-C inside igraph's Leiden aborts the process. A child is killed in a
millisecond, and nothing of it is left.

A child is a fresh interpreter at low priority, in a process group of its own, so a Ctrl-C at the
terminal reaches the parent alone, which ends its children; they end too when the parent dies.
Jobs go to them as `frames` says: a function and its arguments as plain data.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeVar

from leaves.model import Matrix
from leaves.ports import (
    Clusterer,
    Clustering,
    ClusterSizes,
    Executor,
    Report,
    silent,
)
from leaves.training import launch

from .frames import Answer, Done, Job, Raised, receive, send

T = TypeVar("T")

QUEUED_MAX = 64  # jobs that wait for a child; more make `submit` wait
TICK_S = 0.5  # how long a report of the caller's own may be put off
ERROR_BYTES_MAX = 2000  # of what a child wrote before it died


class WorkerDiedError(RuntimeError):
    """A child ended without an answer: killed from outside, or for want of memory."""


class ExecutorClosedError(RuntimeError):
    """The executor takes no more jobs, or was closed while this one ran."""


class InlineExecutor:
    """Runs each job at once, in the caller's thread."""

    def __init__(self) -> None:
        self._closed = False

    def submit(self, fn: Callable[..., T], *args: Any) -> Future[T]:
        if self._closed:
            raise ExecutorClosedError("the executor is closed")
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as problem:
            future.set_exception(problem)
        return future

    def close(self) -> None:
        self._closed = True


class Runner(Protocol):
    """Does one job after the other, each in a process that can be killed."""

    def run(self, job: Job) -> Any: ...

    def kill(self) -> None:
        """End the job that runs, from any thread; every later one raises ExecutorClosedError."""
        ...


class RunnerExecutor:
    """Runs as many jobs at once as it has runners; a bounded number of others wait for one."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._jobs: queue.Queue[tuple[Future[Any], Job]] = queue.Queue(QUEUED_MAX)
        self._closed = threading.Event()
        self._runners = list(runners)
        self._threads = [
            threading.Thread(target=self._serve, args=(runner,), daemon=True)
            for runner in self._runners
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._jobs.put((future, Job(fn, args)), timeout=TICK_S)
                return future
        raise ExecutorClosedError("the executor is closed")

    def close(self) -> None:
        """Kill what runs. Jobs that run or wait fail with ExecutorClosedError."""
        self._closed.set()
        for runner in self._runners:
            runner.kill()
        for thread in self._threads:
            thread.join()
        while not self._jobs.empty():
            future, _ = self._jobs.get()
            if future.set_running_or_notify_cancel():
                future.set_exception(ExecutorClosedError("closed before it began"))

    def _serve(self, runner: Runner) -> None:
        while not self._closed.is_set():
            try:
                future, job = self._jobs.get(timeout=TICK_S)
            except queue.Empty:
                continue
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(runner.run(job))
            except Exception as problem:
                closed = self._closed.is_set()
                future.set_exception(ExecutorClosedError("closed") if closed else problem)
        runner.kill()


class ProcessExecutor(RunnerExecutor):
    """Runs jobs in up to `workers` children, which live on between jobs.

    A job whose child dies fails with WorkerDiedError, and the next one gets a fresh child.
    """

    def __init__(self, workers: int, *, threads: int = 1) -> None:
        super().__init__([_Child(threads) for _ in range(workers)])


def in_child(
    fn: Callable[..., T], *args: Any, report: Report = silent, threads: int | None = None
) -> T:
    """Return `fn(*args)`, computed in a child, and pass on what it reports with `pass_on`.

    Whatever ends the wait, such as Ctrl-C or an exception of `report`, kills the child.
    """
    child = _Child(threads or os.cpu_count() or 1)
    try:
        result: T = child.run(Job(fn, args), report)
        return result
    finally:
        child.kill()


@dataclass(frozen=True, slots=True)
class ChildClusterer:
    """Clusters as the clusterer that `make` makes, in a child process.

    make: a function of a module, given an executor for what can be done side by side.
    """

    make: Callable[[Executor], Clusterer]
    threads: int | None = None  # all cores if None

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        threads = self.threads or os.cpu_count() or 1
        arguments = (self.make, threads, list(ids), vectors, sizes)
        return in_child(_cluster, *arguments, report=report, threads=threads)


def _cluster(
    make: Callable[[Executor], Clusterer],
    workers: int,
    ids: Sequence[str],
    vectors: Matrix,
    sizes: ClusterSizes,
) -> Clustering:
    from .executor_child import pass_on

    with processes(workers) as executor:
        return make(executor).cluster(ids, vectors, sizes, pass_on)


class _Child:
    """One child process, started when it is first needed; `kill` may come from any thread."""

    def __init__(self, threads: int) -> None:
        self._thread_count = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._turn = threading.Lock()
        self._ended = False

    def run(self, job: Job, report: Report = silent) -> Any:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it died; how is told below
                send(process.stdin, job)
            for answer in self._answers(process.stdout):
                match answer:
                    case Done(value):
                        return value
                    case Raised():
                        raise answer.error()
                    case _:
                        report(answer)
        except BaseException as problem:
            if not isinstance(problem, Exception):
                self.kill()
            raise
        raise self._death(process)

    def kill(self) -> None:
        with self._turn:
            self._ended = True
            process, self._process = self._process, None
            errors, self._errors = self._errors, None
        if process is not None:
            _end(process)
        if errors is not None:
            errors.close()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._turn:
            if self._ended:
                raise ExecutorClosedError("the child was ended")
            if self._process is None:
                self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
                self._process = subprocess.Popen(
                    launch.command("node.executor_child", str(os.getpid())),
                    env=launch.environment(threads=self._thread_count),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    start_new_session=True,
                    bufsize=0,  # a selector does not see what a buffer holds
                )
            return self._process

    def _answers(self, pipe: IO[bytes]) -> Iterator[Answer]:
        """Yield what the child says until it has ended.

        While it is silent nothing is yielded, but signals are heard: the wait is in short pieces.
        """
        while True:
            # Not `select.select`: it takes no descriptor above 1,023, and a node may hold more.
            with selectors.PollSelector() as said:
                said.register(pipe, selectors.EVENT_READ)
                while not said.select(TICK_S):
                    pass
            answer = receive(pipe)
            if answer is None:
                return
            yield answer

    def _death(self, process: subprocess.Popen[bytes]) -> WorkerDiedError:
        with self._turn:
            self._process = None
            errors, self._errors = self._errors, None
        code = process.wait()
        _end(process)
        said = b""
        if errors is not None:
            with errors:
                errors.seek(0)
                said = errors.read()[-ERROR_BYTES_MAX:]
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return WorkerDiedError(f"a child process died ({how}) {said.decode(errors='replace')}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError, ValueError):
                pipe.close()


@contextmanager
def processes(workers: int, *, threads: int = 1) -> Iterator[ProcessExecutor]:
    """An executor for as long as it is needed."""
    executor = ProcessExecutor(workers, threads=threads)
    try:
        yield executor
    finally:
        executor.close()
