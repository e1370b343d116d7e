"""The child process that answers: orders on standard input, what it says on standard output.

One thread reads orders and ends the process when there are no more, for its parent is gone then;
one makes them ready; and one computes. It keeps the priority of its parent, for somebody waits.
What it would say in distress goes nowhere: it could quote a text.
"""

from __future__ import annotations

import os
import queue
import resource
import sys
import threading
from pathlib import Path
from typing import IO

from ..training.chassis import ChassisError, open_chassis
from ..training.worker import end_with_parent
from .orders import (
    Begin,
    Broken,
    Cancel,
    Ready,
    Saying,
    Start,
    Warm,
    frame,
    order_of,
    read_frame,
)
from .prepared import Prepared

CHECK_AFTER_S = 2.0  # of rest, before the chassis is compared with what it was

Asked = queue.SimpleQueue[Begin | Warm]
Prepareds = queue.SimpleQueue[Prepared | Cancel]


def main() -> int:
    """Answer until there are no more orders. Exit 1 if this child is of no more use."""
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold every prompt
    voice = _Voice()
    # Not sys.stdin: a thread waiting inside it makes the interpreter abort at its end.
    pipe = os.fdopen(os.dup(0), "rb")
    data = read_frame(pipe)
    if data is None:
        return 0
    start = order_of(data)
    assert isinstance(start, Start), "the first order says what to start with"
    asked: Asked = queue.SimpleQueue()
    ready: Prepareds = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, asked, ready), daemon=True).start()
    try:
        _work(start, asked, ready, voice)
    except ChassisError as problem:
        voice.say(Broken(str(problem)))
    except Exception as problem:  # the top of the process; its message could quote a text
        voice.say(Broken(type(problem).__name__))
    return 1


class _Voice:
    """What the child says, whole messages from any thread."""

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        os.dup2(2, 1)  # what a library prints must not mix with it
        self._turn = threading.Lock()

    def say(self, saying: Saying) -> None:
        data = memoryview(frame(saying))
        with self._turn:
            while data:
                data = data[os.write(self._pipe, data) :]


def _read(pipe: IO[bytes], asked: Asked, ready: Prepareds) -> None:
    """Pass orders on; a cancel overtakes those that are being made ready. Ends the process."""
    try:
        while (data := read_frame(pipe)) is not None:
            match order_of(data):
                case Cancel() as order:
                    ready.put(order)
                case Begin() | Warm() as order:
                    asked.put(order)
                case Start():
                    break
    finally:  # without this thread nobody would be heard any more, not even the parent's end
        os._exit(0)


def _work(start: Start, asked: Asked, ready: Prepareds, voice: _Voice) -> None:
    import torch

    from .engine import Engine
    from .opening import open_stepper
    from .preparing import Preparing

    torch.set_grad_enabled(False)
    chassis = open_chassis(Path(start.chassis))
    stepper, dtype = open_stepper(chassis, start.dtype, start.threads)
    digest, unchecked = stepper.digest(), False
    preparing = Preparing(chassis, start.memory_bytes // stepper.memory_bytes(1))
    engine = Engine(
        stepper,
        preparing.tokenizer,
        preparing.ends,
        voice.say,
        asked.put,
        adapters_resident=start.adapters_resident,
        memory_bytes=start.memory_bytes,
    )
    preparing.start(asked, ready.put, voice.say, engine.has)
    voice.say(Ready(dtype, preparing.context))
    while True:
        try:
            while True:
                wait_s = CHECK_AFTER_S if unchecked else None
                unchecked |= engine.take(ready.get(not engine.busy, wait_s))
        except queue.Empty:
            if engine.busy:
                engine.step()
            elif stepper.digest() != digest:
                raise ChassisError("the chassis in memory was changed") from None
            else:
                unchecked = False


if __name__ == "__main__":
    sys.exit(main())
