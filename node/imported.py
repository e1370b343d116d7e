"""What became of an import, and how its owner is told."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .history import SOON_DAYS
from .show import counted, terms_lines

if TYPE_CHECKING:
    from .capture.sources.importing import ImportResult
    from .capture.sources.source import ParseCounts

FOLDERS_SHOWN = 10
FILES_SHOWN = 5


@dataclass(slots=True)
class Imported:
    """The counts of one import. `folders` and `files` are for the terminal alone: names of both
    are written nowhere.
    """

    source: str
    added: int = 0
    grown: int = 0
    records: int = 0
    known: int = 0
    not_allowed: int = 0
    refused: int = 0
    scrubbed: int = 0
    malformed: int = 0
    unreadable: int = 0
    strangers: int = 0  # files in a named folder that are no transcripts of the source
    expiring: int = 0
    open_answers: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    untrainable: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter, repr=False)
    files: list[str] = field(default_factory=list, repr=False)  # that were not read, and why
    lines: list[str] = field(default_factory=list)  # that hold no session, and why

    def add(self, result: ImportResult) -> None:
        self.added += result.added
        self.grown += result.grown
        self.records += result.records
        self.known += result.skipped_known
        self.not_allowed += result.not_allowed
        self.refused += result.refused
        self.scrubbed += result.scrubbed
        self.dropped.update(result.dropped)
        self.folders.update(result.folders)
        self.untrainable.update(result.untrainable)

    def parsed(self, counts: ParseCounts) -> None:
        self.malformed += counts.malformed
        self.left_out.update(counts.left_out)
        self.unknown.update(counts.unknown)

    def lines_without_session(self, file: str, places: Iterable[tuple[int, str]]) -> None:
        self.lines += [f"{file} line {number}: {reason}" for number, reason in places]

    def as_json(self) -> dict[str, Any]:
        return {
            "added": self.added,
            "grown": self.grown,
            "records": self.records,
            "skipped_known": self.known,
            "not_allowed": self.not_allowed,
            "not_allowed_folders": len(self.folders),
            "refused": self.refused,
            "scrubbed": self.scrubbed,
            "dropped": self.dropped.total(),
            "dropped_by_reason": dict(self.dropped),
            "left_out": dict(self.left_out),
            "unknown": dict(self.unknown),
            "untrainable": dict(self.untrainable),
            "malformed": self.malformed,
            "unreadable": self.unreadable,
            "not_transcripts": self.strangers,
            "open_answers": self.open_answers,
            "expiring": self.expiring,
        }

    def facts(self) -> list[tuple[str, str]]:
        """The closing table: what is always told, and what there is to tell besides.

        What a parser left out it counts as it reads, before anybody asks for dates or parts: so
        those rows say that they are of the files.
        """
        facts = [
            ("sessions added", f"{self.added:,}"),
            ("records", f"{self.records:,}"),
            ("known already", f"{self.known:,}"),
        ]
        more = [
            ("sessions that went on", self.grown),
            ("last answers still open", self.open_answers),
            ("values scrubbed", self.scrubbed),
            ("left out: folder not allowed", self.not_allowed),
            ("left out: consent ended", self.refused),
            *((f"dropped: {reason}", count) for reason, count in self.dropped.most_common()),
            *((f"in the files, left out: {k}", n) for k, n in self.left_out.most_common()),
            *((f"in the files, unknown kind: {k}", n) for k, n in self.unknown.most_common(10)),
            ("lines without a session" if self.lines else "malformed lines", self.malformed),
            ("files that could not be read", self.unreadable),
            ("files that are no transcripts", self.strangers),
        ]
        return facts + [(name, f"{count:,}") for name, count in more if count]

    def folder_rows(self) -> list[tuple[str, str]]:
        """The folders whose sessions were left out, most sessions first."""
        top = self.folders.most_common(FOLDERS_SHOWN)
        return [(shown(name), f"{count:,}") for name, count in top]

    def notes(self, *, restricted_outputs: bool) -> list[str]:
        """What the owner may want to know or do about it."""
        notes = [shown(line) for line in self.lines[:FILES_SHOWN]]
        notes += [shown(problem) for problem in self.files[:FILES_SHOWN]]
        if self.open_answers:
            notes.append(
                f"{counted(self.open_answers, 'answer')} still open: what may still be growing is "
                "taken in once it is whole, by another import or by `groove-node run`"
            )
        if self.folders:
            folder = shown(shlex.quote(self.folders.most_common(1)[0][0]))
            notes.append(
                f"{counted(len(self.folders), 'folder')} not allowed; to allow one: `groove-node "
                f"consent grant capture --source {self.source} --folder {folder}`"
            )
        if self.expiring:
            notes.append(
                f"{self.source} deletes {counted(self.expiring, 'transcript')} within "
                f"{SOON_DAYS} days; what was imported stays"
            )
        if self.unknown:
            notes.append("the format has changed: the unknown kinds were counted and skipped")
        if not restricted_outputs:
            notes += terms_lines(self.added, self.untrainable)
        return notes


def shown(name: str) -> str:
    """A name of a file or folder without what a terminal would obey."""
    return name if name.isprintable() else ascii(name)
