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
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from ..bundle import BundleError
from ..ports import (
    EvaluateJob,
    Losses,
    PreferenceJob,
    Probed,
    ProbeJob,
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
    PreferOrder,
    ProbeOrder,
    Recalled,
    Told,
    TrainOrder,
    decode_answer,
    encode,
)
from .spawn import spawn
from .time_limit import TimeLimit

MEMORY_BYTES_MAX = 8 << 30  # of address space; an evaluation on SmolLM2 takes about 2 GiB
TIMEOUT_S = 1800.0
KEEP_S = 60.0  # loading the chassis takes as long as judging forty sessions


class TrainingError(Exception):
    """A child ended without a result. What a training had reached is kept: run the job again."""


class _Running:
    """One child: its pipes, what it writes to standard error, and its end."""

    def __init__(self, limits: Limits, timeout_s: float | None) -> None:
        """timeout_s: of one order, not counting what it is paused for."""
        self.limit = TimeLimit(timeout_s, partial(self.signal, signal.SIGKILL))
        self.last_words = ""  # of its standard error, once it has ended
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives with the child
        self.process = spawn(
            lambda: subprocess.Popen(
                launch.command("leaves.training.worker"),
                env=launch.environment(threads=limits.threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
            )
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, which: signal.Signals) -> None:
        if self.alive:
            os.killpg(self.process.pid, which)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """Wait for the child, which ends when its input does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # part of an order may still be unsent
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        with self._errors as errors:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
        self.last_words = lines[-1] if lines else ""


class _Child:
    """Runs one order at a time in a process group of its own; safe to stop from another thread."""

    def __init__(self, limits: Limits, timeout_s: float | None, keep_s: float = 0.0) -> None:
        """timeout_s: of one order. keep_s: how long an idle child waits for another order."""
        self._limits = limits
        self._timeout_s = timeout_s
        self._keep_s = keep_s
        self._turn = threading.Lock()
        self._running: _Running | None = None
        self._idle: threading.Timer | None = None
        self._at_exit: weakref.finalize[[], _Child] | None = None

    def pause(self) -> None:
        """Stop computing at once, keeping the place in memory; the time limit stands still."""
        self._signal(signal.SIGSTOP)
        running = self._running
        if running is not None:
            running.limit.hold()

    def resume(self) -> None:
        """Go on after `pause`."""
        running = self._running
        if running is not None:
            running.limit.release()
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the child; the call that waits for it raises TrainingError."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """End a child that waits for orders; the next order starts another."""
        with self._turn:
            self._end(at_once=True)

    def _signal(self, which: signal.Signals) -> None:
        running = self._running
        if running is not None:
            running.signal(which)

    def _run(self, order: Order, report: Report) -> Answer:
        """Hand a child the order, pass on its progress, return its last answer."""
        with self._turn:
            running = self._ready()
            running.limit.begin()
            try:
                last = _converse(running.process, order, report)
            except BaseException:
                self._end(at_once=True)
                raise
            finally:
                running.limit.end()
            if last is None or self._keep_s <= 0 or _failed(last):
                self._end(at_once=False)
            else:
                self._await_another()
            return _checked(last, running)

    def _ready(self) -> _Running:
        """The child that waits for orders, or a new one."""
        if self._idle is not None:
            self._idle.cancel()
        running = self._running
        if running is not None and running.alive:
            return running
        self._end(at_once=True)
        running = self._running = _Running(self._limits, self._timeout_s)
        self._at_exit = weakref.finalize(self, running.kill)
        return running

    def _await_another(self) -> None:
        """Not for ever: a loaded chassis takes half a gigabyte."""
        self._idle = threading.Timer(self._keep_s, _close_idle, (weakref.ref(self), self._running))
        self._idle.daemon = True
        self._idle.start()

    def _end(self, *, at_once: bool) -> None:
        running, self._running = self._running, None
        if running is not None:
            if at_once:
                running.kill()
            else:
                running.end()
        if self._at_exit is not None:
            self._at_exit.detach()


def _close_idle(child: weakref.ref[_Child], idle: _Running) -> None:
    """End a child that has waited long enough, unless it is at work again."""
    held = child()
    if held is not None and held._turn.acquire(blocking=False):
        try:
            if held._running is idle:
                held._end(at_once=True)
        finally:
            held._turn.release()


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


def _failed(answer: Answer) -> bool:
    """True if the child takes no other order after this answer."""
    return isinstance(answer, Failed) and not answer.refused


def _checked(last: Answer | None, running: _Running) -> Answer:
    match last:
        case None:
            code = running.process.returncode
            ended = f"signal {-code}" if code < 0 else f"exit {code}"
            reason = f": {running.last_words}" if running.last_words else ""
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

    def prefer(self, job: PreferenceJob, report: Report = silent) -> Trained:
        """Go on towards the chosen answers, or from the checkpoint; raises TrainingError."""
        job = replace(
            job,
            work=job.work.resolve(),
            chassis=job.chassis.resolve(),
            warm_start=job.warm_start.resolve(),
        )
        answer = self._run(PreferOrder(job, self._limits), report)
        assert isinstance(answer, Finished), answer
        return answer.result


class ChildEvaluator(_Child):
    """`leaves.ports.Evaluator` in a child of limited memory and time: it runs peers' adapters.

    The child stays for the next order and has the chassis loaded; after each it makes sure that
    the chassis is what it was. `close` ends it, as does the end of this process.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        dtype: str | None = None,
        memory_bytes_max: int | None = MEMORY_BYTES_MAX,
        timeout_s: float | None = TIMEOUT_S,
        keep_s: float = KEEP_S,
    ) -> None:
        limits = Limits(threads=threads, memory_bytes_max=memory_bytes_max, dtype=dtype)
        super().__init__(limits, timeout_s, keep_s)

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        """Measure; raises BundleError for an adapter that is refused, else TrainingError."""
        answer = self._run(EvaluateOrder(job, self._limits), report)
        assert isinstance(answer, Measured), answer
        return answer.result

    def probe(self, job: ProbeJob, report: Report = silent) -> Probed:
        """Look for texts in an adapter; raises as `losses` does."""
        answer = self._run(ProbeOrder(job, self._limits), report)
        assert isinstance(answer, Recalled), answer
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
