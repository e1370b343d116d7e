"""The routing tables on disk: the one in force, and those that can be gone back to.

A table and what is known of it (since when, why, how it did on replay) are one file, so neither is
ever without the other. `current` names the one in force and is replaced by rename: a reader never
sees half a table, and a crash between any two writes leaves one in force.
"""

from __future__ import annotations

import fcntl
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from leaves.model import LeafId
from router.table import MAGIC_1, Table

from .errors import OwnerError
from .home import private_dir, write_atomic

log = logging.getLogger(__name__)

KEPT = 10  # tables that a round or the owner put in force
MAGIC = b"groove-routing/1\n"
NOTE_BYTES_MAX = 16 << 20
READS_MAX = 10  # of `current`, by one who meets a swap each time
_FILE = re.compile(r"table-(\d{8})\.bin")
_HEAD = struct.Struct("<II")


class RoutingError(OwnerError):
    """There is no routing table that can be used."""


class Kind(StrEnum):
    """How a table came to be."""

    BEGUN = "begun"  # the starters of the first minute
    ROUND = "round"
    FOLLOWED = "followed"  # the one before it, after a change of what may be routed to
    RESTORED = "restored"  # by the owner
    REFUSED = "refused"  # never in force: it did worse on replay, or another was pinned


class Starters(StrEnum):
    """What has become of the starters."""

    UNSET = "unset"  # nobody has looked yet
    SERVING = "serving"  # alone, or below the leaves that grew from sessions
    GONE = "gone"  # those leaves took over


class Note(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a table, beside itself. Holds names and figures, no text of a session."""

    at: int  # when it was made, Unix seconds
    kind: Kind
    why: str
    leaves: int = 0  # own and foreign ones, without starters and branches
    starters: Starters = Starters.UNSET
    accuracy: float | None = None  # of replayed sessions, those routed to where they belong
    replayed: int = 0
    replay: dict[str, Any] = {}  # all figures of the replay
    transition: dict[str, Any] = {}  # the coverage report, while starters are there
    votes: dict[LeafId, tuple[int, int]] = {}  # sessions routed to a leaf: that went well, badly
    pinned: bool = False  # rounds leave it in force
    held: bool = False  # leaves that it lacks wait for a round that judges them
    held_because: str = ""  # to read: the owner restored it, or why a round left it in force


@dataclass(frozen=True, slots=True)
class Kept:
    """One table of those on disk."""

    number: int
    note: Note
    table: Table


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a round put in force, or kept there. figures: for the round's journal."""

    entries: int
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One table as a list of them shows it. note: None if the file is damaged."""

    number: int
    note: Note | None
    in_force: bool


class Tables:
    """The routing tables of one home. What writes does so in its `turn`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = private_dir(home / "router")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This process's turn to replace the table by one that it builds from what it reads now.

        Without it, a round that read the leaves before one was retracted could put it back. It
        cannot be taken twice.
        """
        with (self._home / "router.lock").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def put(self, table: Table, note: Note) -> int:
        """Put a table in force and return its number.

        If it is in force already, only what is known of it changes, and since when stands.
        """
        private_dir(self._folder)  # a deletion may have removed it
        data = table.to_bytes()
        with suppress(OSError, ValueError):  # a damaged one is replaced
            number = self._in_force()
            before, same = self._file(number) if number is not None else (note, b"")
            if number is not None and same == data:
                kept = msgspec.structs.replace(note, at=before.at, kind=before.kind, why=before.why)
                if kept != before:
                    write_atomic(self._path(number), _packed(kept, data))
                return number
        number = self._written(note, data)
        write_atomic(self._folder / "current", self._path(number).name.encode())
        self._prune()
        return number

    def refuse(self, table: Table, note: Note) -> int:
        """Keep a table that is not put in force, so that the owner can; the last one alone."""
        assert note.kind is Kind.REFUSED
        number = self._written(note, table.to_bytes())
        self._prune()
        return number

    def amend(self, number: int, note: Note) -> None:
        """Change what is known of a table."""
        write_atomic(self._path(number), _packed(note, self._file(number)[1]))

    def load(self) -> Table | None:
        """The table in force; None before there is any. Raises RoutingError if it is damaged."""
        current = self.current()
        return current.table if current else None

    def current(self) -> Kept | None:
        """The table in force with its note; otherwise as `load`."""
        try:
            for _ in range(READS_MAX):
                number = self._in_force()
                if number is None:
                    return None
                with suppress(FileNotFoundError):  # swapped and removed between the two reads
                    note, data = self._file(number)
                    return Kept(number, note, Table.from_bytes(data))
            raise FileNotFoundError(f"the file of table {number} is missing")
        except (OSError, ValueError) as problem:
            raise RoutingError(
                f"the routing table in {self._folder}: {problem}",
                unchanged="Prompts are answered by the chassis until then.",
                next_step="Run `groove-node round`: it builds a new table.",
            ) from None

    def sound(self) -> Kept | None:
        """The table in force; None also if it is damaged, for a new one is about to be built."""
        try:
            return self.current()
        except RoutingError as problem:
            log.warning("routing table not read reason=%s", problem)
            return None

    def load_sound(self) -> Table | None:
        current = self.sound()
        return current.table if current else None

    def read(self, number: int) -> Kept:
        """One of the kept tables. Raises RoutingError."""
        try:
            note, data = self._file(number)
            return Kept(number, note, Table.from_bytes(data))
        except FileNotFoundError:
            what = f"there is no routing table {number} among those that are kept"
        except (OSError, ValueError) as problem:
            what = f"routing table {number}: {problem}"
        raise RoutingError(
            what,
            unchanged="The table in force is as it was.",
            next_step="`groove-node route --history` lists the tables.",
        )

    def history(self) -> list[Row]:
        """All kept tables, the newest first."""
        current: int | None = None
        with suppress(OSError, ValueError):  # whatever is in force, the others are listed
            current = self._in_force()
        rows = []
        for number in sorted(self._numbers(), reverse=True):
            note: Note | None = None
            try:
                note = self._note(number)
            except FileNotFoundError:  # removed meanwhile
                continue
            except (OSError, ValueError) as problem:
                log.warning("routing table not read number=%d reason=%s", number, problem)
            rows.append(Row(number, note, number == current))
        return rows

    def _in_force(self) -> int | None:
        path = self._folder / "current"
        if not path.exists():
            return None
        named = path.read_text().strip()
        match = _FILE.fullmatch(named)
        if match is None:
            raise ValueError(f"`current` names {named!r:.80}, not a file like table-00000001.bin")
        return int(match[1])

    def _written(self, note: Note, data: bytes) -> int:
        """Write a table under the next number; or under that of the newest file, if that holds the
        very same: it is of a swap that was killed, or of one that is refused again."""
        numbers = self._numbers()
        newest = max(numbers, default=0)
        number = newest + 1
        with suppress(OSError, ValueError):
            if newest and newest != self._in_force() and self._file(newest)[1] == data:
                number = newest
        write_atomic(self._path(number), _packed(note, data))
        return number

    def _prune(self) -> None:
        """Remove all but the one in force, the last ten that rounds and the owner put there, and
        the one refused last. Steps between them, of which a night of the mesh makes many, go."""
        room = {Kind.FOLLOWED: 0, Kind.REFUSED: 1}
        lasting = KEPT
        for row in self.history():
            kind = row.note.kind if row.note else None
            if row.in_force:
                lasting -= kind not in room
            elif kind in room and room[kind] > 0:
                room[kind] -= 1
            elif kind is not None and kind not in room and lasting > 0:
                lasting -= 1
            else:
                self._path(row.number).unlink(missing_ok=True)
        for torn in self._folder.glob(".*.tmp"):  # of a writer that was killed: it is our turn
            torn.unlink(missing_ok=True)

    def _note(self, number: int) -> Note:
        with self._path(number).open("rb") as file:
            head = file.read(len(MAGIC) + _HEAD.size)
            length = _HEAD.unpack(head[-_HEAD.size :])[0] if len(head) > _HEAD.size else 0
            rest = file.read(min(length, NOTE_BYTES_MAX))
            return _unpacked(head + rest, self._path(number))[0]

    def _file(self, number: int) -> tuple[Note, bytes]:
        path = self._path(number)
        return _unpacked(path.read_bytes(), path)

    def _path(self, number: int) -> Path:
        return self._folder / f"table-{number:08d}.bin"

    def _numbers(self) -> list[int]:
        if not self._folder.exists():
            return []
        found = (_FILE.fullmatch(path.name) for path in self._folder.iterdir())
        return [int(match[1]) for match in found if match]


def _packed(note: Note, data: bytes) -> bytes:
    encoded = msgspec.json.encode(note)
    return MAGIC + _HEAD.pack(len(encoded), zlib.crc32(encoded)) + encoded + data


def _unpacked(file: bytes, path: Path) -> tuple[Note, bytes]:
    """Raises ValueError, also for a torn file; the table's own checksum is `from_bytes`'."""
    if file.startswith(MAGIC_1):  # bare, as it was before anything was kept beside it
        at = int(path.stat().st_mtime)
        return Note(at=at, kind=Kind.ROUND, why="of an older groove-node"), file
    start = len(MAGIC) + _HEAD.size
    if not file.startswith(MAGIC) or len(file) < start:
        raise ValueError("not a routing table of this node")
    length, checksum = _HEAD.unpack(file[len(MAGIC) : start])
    encoded = file[start : start + length]
    if len(encoded) != length or zlib.crc32(encoded) != checksum:
        raise ValueError("its head is damaged: the checksum does not fit")
    try:
        return msgspec.json.decode(encoded, type=Note), file[start + length :]
    except msgspec.DecodeError as problem:
        raise ValueError(f"its head is not readable: {problem}") from None
