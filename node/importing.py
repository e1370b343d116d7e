"""Sources into the corpus, as `groove-node import` asks for it."""

from __future__ import annotations

import datetime
import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaves.ports import Progress, Report, silent

from .clock import Clock
from .consent import FOLDER_SOURCES, FREE_SOURCES
from .errors import MisuseError, OwnerError
from .history import SOON_DAYS, dated, expires_soon, transcripts
from .show import counted
from .tally import SourceCounts, Tally

if TYPE_CHECKING:
    from .app import App
    from .capture import TrainingDataIntake
    from .capture.sources.importing import ImportResult
    from .capture.sources.source import ParseCounts, SourceSession, TranscriptFormat

log = logging.getLogger(__name__)

FOLDERS_SHOWN = 10
_UNITS_S = {"h": 3_600.0, "d": 86_400.0, "w": 7 * 86_400.0}


class SourceRefusedError(OwnerError):
    """The source is not allowed, or is not there."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the owner asks to have imported.

    share, part: which of the sessions, as "0.0:0.5" of the groups and of the sessions left.
    since: a date or a duration back from now; empty for all.
    """

    source: str
    what: Sequence[str] = ()
    share: str = "0:1"
    part: str = "0:1"
    since: str = ""
    dry_run: bool = False

    @property
    def whole(self) -> bool:
        """True if it is everything that a tool keeps."""
        return not self.what and not self.since and self.share == self.part == "0:1"


@dataclass(slots=True)
class Imported:
    """What became of it. `folders` are for the terminal alone: they are written nowhere."""

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
    expiring: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter, repr=False)

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

    def parsed(self, counts: ParseCounts) -> None:
        self.malformed += counts.malformed
        self.left_out.update(counts.left_out)
        self.unknown.update(counts.unknown)

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
            "malformed": self.malformed,
            "unreadable": self.unreadable,
            "expiring": self.expiring,
        }

    def facts(self) -> list[tuple[str, str]]:
        """The closing table: what is always told, and what there is to tell besides."""
        facts = [
            ("sessions added", f"{self.added:,}"),
            ("records", f"{self.records:,}"),
            ("known already", f"{self.known:,}"),
        ]
        more = [
            ("sessions that went on", self.grown),
            ("values scrubbed", self.scrubbed),
            ("left out: folder not allowed", self.not_allowed),
            ("left out: consent ended", self.refused),
            *((f"left out: {kind}", count) for kind, count in self.left_out.most_common()),
            *((f"dropped: {reason}", count) for reason, count in self.dropped.most_common()),
            *((f"unknown kind: {name}", count) for name, count in self.unknown.most_common(10)),
            ("malformed lines", self.malformed),
            ("unreadable files", self.unreadable),
        ]
        return facts + [(name, f"{count:,}") for name, count in more if count]

    def folder_rows(self) -> list[tuple[str, str]]:
        """The folders whose sessions were left out, most sessions first."""
        top = self.folders.most_common(FOLDERS_SHOWN)
        return [(_shown(name), f"{count:,}") for name, count in top]

    def notes(self) -> list[str]:
        """What the owner may want to do about it."""
        notes = []
        if self.folders:
            folder = _shown(shlex.quote(self.folders.most_common(1)[0][0]))
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
        return notes


def import_sessions(app: App, wanted: Wanted, report: Report = silent) -> Imported:
    """Bring what is wanted into the corpus. Raises OwnerError if it may not be or cannot be."""
    from .capture.sources.importing import Selection, parse_share
    from .capture.sources.importing import import_sessions as bring
    from .capture.sources.jsonl import JsonlSource
    from .capture.sources.pydoc import PydocSource

    try:
        selection = Selection(parse_share(wanted.share), parse_share(wanted.part))
    except ValueError as problem:
        raise MisuseError(f"{problem}; nothing was imported") from None
    since = parse_since(wanted.since, app.clock)
    _check_allowed(app, wanted.source)
    done = Imported(wanted.source)
    sources: list[Iterable[SourceSession]]
    match wanted.source:
        case "pydoc":
            sources = [PydocSource(_named(wanted), report)]
        case "jsonl":
            sources = [JsonlSource(Path(path)) for path in _named(wanted)]
        case _:
            sources = [_Transcripts(app, wanted, done, report)]
            report = silent  # the files are counted, not the sessions
    for each in sources:
        result = bring(
            each,
            intake_of(app),
            app.user_id,
            wanted.source,
            select=selection,
            since=since,
            report=report,
            dry_run=wanted.dry_run,
        )
        done.add(result)
        done.malformed += getattr(each, "malformed", 0)
        done.unreadable += getattr(each, "unreadable", 0)
    if not wanted.dry_run:
        _remember(app, wanted, done)
    return done


def _shown(name: str) -> str:
    """A folder's name without what a terminal would obey."""
    return name if name.isprintable() else ascii(name)


def intake_of(app: App) -> TrainingDataIntake:
    """The way into the home's corpus."""
    from .capture import DomainTagger, TrainingDataIntake

    return TrainingDataIntake(
        app.consent, app.corpus, app.scrubber, DomainTagger(), clock=app.clock
    )


def parse_since(text: str, clock: Clock) -> float | None:
    """Unix seconds of "30d", "12h", "2w" ago or of "2026-11-01" in UTC; None of an empty text."""
    if not text:
        return None
    if found := re.fullmatch(r"(\d{1,5})([hdw])", text):
        return clock.now_s() - int(found[1]) * _UNITS_S[found[2]]
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise MisuseError(
            f"{text!r} is no time; expected one like 30d, 12h, 2w or 2026-11-01",
            unchanged="Nothing was imported.",
        ) from None
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()


def grant_command(source: str) -> str:
    """What the owner types to allow a source."""
    if source in FREE_SOURCES:
        return "groove-node consent grant capture"
    folder = " --folder DIR" if source in FOLDER_SOURCES else ""
    return f"groove-node consent grant capture --source {source}{folder}"


def _check_allowed(app: App, source: str) -> None:
    if not app.allows("capture"):
        what = "scope 'capture' is not granted"
    elif source not in FREE_SOURCES and source not in app.consent.allowed_sources(app.user_id):
        what = f"the source {source} is not allowed"
    else:
        return
    raise SourceRefusedError(what, unchanged="Nothing was read.", next_step=grant_command(source))


def _named(wanted: Wanted) -> Sequence[str]:
    if not wanted.what:
        needs = "package names" if wanted.source == "pydoc" else "files"
        raise MisuseError(f"`import {wanted.source}` needs {needs}; nothing was imported")
    return wanted.what


class _Transcripts:
    """The sessions of a tool's files, those first that the tool deletes first."""

    def __init__(self, app: App, wanted: Wanted, done: Imported, report: Report) -> None:
        from .capture.sources.source import formats

        every = {each.name: each for each in formats(tool_output=app.config.capture.tool_output)}
        self._app = app
        self._format = every[wanted.source]
        self._files = _files(self._format, wanted)
        self._done = done
        self._report = report
        days = self._format.expiry_days()
        done.expiring = sum(expires_soon(changed, days, app) for changed, _ in self._files)

    def __iter__(self) -> Iterator[SourceSession]:
        from .capture.sources.source import SourceError

        idle_s, now = self._app.config.capture.idle_close_s, self._app.clock.now_s()
        phase, total = f"import {self._format.name}", len(self._files)
        for number, (changed, path) in enumerate(self._files):
            self._report(Progress(phase, number, total))
            over = now - changed > idle_s  # else it may still be going on
            try:
                reading = self._format.read(path, growing=not over)
            except SourceError as problem:
                log.warning("transcript not read source=%s: %s", self._format.name, problem.what)
                self._done.unreadable += 1
                continue
            self._done.parsed(reading.counts)
            for session in reading.sessions:
                yield replace(session, closed=session.closed and over)
        self._report(Progress(phase, total, total))


def _files(format_: TranscriptFormat, wanted: Wanted) -> list[tuple[float, Path]]:
    if not wanted.what:
        found = transcripts(format_)
    else:
        named: list[Path] = []
        for each in map(Path, wanted.what):
            named += format_.files(each) if each.is_dir() else [each]
        found = sorted(dated(named))
    if not found:
        raise SourceRefusedError(
            f"no transcripts of {format_.name} are here",
            unchanged="Nothing was imported.",
            next_step=f"Name files or folders: `groove-node import {format_.name} PATH`.",
        )
    return found


def _remember(app: App, wanted: Wanted, done: Imported) -> None:
    """Keep the counts for `status`; they are worth no failure of an import that is done."""
    now = app.clock.now_s()
    counts = SourceCounts(
        sessions=done.added,
        records=done.records,
        last=now if done.records else 0.0,
        imported=now if wanted.whole else 0.0,
        malformed=done.malformed,
        dropped=dict(done.dropped),
        left_out=dict(done.left_out),
        unknown=dict(done.unknown),
    )
    try:
        Tally(app.home).add_source(wanted.source, counts)
    except OSError as problem:
        log.warning("counts not kept reason=%s", problem.strerror)
