"""Prompts wait here for the encoder: one at a time, in a thread, and none for long.

Encoding takes 4 to 20 ms of a core. More prompts than it can do are not kept waiting for it: what
finds the line full, or is not done in time, is refused at once, and the chassis answers it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import trio

from node.adapters import Adapters

log = logging.getLogger(__name__)

WAITING_MAX = 32  # prompts; at 10 ms each the last one is just in time
T = TypeVar("T")


class LineError(Exception):
    """A prompt was not worked on. cause: one word, to be counted."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T]):
    text: str = field(repr=False)
    done: trio.Event = field(default_factory=trio.Event)
    given_up: bool = False
    found: T | None = None
    cause: str = ""


class Line(Generic[T]):
    """Works on texts in the order in which they came. `work` runs in a thread, one at a time."""

    def __init__(self, work: Callable[[str], T], adapters: Adapters, within_s: float) -> None:
        """work: raises LineError if it knows the cause; anything else is `encoder_failed`."""
        self._work = work
        self._adapters = adapters
        self._within_s = within_s
        self._send, self._receive = trio.open_memory_channel[_Waiting[T]](WAITING_MAX)

    async def run(self) -> None:
        """Work until cancelled."""
        async for each in self._receive:
            if each.given_up:
                continue
            try:
                each.found = await self._adapters.in_thread(partial(self._work, each.text))
            except LineError as problem:
                each.cause = problem.cause
            except Exception as problem:  # an encoder may raise anything; its words may quote texts
                log.error("prompt not encoded problem=%s", type(problem).__name__)
                each.cause = "encoder_failed"
            each.done.set()

    async def ask(self, text: str) -> T:
        """What the work makes of a text. Raises LineError: `encoder_busy` if it came too late."""
        each: _Waiting[T] = _Waiting(text)
        try:
            self._send.send_nowait(each)
        except trio.WouldBlock:
            raise LineError("encoder_busy") from None
        try:
            with trio.move_on_after(self._within_s):
                await each.done.wait()
        finally:
            each.given_up = True
        if not each.done.is_set():
            raise LineError("encoder_busy")
        if each.cause or each.found is None:
            raise LineError(each.cause or "encoder_failed")
        return each.found
