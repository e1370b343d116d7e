"""What is remembered outside the home of the consent store in it, so that an old one is recognised.

A backup that is restored brings back a consent that was withdrawn since. The store cannot know; so
one small file in GROOVE_STATE, named by a hash of the store's path, holds the number and the hash
of the last receipt. A store with another last receipt counts as off until the owner is asked again:
an older one, one that was moved here, one that was edited, and any store if the file is missing.

A decision changes two places, and a crash may come between any two steps:

    1  note     {last: hash N, next: hash N+1, stands}   replaced whole, fsync
    2  commit   receipt N+1 in the store, synchronous=FULL
    3  settle   {last: hash N+1}                         replaced whole, fsync

- Before 1, and after 3, file and store agree.
- Between 1 and 2 the store ends at N. If N was in step and the decision only adds, N `stands`:
  nobody was told of N+1 yet, and all that N allows N+1 allows too. If it takes something away,
  everything is off until the owner is asked: a withdrawal may not be lost.
- Between 2 and 3 the store ends at N+1, which the file names as next: N+1 stands.

The next opening settles what is certain. So no crash turns a consent on; one in the middle of a
withdrawal turns the rest off as well, and `consent show` says so. A backup restored between a crash
and that opening brings back at worst the N that had stood until then. Writers take turns by a lock
on a file beside it. Readers take none: what looks out of step is looked at once more when no writer
is at work.

A file that cannot be written stops a grant. A withdrawal goes on: the old file is removed if that
can be done, and either way what the store holds no longer agrees with it, which is off.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec
from msgspec import Struct

from node.errors import OwnerError
from node.home import private_dir, remembered_path, sync_dir, write_atomic

log = logging.getLogger(__name__)

WAIT_S = 6.0  # for another writer, who himself waits five seconds for the store at most


class WitnessError(OwnerError):
    """Nothing can be written outside the home, so no consent can be given."""


class WitnessBusyError(OwnerError):
    """Another process is in the middle of a decision, and stays there."""


class Step(StrEnum):
    """How the store stands to what is remembered of it."""

    IN_STEP = "in step"
    UNKNOWN = "nothing is remembered of this home in GROOVE_STATE: it was moved, or that was lost"
    OTHER = "this is not the store that was written last"  # restored from a backup, or edited
    INTERRUPTED = "a change of consent was interrupted"
    EDITED = "a row was edited by hand: `groove-node consent receipts --verify` says which"


class Remembered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file. Hashes are of receipts, in hex; empty where there is none."""

    number: int = 0
    last: str = ""
    next: str = ""  # of a decision that is being written, or was when the process died
    stands: bool = False  # what came before `next` is in force until that is committed


class Witness:
    """The file of one store. Safe from several processes."""

    def __init__(self, store: Path) -> None:
        self._path = remembered_path(store, "consent")
        self.outdated = False  # the file tells of an older store, and could not be changed
        self._seen: tuple[tuple[int, ...], Remembered | None] | None = None

    def judge(self, head: str) -> Step:
        """Compare the last receipt of a store that has decisions. About 2 µs, one stat."""
        known = self._read()
        if known is None:
            return Step.UNKNOWN
        if not head:
            return Step.OTHER
        if head == known.next or (head == known.last and (not known.next or known.stands)):
            return Step.IN_STEP
        return Step.INTERRUPTED if head == known.last else Step.OTHER

    @property
    def folder(self) -> Path:
        return self._path.parent

    @property
    def number(self) -> int:
        """Of the last receipt that is remembered; 0 if there is none."""
        known = self._read()
        return known.number if known else 0

    def is_settled(self) -> bool:
        """False if a decision is being written, or was when its process died."""
        known = self._read()
        return known is None or not known.next

    def note(self, number: int, head: str, following: str, *, stands: bool, grants: bool) -> None:
        """Step 1. Raises WitnessError if the decision grants and the file cannot be written."""
        try:
            self._write(Remembered(number=number, last=head, next=following, stands=stands))
        except (OSError, OwnerError) as problem:
            if grants:
                raise WitnessError(
                    f"{self._path} cannot be written: {problem}",
                    unchanged="Nothing was granted. Without that file an old backup of the home "
                    "could bring back a consent that was withdrawn.",
                    next_step="Mend the folder, or name another one in GROOVE_STATE.",
                ) from None
            log.warning("withdrawal not noted outside the home reason=%s", type(problem).__name__)
            self._forget()

    def settle(self, number: int, head: str) -> None:
        """Step 3, or step 1 taken back. A failure leaves what is right, but less exact."""
        try:
            self._write(Remembered(number=number, last=head))
        except (OSError, OwnerError) as problem:
            log.warning("consent not settled outside the home reason=%s", type(problem).__name__)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only writer. Where there can be no lock, go on without: no grant is written there.

        Raises WitnessBusyError if another writer does not end.
        """
        try:
            private_dir(self._path.parent)
            lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except (OSError, OwnerError):
            yield
            return
        try:
            self._wait_for(lock)
            self._seen = None  # a clock tick may hide a change, and here it must be seen
            yield
        finally:
            os.close(lock)

    def _wait_for(self, lock: int) -> None:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise WitnessBusyError(
                        f"another process has been changing consent for more than {WAIT_S:g} s",
                        unchanged="Nothing was changed.",
                        next_step="Let it go on or end it, and run the command again.",
                    ) from None
            time.sleep(0.005)

    def _read(self) -> Remembered | None:
        """The file, read again only when it was replaced; None if missing or damaged."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - half the time of Path.stat, on every call
        except OSError:
            return None
        mark = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        seen = self._seen  # another thread may replace it meanwhile
        if seen is None or seen[0] != mark:
            try:
                known = msgspec.json.decode(self._path.read_bytes(), type=Remembered)
            except (OSError, msgspec.DecodeError) as problem:
                log.warning("damaged file=%s reason=%s", self._path, type(problem).__name__)
                known = None
            self._seen = seen = (mark, known)
        return seen[1]

    def _write(self, remembered: Remembered) -> None:
        private_dir(self._path.parent)
        write_atomic(self._path, msgspec.json.encode(remembered) + b"\n")
        self._seen = None
        self.outdated = False

    def _forget(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
            sync_dir(self._path.parent)
        except OSError as problem:
            self.outdated = True
            log.warning("old file stays file=%s reason=%s", self._path, problem.strerror)
