"""Training and evaluation as the node calls them: in a child process that can be paused and killed.

The node itself never imports torch: it stays small, and a hostile or broken adapter can hurt no
more than a child of limited memory and time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from ..bundle import BundleError
from ..ports import (
    EvaluateJob,
    Losses,
    Progress,
    Report,
    Trained,
    TrainJob,
    silent,
)
from . import launch
from .orders import (
    Answer,
    Answered,
    EvaluateOrder,
    Failed,
    Finished,
    GenerateJob,
    GenerateOrder,
    Limits,
    Measured,
    Order,
    Told,
    TrainOrder,
    decode_answer,
    encode,
)

MEMORY_BYTES_MAX = 8 << 30  # of address space; an evaluation on SmolLM2 takes about 2 GiB
TIMEOUT_S = 1800.0


class TrainingError(Exception):
    """A child ended without a result. What a training had reached is kept: run the job again."""


class _Child:
    """Runs one order at a time in a process group of its own; safe to stop from another thread."""

    def __init__(self, limits: Limits, timeout_s: float | None) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def pause(self) -> None:
        """Stop computing at once, keeping the place in memory."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the child; the call that waits for it raises TrainingError."""
        self._signal(signal.SIGKILL)

    def _signal(self, which: signal.Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, which)

    def _run(self, order: Order, report: Report) -> Answer:
        """Start a child, hand it the order, pass on its progress, return its last answer."""
        with self._turn, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                launch.command("leaves.training.worker"),
                env=launch.environment(threads=self._limits.threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            self._process = process
            timer = threading.Timer(self._timeout_s or 0, self.stop)
            try:
                if self._timeout_s is not None:
                    timer.start()
                last = _converse(process, order, report)
                process.wait()
            finally:
                timer.cancel()
                self.stop()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    assert pipe is not None
                    with suppress(BrokenPipeError):  # part of the order may still be unsent
                        pipe.close()
                self._process = None
            return _checked(last, process.returncode, errors)


def _converse(process: subprocess.Popen[bytes], order: Order, report: Report) -> Answer | None:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(encode(order))
        process.stdin.flush()
    except BrokenPipeError:
        return None  # it died at once; its exit says why
    for line in process.stdout:
        answer = decode_answer(line)
        if not isinstance(answer, Told):
            return answer
        report(Progress(answer.phase, answer.done, answer.total, answer.detail))
    return None


def _checked(last: Answer | None, code: int, errors: IO[bytes]) -> Answer:
    match last:
        case None:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            ended = f"signal {-code}" if code < 0 else f"exit {code}"
            reason = f": {lines[-1]}" if lines else ""
            raise TrainingError(f"the training child ended by {ended}{reason}")
        case Failed(message, refused):
            raise BundleError(message) if refused else TrainingError(message)
        case _:
            return last


class ChildTrainer(_Child):
    """`leaves.ports.Trainer` in a child process at low priority."""

    def __init__(self, *, threads: int = 1, dtype: str | None = None) -> None:
        super().__init__(Limits(threads=threads, dtype=dtype), None)

    def train(self, job: TrainJob, report: Report = silent) -> Trained:
        """Train, or go on from the checkpoint in `job.work`; raises TrainingError."""
        job = replace(job, work=job.work.resolve(), chassis=job.chassis.resolve())
        answer = self._run(TrainOrder(job, self._limits), report)
        assert isinstance(answer, Finished), answer
        return answer.result


class ChildEvaluator(_Child):
    """`leaves.ports.Evaluator` in a child of limited memory and time: it runs peers' adapters."""

    def __init__(
        self,
        *,
        threads: int = 1,
        dtype: str | None = None,
        memory_bytes_max: int | None = MEMORY_BYTES_MAX,
        timeout_s: float | None = TIMEOUT_S,
    ) -> None:
        limits = Limits(threads=threads, memory_bytes_max=memory_bytes_max, dtype=dtype)
        super().__init__(limits, timeout_s)

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        """Measure; raises BundleError for an adapter that is refused, else TrainingError."""
        answer = self._run(EvaluateOrder(job, self._limits), report)
        assert isinstance(answer, Measured), answer
        return answer.result

    def generate(
        self,
        chassis: Path,
        adapters: Sequence[tuple[str, Path | None]],
        prompts: Sequence[str],
        tokens: int,
        report: Report = silent,
    ) -> dict[str, tuple[str, ...]]:
        """Answer each prompt under each adapter, greedily; by label, one answer per prompt."""
        job = GenerateJob(chassis, tuple(prompts), tuple(adapters), tokens)
        answer = self._run(GenerateOrder(job, self._limits), report)
        assert isinstance(answer, Answered), answer
        return answer.result
