"""What the fault tests share: a process that dies at its n-th step towards the disk."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.capture import ScrubError

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "link", "ftruncate")


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a kill does not lose what was not synced anyway."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


class Tripwire:
    """Counts steps towards the disk, and kills this process before the n-th of them."""

    def __init__(self, die_at: int) -> None:
        self._die_at = die_at
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def lay(self) -> None:
        """From here on every step counts: syscalls of `os`, and what SQLite writes or commits."""
        for name in STEPS:
            setattr(os, name, self._counted(getattr(os, name)))
        connect, wire = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # type: ignore[override]
                word = sql.split(maxsplit=1)[0].upper()
                alone = word in ("INSERT", "UPDATE", "DELETE", "VACUUM") and not self.in_transaction
                if alone or word == "COMMIT" or "wal_checkpoint" in sql:
                    wire.step()
                return super().execute(sql, *args)

        def counted(*args: Any, **how: Any) -> sqlite3.Connection:
            return connect(*args, **{**how, "factory": Connection})

        sqlite3.connect = counted  # type: ignore[assignment]

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **how: Any) -> Any:
            self.step()
            return call(*args, **how)

        return counted


def steps_of(action: Callable[[], object]) -> int:
    """How many steps an action takes, in a process of its own that is not killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        wire = Tripwire(0)
        _run(action, wire, lambda: os.write(write, str(wire.steps).encode()))
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as told:
        counted = told.read()
    assert os.waitstatus_to_exitcode(status) == 0, "the action failed in its process"
    return int(counted)


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Run an action in a process that dies before its n-th step; False if it had fewer."""
    child = os.fork()
    if child == 0:
        _run(action, Tripwire(step), lambda: None)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"step {step}: the process ended with {code}"
    return code != 0


def _run(action: Callable[[], object], wire: Tripwire, then: Callable[[], object]) -> None:
    """The child's whole life; it never returns into the test."""
    try:
        wire.lay()
        action()
        then()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


class Stricter:
    """The scrubber of tomorrow: it knows one name more, and cannot clean one text."""

    def scrub(self, text: str) -> str:
        if "hopeless" in text:
            raise ScrubError("no fixpoint")
        return text.replace("Rumpelstiltskin", "[EMAIL]")

    def scrub_value(self, value: object) -> object:
        if isinstance(value, str):
            return self.scrub(value)
        if isinstance(value, dict):
            return {key: self.scrub_value(each) for key, each in value.items()}
        return [self.scrub_value(each) for each in value] if isinstance(value, list) else value
