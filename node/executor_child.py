"""The child of `executors`: takes jobs on standard input, answers on standard output."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import IO

from leaves.ports import Progress

from .frames import Done, FrameError, Job, Raised, receive, send

NICENESS = 10  # whatever the owner does comes first
_PR_SET_PDEATHSIG = 1

_answers: IO[bytes] | None = None  # to the parent, once `main` has begun


def pass_on(progress: Progress) -> None:
    """A `Report` for jobs: in a child it reaches the report of who waits, elsewhere nobody."""
    if _answers is not None:
        send(_answers, progress)


def main() -> int:
    """Do one job after the other until the input ends."""
    global _answers
    _end_with(int(sys.argv[1]))
    os.nice(NICENESS)
    _answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    jobs = os.fdopen(os.dup(0), "rb")
    while (job := receive(jobs)) is not None:
        assert isinstance(job, Job)
        _carry_out(job, _answers)
    return 0


def _carry_out(job: Job, answers: IO[bytes]) -> None:
    try:
        answer: Done | Raised = Done(job.fn(*job.args))
    except Exception as problem:
        answer = Raised.of(problem)
    try:
        send(answers, answer)
    except FrameError as problem:
        send(answers, Raised.of(problem))


def _end_with(parent: int) -> None:
    """Die when the parent does, even within a long call into C.

    Linux sends the signal when the thread that began this process ends, so an executor keeps its
    threads as long as its children. Elsewhere a child ends when its job is done.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(3)


if __name__ == "__main__":
    # Jobs import this module by its name, so the one of that name must be the one that runs.
    from node.executor_child import main as run

    sys.exit(run())
