"""What a source of sessions is: the shape that every parser gives and every importer takes.

A source tells the same session the same way at every reading: keys never change, so that what was
taken in once is known again. Nothing here is scrubbed yet; no text is shown by `repr`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from node.capture.record import ContentType
from node.errors import OwnerError


class SourceError(OwnerError):
    """A source cannot be read. `reason` names no path, so it may stand in a log."""

    def __init__(
        self, what: str, *, unchanged: str = "", next_step: str = "", reason: str = ""
    ) -> None:
        super().__init__(what, unchanged=unchanged, next_step=next_step)
        self.reason = reason or type(self).__name__


@dataclass(frozen=True, slots=True)
class Turn:
    """One text of a session: an ask of the owner, or an answer to it."""

    key: str  # unique in its session
    kind: ContentType
    text: str = field(repr=False)
    timestamp: float | None = None  # Unix seconds; None: the time of import
    source_provider: str = ""
    source_model: str = ""
    terms_class: str = ""  # empty: by kind, provider and model
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    unique: bool = False  # the key is the tool's own, and no other turn of the source has it


@dataclass(frozen=True, slots=True)
class SourceSession:
    """One session as a source tells it: its turns in order, and how it went."""

    key: str  # unique in the source
    turns: tuple[Turn, ...]
    group: str = ""  # near-copies share it; empty if each session stands alone
    folders: tuple[str, ...] = ()  # all that it was in, absolute; consent must allow every one
    outcome: str = ""  # one of `node.capture.quality.Outcome`; empty if unknown
    quality: int | None = None  # 0 to 100 where the source itself states it; else by the outcome
    corrections: int = 0  # asks that correct the answer before
    errors: int = 0  # answers that failed, calls of tools that failed
    closed: bool = True  # False: it may go on, so no closing record is written
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> str | None:
        """The folder that it began in, to be shown."""
        return self.folders[0] if self.folders else None


@dataclass(slots=True)
class ParseCounts:
    """What a parser met. A kind of line that it does not know is counted, never fatal."""

    lines: int = 0
    malformed: int = 0  # lines that are no record at all
    unknown: Counter[str] = field(default_factory=Counter)  # kinds of record, by name
    left_out: Counter[str] = field(default_factory=Counter)  # tool output, injected context, …

    def add(self, other: ParseCounts) -> None:
        self.lines += other.lines
        self.malformed += other.malformed
        self.unknown.update(other.unknown)
        self.left_out.update(other.left_out)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reading of one file gave."""

    sessions: tuple[SourceSession, ...]
    position: int  # where to read on: just after the last whole line, or the last row of a table
    counts: ParseCounts
    open_answers: int = 0  # held back, as they may still be growing
    start: int = 0  # where it began; 0 also if the position that was asked for is not of this file


class TranscriptFormat(Protocol):
    """Files that a tool keeps of its own conversations."""

    @property
    def name(self) -> str:
        """What the owner calls it: claude-code, codex, llm."""
        ...

    def roots(self) -> list[Path]:
        """The folders or files that the tool writes here; those that exist."""
        ...

    def files(self, root: Path) -> Iterator[Path]:
        """The transcripts in a root or in any folder, at any depth, oldest change first.

        Sub-runs of others are left out; so are links to folders.
        """
        ...

    def read(self, path: Path, start: int = 0, *, growing: bool = False) -> Reading:
        """Read from a position on; 0 is the whole file. Raises SourceError if it cannot be read.

        From a later position the sessions hold only the turns that came after it, and what they
        tell of outcome, corrections and errors is of those turns: when a session closes, a
        reading of the whole file says how all of it went, and brings no turn twice.

        growing: the tool may be writing still. An answer that nothing proves finished is held
        back, with all that follows it, and the position stays before it; a key that was once
        given stands for a whole text. Parsers have no clock: they call every session closed, and
        whoever knows the file's age says otherwise with `dataclasses.replace`.
        """
        ...

    def recent(self, path: Path, budget: int) -> int:
        """Return a position from which a reading of about `budget` bytes gives the newest turns."""
        ...

    def expiry_days(self) -> int | None:
        """After how many days the tool deletes its transcripts; None if it keeps them."""
        ...
