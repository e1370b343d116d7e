"""When the running node starts a round by itself, and what it does about one that fails.

Only with `auto = true` under [rounds] in groove.toml, and when the governor lets it. The round is a
process of its own at the lowest priority, so that the node stays small and answers; whether one is
due by the number of new sessions is told there too, for to count them is to read the corpus. A
round that was killed or failed is taken up again later and later, and a node that was started anew
knows of that. One that has to give way is stopped where it is, with all that it started; or ended,
which is no failure.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec
import trio
from msgspec import Meta, Struct

from leaves.model import Instant

from . import held
from .errors import OwnerError
from .held import Worker
from .home import private_dir, write_atomic
from .rounds import round_due
from .told import Tell, Told

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

FILE = "tries.json"
LOOK_S = 900  # between two counts of the sessions, and only if there are more records
BACK_OFF_S = 300
BACK_OFF_S_MAX = 86_400
_IDLE = 19  # the lowest priority; what a round starts inherits it

Begun = Callable[[int], None]  # hears the id of a process that has begun
Start = Callable[[list[str], Mapping[str, str], Begun], Awaitable[int]]


class Tries(Struct, frozen=True):
    """What became of the rounds that the node started. failures: in a row."""

    failures: Annotated[int, Meta(ge=0)] = 0
    at: Annotated[int, Meta(ge=0)] = 0  # when the last one ended, Unix seconds


def back_off_s(failures: int) -> int:
    """How long to leave a round alone that failed so many times in a row."""
    if failures <= 0:
        return 0
    return min(BACK_OFF_S << min(failures - 1, 20), BACK_OFF_S_MAX)


async def start_idle(command: list[str], environment: Mapping[str, str], begun: Begun) -> int:
    """Run a command to its end at the lowest priority; cancelled, it is ended with all that it
    started, be it stopped or not. Its exit code."""
    async with trio.open_nursery() as nursery:
        run = partial(
            trio.run_process,
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            deliver_cancel=held.deliver_end,
        )
        process: trio.Process = await nursery.start(run)
        with suppress(ProcessLookupError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, _IDLE)
        begun(process.pid)
        return await process.wait()


class Scheduler:
    """Starts one round at a time."""

    def __init__(
        self,
        app: App,
        tell: Tell,
        start: Start = start_idle,
        may: Callable[[], bool] = lambda: True,
    ) -> None:
        """may: whether unattended work is allowed now."""
        self._app = app
        self._tell = tell
        self._start = start
        self._may = may
        self._looked = 0  # when the sessions were last counted
        self._size = -1  # of the corpus then
        self._worker: int | None = None
        self._held = False
        self._note: Callable[[Worker | None], None] = lambda worker: None
        self.gave_way = False  # the last round was ended so that somebody else could work

    @property
    def runs(self) -> bool:
        """True while a round runs, or is held."""
        return self._worker is not None

    def watched(self, note: Callable[[Worker | None], None]) -> None:
        """Have somebody remember which process is at work, across a kill of this one."""
        self._note = note

    def hold(self) -> None:
        """Stop the round where it is, and what it has started since the last call."""
        if self._worker is not None:
            held.hold(self._worker)
            self._held = True

    def release(self) -> None:
        """Let it go on."""
        if self._worker is not None and self._held:
            held.release(self._worker)
        self._held = False

    def end(self) -> None:
        """End the round; another one goes on from what is on disk."""
        if self._worker is not None:
            self.gave_way = True
            held.end(self._worker)
        self._held = False

    async def look(self) -> None:
        """Run a round if one is due; returns when it has ended."""
        self.gave_way = False
        why = self._why()
        if why is None:
            return
        command = [sys.executable, "-m", "node.cli", "round", "--if-due", "--json"]
        log.info("round started why=%s", why)
        environment = {**os.environ, "GROOVE_HOME": str(self._app.home)}
        try:
            code = await self._start(command, environment, self._begun)
        finally:
            self._worker, self._held = None, False
            self._note(None)
        if self.gave_way:
            self._size = -1  # its sessions may not have been counted
            log.info("round ended to give way")
            return
        self._ended(code)

    def _begun(self, pid: int) -> None:
        self._worker = pid
        self._note(Worker.of(pid))
        if not self._may():  # somebody came while it started
            self.hold()

    def _why(self) -> str | None:
        app, now = self._app, self._app.now()
        tries = self.tries()
        waits = tries.at + back_off_s(tries.failures) - now
        if not self._may() or not app.config.rounds.auto or not app.allows("capture"):
            return None
        # A clock that was set back ends no wait.
        if 0 < waits <= BACK_OFF_S_MAX or self._runs_elsewhere():
            return None
        if app.forests.open_round() is not None:
            return "one was begun and is not finished"
        last = app.forests.last_round()
        if last is not None:
            by_time = round_due(last.started, now, 0, app.config.rounds)
            if by_time is not None:
                return by_time
        return self._more(now)

    def _more(self, now: Instant) -> str | None:
        """Whether to have the sessions counted: there are more records, and it was a while ago."""
        size = self._app.corpus.size_bytes()
        if size == self._size or not size or 0 <= now - self._looked < LOOK_S:
            return None
        self._looked, self._size = now, size
        return "new records are counted"

    def _runs_elsewhere(self) -> bool:
        try:
            with self._app.lock("round", "a round is running"):
                return False
        except OwnerError:
            return True

    def tries(self) -> Tries:
        """What became of the last ones; nothing is known if the file is damaged."""
        try:
            return msgspec.json.decode((self._app.home / "rounds" / FILE).read_bytes(), type=Tries)
        except (OSError, msgspec.DecodeError, ValueError, RecursionError):
            return Tries()

    def _ended(self, code: int) -> None:
        failures = self.tries().failures + 1 if code else 0
        path = private_dir(self._app.home / "rounds") / FILE
        write_atomic(path, msgspec.json.encode(Tries(failures, self._app.now())))
        if code:
            minutes = back_off_s(failures) // 60
            self._tell(
                Told(
                    "round failed",
                    f"a round ended with code {code}; it is taken up again in {minutes:,} min; "
                    "`groove-node round` shows what is wrong",
                    {"code": code, "failures": failures},
                )
            )
