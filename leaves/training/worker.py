"""The child process in which torch runs: one order on standard input, answers on standard output.

It ends with its parent: when the pipe of its input closes, whatever it was doing is dropped, and a
checkpoint is what remains.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from ..bundle import BundleError, read_adapter
from ..ports import Progress
from .chassis import ChassisError, open_chassis
from .orders import (
    Answer,
    Answered,
    EvaluateOrder,
    Failed,
    Finished,
    GenerateOrder,
    Limits,
    Measured,
    Order,
    Told,
    TrainOrder,
    decode_order,
    encode,
)


def main() -> int:
    """Carry out one order. Exit 0 if it was answered, with a result or with a reason why not."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    order = decode_order(line)
    _limit(order.limits)

    def say(answer: Answer) -> None:
        answers.write(encode(answer))
        answers.flush()

    try:
        say(_carry_out(order, say))
    except BundleError as refused:
        say(Failed(str(refused), refused=True))
    except (ChassisError, OSError, ValueError, MemoryError) as failed:
        traceback.print_exc()
        say(Failed(f"{type(failed).__name__}: {failed}", refused=False))
    return 0


def _end_with_parent() -> None:
    # Not through sys.stdin: a thread waiting inside it makes the interpreter abort at its end.
    while os.read(0, 4096):
        pass
    os._exit(3)


def _limit(limits: Limits) -> None:
    os.nice(limits.niceness)
    if limits.memory_bytes_max is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes_max,) * 2)
    import torch

    torch.set_num_threads(limits.threads)


def _carry_out(order: Order, say: Callable[[Answer], None]) -> Answer:
    import torch

    def report(progress: Progress) -> None:
        say(Told(progress.phase, progress.done, progress.total, progress.detail))

    wanted = order.limits.dtype
    dtype: torch.dtype | None = getattr(torch, wanted) if wanted else None
    match order:
        case TrainOrder(job):
            from .sft import train

            with torch.no_grad():
                return Finished(train(job, report, dtype=dtype))
        case EvaluateOrder(job):
            from .evaluate import measure

            model = _Model(job.chassis, dtype)
            with torch.no_grad():
                return Measured(measure(job, model.backend, model.bind, report))
        case GenerateOrder(job):
            from .encode import TOKENS_MAX, Encoder

            model, encoder = _Model(job.chassis, dtype), Encoder(job.chassis)
            prompts = [encoder.prompt(each, tokens_max=TOKENS_MAX) for each in job.prompts]
            answers: dict[str, tuple[str, ...]] = {}
            with torch.no_grad():
                for done, (label, adapter) in enumerate(job.adapters):
                    model.bind(adapter)
                    made = (
                        model.backend.generate(prompt, count=job.tokens, end=encoder.end)
                        for prompt in prompts
                    )
                    answers[label] = tuple(encoder.text(tokens) for tokens in made)
                    report(Progress("generate", done + 1, len(job.adapters), label))
            return Answered(answers)


class _Model:
    """A loaded chassis, and adapters put on it from files that are checked first."""

    def __init__(self, chassis: Path, dtype: object) -> None:
        import torch

        from .backend import fastest_dtype, open_backend

        chosen = dtype if isinstance(dtype, torch.dtype) else fastest_dtype()
        self._chassis = open_chassis(chassis)
        self.backend = open_backend(chassis, chosen)

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


if __name__ == "__main__":
    sys.exit(main())
