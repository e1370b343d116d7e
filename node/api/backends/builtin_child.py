"""The built-in back end's child as the node sees it: started, spoken with, ended.

Everything that is said goes over two pipes. Orders are written by one task, so that whoever stops
waiting never leaves half of one in the pipe.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
import trio

from leaves.serving.orders import (
    Begun,
    Broken,
    Made,
    Order,
    Ready,
    Refused,
    Saying,
    Start,
    frame,
    frames_of,
    saying_of,
)
from leaves.training import launch
from leaves.training.spawn import spawn
from node.adapters import Adapters

PIECE_BYTES = 1 << 16

Heard = Begun | Made | Refused


class Child:
    """One child, from the first request that needs it to its end."""

    def __init__(self) -> None:
        self.settled = trio.Event()  # it is ready, or there is a problem
        self.problem = ""  # why it is of no use; never a text, never a path
        self.ready: Ready | None = None
        self.heard_at = trio.current_time()
        self.resident = 0  # adapters in its memory
        self.process: subprocess.Popen[bytes] | None = None
        self._ids = 0
        self._hearing: dict[int, trio.MemorySendChannel[Heard]] = {}
        self._orders, self._unsent = trio.open_memory_channel[bytes](math.inf)

    @property
    def ended(self) -> bool:
        return bool(self.problem)

    async def live(self, start: Start, adapters: Adapters, idle: Callable[[], float]) -> bool:
        """Run until it dies (True) or nobody has needed it for long enough (False).

        idle: seconds until it is of no more use if nobody asks, 0 or less if it is now.
        """
        self.process = process = await adapters.in_thread(lambda: _started(start.threads))
        assert process.stdin is not None and process.stdout is not None
        rested = False
        try:
            async with (
                trio.lowlevel.FdStream(os.dup(process.stdin.fileno())) as into,
                trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as out,
                trio.open_nursery() as nursery,
            ):
                process.stdin.close()  # it ends when the last one is closed
                self.order(start)
                nursery.start_soon(self._write, into)
                nursery.start_soon(self._read, out, nursery.cancel_scope)
                while (left_s := idle()) > 0:
                    await trio.sleep(left_s)
                rested = True
                self.problem = "it was not needed any more"  # from now on nobody is given it
                nursery.cancel_scope.cancel()
        finally:
            self.fail("it ended unasked")
            with trio.CancelScope(shield=True):
                await adapters.in_thread(lambda: _ended(process))
        return not rested

    def kill(self) -> None:
        """End it at once; whoever waits for it is told."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def order(self, order: Order) -> None:
        """Say something to it; never waits. What is said to a child that is gone is lost.

        Raises UnicodeEncodeError for a text that is none.
        """
        data = frame(order)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._orders.send_nowait(data)

    @contextmanager
    def conversation(self) -> Iterator[tuple[int, trio.MemoryReceiveChannel[Heard]]]:
        """A number for an order, and what the child says to it; it ends when the child does.

        What is heard is bounded by the answer's length, which the child bounds.
        """
        self._ids += 1
        number = self._ids
        send, receive = trio.open_memory_channel[Heard](math.inf)
        if self.ended:
            send.close()
        self._hearing[number] = send
        try:
            yield number, receive
        finally:
            self._hearing.pop(number, send).close()
            receive.close()

    async def _write(self, into: trio.lowlevel.FdStream) -> None:
        with suppress(trio.BrokenResourceError):  # it died; the other task sees how
            async for order in self._unsent:
                await into.send_all(order)

    async def _read(self, out: trio.lowlevel.FdStream, scope: trio.CancelScope) -> None:
        data = bytearray()
        try:
            while piece := await out.receive_some(PIECE_BYTES):
                data += piece
                for message in frames_of(data):
                    self._hear(saying_of(message))
        except trio.BrokenResourceError:
            self.problem = self.problem or "its pipe broke"
        except (msgspec.MsgspecError, ValueError):
            self.problem = "it spoke nonsense"
        scope.cancel()

    def _hear(self, saying: Saying) -> None:
        self.heard_at = trio.current_time()
        match saying:
            case Ready():
                self.ready = saying
                self.settled.set()
            case Broken(details):
                self.problem = details
            case Begun() | Made() | Refused():
                if isinstance(saying, Begun):
                    self.resident = saying.resident
                if saying.id in self._hearing:
                    self._hearing[saying.id].send_nowait(saying)

    def fail(self, problem: str) -> None:
        """From now on it is of no use: whoever waits for it is told."""
        self.problem = self.problem or problem
        self._orders.close()
        self._unsent.close()
        for hearing in self._hearing.values():
            hearing.close()
        self.settled.set()


def _started(threads: int) -> subprocess.Popen[bytes]:
    return spawn(
        lambda: subprocess.Popen(
            launch.command("leaves.serving.worker"),
            env=launch.environment(threads=threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a trace could quote a prompt
            start_new_session=True,
        )
    )


def _ended(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
