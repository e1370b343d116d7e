"""A second opinion on scrubbed text: kingfisher's rules, written by others than the scrubber's.

Whoever wrote both would forget the same things in both. The scan runs in a child process that is
of limited memory and time, and that can open nothing once it holds its rules: no file, and no
connection over which a found key could be tried. Kingfisher's own validation is never called.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, TypeVar

import msgspec

from leaves.training import launch

from ..errors import OwnerError

T = TypeVar("T")

PACKAGE: Final = "kingfisher-secret-scanner"
SETTINGS: Final = 1  # of the worker; rises when what is found changes by our doing
LOAD_S = 120.0  # rules are compiled once and kept in the cache: 5 s, then 0.3 s
BATCH_S = 60.0
ONE_S = 10.0
BATCH_BYTES = 4 << 20
UNSCANNABLE = "unscannable"  # the rule of a text that the scan did not survive


class SecondScanError(OwnerError):
    """The second scan cannot be run, so that nothing may be trained or published."""


class Hello(msgspec.Struct, frozen=True):
    """The worker's first words: its rules are loaded and it can open nothing more."""

    rules: int


class Texts(msgspec.Struct, frozen=True):
    """An order to scan."""

    texts: tuple[bytes, ...]


class Found(msgspec.Struct, frozen=True):
    """The id of the first rule that found something in each text; empty where none did."""

    rules: tuple[str, ...]


@functools.cache
def rules_version() -> str:
    """What a scan was done by; empty if the scanner is not installed. Starts no process."""
    try:
        return f"kingfisher {importlib.metadata.version(PACKAGE)}/{SETTINGS}"
    except importlib.metadata.PackageNotFoundError:
        return ""


class SecondScan:
    """Scans texts in a child process, which is started by the first of them. Use as a context."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._worker: _Worker | None = None

    def __enter__(self) -> SecondScan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._end()

    def scan(self, texts: Sequence[str]) -> list[str]:
        """The rule that finds something in each text, or an empty string.

        A text that ends the worker, or takes it longer than ONE_S, is told as UNSCANNABLE.
        Raises SecondScanError if the scanner is missing or does not start.
        """
        blobs = [text.encode("utf-8", "replace") for text in texts]
        found: list[str] = []
        for batch in _batches(blobs):
            rules = self._ask(batch, BATCH_S)
            if rules is None:  # one of them is to blame, and the others must not suffer for it
                rules = tuple((self._ask((one,), ONE_S) or (UNSCANNABLE,))[0] for one in batch)
            found += rules
        return found

    def _ask(self, batch: tuple[bytes, ...], limit_s: float) -> tuple[str, ...] | None:
        """None if the worker did not survive the batch, or its time."""
        worker = self._worker = self._worker or _Worker(self._cache)
        rules = worker.ask(batch, limit_s)
        if rules is None:
            self._end()
        return rules

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


def _batches(blobs: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    batches: list[list[bytes]] = []
    size = BATCH_BYTES
    for blob in blobs:
        if size + len(blob) > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(blob)
        size += len(blob)
    return [tuple(batch) for batch in batches]


class _Worker:
    """One child process and the frames that go to it and come back."""

    def __init__(self, cache: Path) -> None:
        if not rules_version():
            raise SecondScanError(
                f"the package {PACKAGE} is not installed, so no text can be scanned a second time",
                unchanged="Nothing was trained or published.",
                next_step=f"Install it: `pip install {PACKAGE}`.",
            )
        self._process = subprocess.Popen(
            launch.command("node.capture.second_scan_worker", str(cache)),
            env=launch.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it could say something of a text
            start_new_session=True,
        )
        with self._time(LOAD_S):
            hello = self._answer(Hello)
        if hello is None:
            self.end()
            raise SecondScanError(
                f"the second scan did not start: exit {self._process.returncode}",
                unchanged="Nothing was trained or published.",
                next_step="`groove-node doctor` says whether its package is whole.",
            )

    def ask(self, batch: tuple[bytes, ...], limit_s: float) -> tuple[str, ...] | None:
        assert self._process.stdin is not None
        with self._time(limit_s):
            try:
                send(self._process.stdin, Texts(batch))
            except OSError:
                return None
            found = self._answer(Found)
        return found.rules if found is not None and len(found.rules) == len(batch) else None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _answer(self, kind: type[T]) -> T | None:
        assert self._process.stdout is not None
        try:
            return receive(self._process.stdout, kind)
        except (OSError, msgspec.MsgspecError):
            return None

    @contextlib.contextmanager
    def _time(self, limit_s: float) -> Iterator[None]:
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def send(pipe: IO[bytes], frame: msgspec.Struct) -> None:
    """Write one frame: its length in four bytes, then MessagePack."""
    blob = msgspec.msgpack.encode(frame)
    pipe.write(len(blob).to_bytes(4, "big") + blob)
    pipe.flush()


def receive(pipe: IO[bytes], kind: type[T]) -> T | None:
    """Read one frame; None at the end of the pipe."""
    head = pipe.read(4)
    if len(head) < 4:
        return None
    return msgspec.msgpack.decode(pipe.read(int.from_bytes(head, "big")), type=kind)
