"""The child process in which torch runs: orders on standard input, answers on standard output.

It ends with its parent: when the pipe of its input closes, whatever it was doing is dropped, and a
checkpoint is what remains. A paused one does not notice: Linux ends it, and on another system it
stays until somebody resumes it. Adapters of peers are put on here, so a chassis that stays loaded
for the next order is compared with what it was, and a child that failed in any way takes no other.
"""

from __future__ import annotations

import ctypes
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundle import BundleError, read_adapter
from ..ports import Progress, Report
from .chassis import ChassisError, open_chassis
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
    decode_order,
    encode,
)

if TYPE_CHECKING:
    import torch

_SET_DEATH_SIGNAL = 1


def main() -> int:
    """Carry out orders until there are no more; each is answered by a result, or why there is none.

    Exit 0 at the end of the orders, and after one that failed.
    """
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()

    def say(answer: Answer) -> None:
        answers.write(encode(answer))
        answers.flush()

    bench = _Bench()
    try:
        order = decode_order(orders.get())
        _limit(order.limits)  # all orders of one parent have the same
        while True:
            try:
                answer = bench.carry_out(order, say)
            except BundleError as refused:
                answer = Failed(str(refused), refused=True)
            bench.clear()
            say(answer)
            order = decode_order(orders.get())
    except (ChassisError, OSError, ValueError, MemoryError) as failed:
        traceback.print_exc()
        say(Failed(f"{type(failed).__name__}: {failed}", refused=False))
    return 0


def _read(orders: queue.SimpleQueue[bytes]) -> None:
    """Pass on lines; at the end of the input, end the process in whatever it is at."""
    # Not through sys.stdin: a thread waiting inside it makes the interpreter abort at its end.
    waiting: list[bytes] = []
    while data := os.read(0, 1 << 16):
        *lines, rest = data.split(b"\n")
        for line in lines:
            orders.put(b"".join([*waiting, line]))
            waiting = []
        waiting.append(rest)
    os._exit(0)


def end_with_parent() -> None:
    """Have Linux kill this process, stopped or not, when the thread that started it ends.

    That is one which stays (`spawn.py`). A parent that is gone already has closed the pipe.
    """
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no signal at the parent's death")


def _limit(limits: Limits) -> None:
    os.nice(limits.niceness)
    if limits.memory_bytes_max is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes_max,) * 2)
    import torch

    torch.set_num_threads(limits.threads)


class _Bench:
    """What stays between two orders: the chassis that was loaded last."""

    def __init__(self) -> None:
        self._model: _Model | None = None

    def clear(self) -> None:
        """Take the adapter off; ChassisError if the chassis is not what it was."""
        if self._model is not None:
            self._model.clear()

    def carry_out(self, order: Order, say: Callable[[Answer], None]) -> Answer:
        import torch

        def report(progress: Progress) -> None:
            say(Told(progress.phase, progress.done, progress.total, progress.detail))

        wanted = order.limits.dtype
        dtype: torch.dtype | None = getattr(torch, wanted) if wanted else None
        with torch.no_grad():
            match order:
                case TrainOrder(job):
                    from .sft import train

                    return Finished(train(job, report, dtype=dtype))
                case PreferOrder(job):
                    from .dpo import prefer

                    return Finished(prefer(job, report, dtype=dtype))
                case EvaluateOrder(job):
                    from .evaluate import measure

                    model = self._loaded(job.chassis, dtype)
                    return Measured(measure(job, model.backend, model.bind, report))
                case ProbeOrder(job):
                    from .memorised import probe

                    model = self._loaded(job.chassis, dtype)
                    return Recalled(probe(job, model.backend, model.bind, report))
                case GenerateOrder(job):
                    return Answered(_generate(job, self._loaded(job.chassis, dtype), report))

    def _loaded(self, chassis: Path, dtype: torch.dtype | None) -> _Model:
        if self._model is None or self._model.asked != (chassis, dtype):
            self._model = None  # never two at once
            self._model = _Model(chassis, dtype)
        return self._model


def _generate(job: GenerateJob, model: _Model, report: Report) -> dict[str, tuple[str, ...]]:
    from .encode import TOKENS_MAX, Encoded, Encoder, chunks

    encoder = Encoder(job.chassis)
    prompts = [encoder.prompt(each, tokens_max=TOKENS_MAX) for each in job.prompts]
    answers: dict[str, tuple[str, ...]] = {}
    total, done = len(job.adapters) * len(prompts), 0
    for label, adapter in job.adapters:
        model.bind(adapter)
        made = [""] * len(prompts)
        for part in chunks([Encoded(prompt, len(prompt)) for prompt in prompts]):
            together = [prompts[index] for index in part]
            said = model.backend.generate(together, count=job.tokens, end=encoder.end)
            for index, tokens in zip(part, said, strict=True):
                made[index] = encoder.text(tokens)
            done += len(part)
            report(Progress("generate", done, total, label))
        answers[label] = tuple(made)
    return answers


class _Model:
    """A loaded chassis, and adapters put on it from files that are checked first."""

    def __init__(self, chassis: Path, dtype: torch.dtype | None) -> None:
        from .backend import fastest_dtype, open_backend

        self.asked = (chassis, dtype)
        self._chassis = open_chassis(chassis)
        self.backend = open_backend(chassis, dtype or fastest_dtype())
        self._digest = self.backend.digest()

    def bind(self, adapter: Path | None) -> None:
        """Raises BundleError for a file that is not an adapter of this chassis."""
        from .adapter import Adapters

        if adapter is None:
            self.backend.bind(None)
            return
        read = read_adapter(adapter.read_bytes(), self._chassis)
        adapters = Adapters(read.shapes, read.rank, read.alpha)
        adapters.load(read.tensors)
        self.backend.bind(adapters)

    def clear(self) -> None:
        self.backend.bind(None)
        if self.backend.digest() != self._digest:
            raise ChassisError("the chassis in memory was changed by an adapter")


if __name__ == "__main__":
    sys.exit(main())
