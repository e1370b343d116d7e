"""Sources into the corpus, as `groove-node import` asks for it."""

from __future__ import annotations

import datetime
import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from leaves.ports import Progress, Report, silent

from .clock import Clock
from .consent import FOLDER_SOURCES, FREE_SOURCES
from .errors import MisuseError, OwnerError
from .history import expires_soon, transcripts
from .home import dated, groove_cache
from .imported import Imported, shown
from .tally import SourceCounts, Tally

if TYPE_CHECKING:
    from .app import App
    from .capture import TrainingDataIntake
    from .capture.sources.jsonl import JsonlSource
    from .capture.sources.source import SourceSession, TranscriptFormat

log = logging.getLogger(__name__)

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


def import_sessions(app: App, wanted: Wanted, report: Report = silent) -> Imported:
    """Bring what is wanted into the corpus. Raises OwnerError if it may not be or cannot be."""
    from .capture.sources.importing import Selection, parse_share
    from .capture.sources.importing import import_sessions as bring
    from .capture.sources.jsonl import JsonlSource
    from .capture.sources.pydoc import PydocSource

    try:
        selection = Selection(parse_share(wanted.share), parse_share(wanted.part))
    except ValueError as problem:
        raise MisuseError(
            str(problem),
            unchanged="Nothing was imported.",
            next_step="`--share 0:1` or none is the whole source.",
        ) from None
    since = parse_since(wanted.since, app.clock)
    _check_allowed(app, wanted.source)
    done = Imported(wanted.source)
    sources: Sequence[PydocSource | JsonlSource | _Transcripts]
    match wanted.source:
        case "pydoc":
            sources = [PydocSource(_named(wanted), report)]
        case "jsonl":
            sources = [JsonlSource(path) for path in _jsonl_files(_named(wanted))]
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
        match each:
            case PydocSource():
                done.unreadable += each.unreadable
            case JsonlSource():
                _check_sessions(each)
                done.malformed += each.malformed
                done.lines_without_session(each.name, each.places)
            case _Transcripts():
                pass  # counted as they were read
    if not wanted.dry_run:
        _remember(app, wanted, done)
    return done


def intake_of(app: App) -> TrainingDataIntake:
    """The way into the home's corpus."""
    from .capture import DomainTagger, TrainingDataIntake
    from .capture.encoder_tag import configured

    return TrainingDataIntake(
        app.consent,
        app.corpus,
        app.scrubber,
        DomainTagger(),
        clock=app.clock,
        look_into=app.look_into,
        encoder=configured(app.config.encoder, groove_cache()),
    )


def parse_since(text: str, clock: Clock) -> float | None:
    """Unix seconds of "30d", "12h", "2w" ago or of "2026-11-01" in UTC; None of an empty text.

    Raises MisuseError of anything else, and of a day that is yet to come.
    """
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
    since = datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()
    if since > clock.now_s():
        raise MisuseError(
            f"{text} is in the future, in UTC",
            unchanged="Nothing was imported.",
            next_step="Give a day that has begun, or a duration back from now such as 30d.",
        )
    return since


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
        needs, such_as = (
            ("the names of packages", "networkx")
            if wanted.source == "pydoc"
            else ("files", "sessions.jsonl")
        )
        raise MisuseError(
            f"`import {wanted.source}` needs {needs}",
            unchanged="Nothing was imported.",
            next_step=f"For example `groove-node import {wanted.source} {such_as}`.",
        )
    return wanted.what


def _jsonl_files(names: Sequence[str]) -> list[Path]:
    from .capture.sources.jsonl import SOURCE
    from .capture.sources.kinds import kind_of

    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        _check_there(path)
        # A pipe is read once: it is not looked into.
        if path.is_file() and (kind := kind_of(path)) not in ("", SOURCE):
            raise _wrong_kind(SOURCE, path, kind)
    return paths


def _check_there(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as problem:
        name, why = shown(str(path)), getattr(problem, "strerror", None)
        gone = isinstance(problem, FileNotFoundError | NotADirectoryError | ValueError)
        raise SourceRefusedError(
            f"there is no file or folder {name}" if gone else f"{name} cannot be read: {why}",
            unchanged="Nothing was imported.",
            next_step="Check the name, and import again.",
        ) from None


def _check_sessions(source: JsonlSource) -> None:
    """Refuse a file of which no line holds a session: a wrong name, most likely."""
    if source.sessions or not source.malformed:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in source.problems.most_common())
    raise SourceRefusedError(
        f"no line of {shown(source.name)} holds a session: {reasons}",
        unchanged="Nothing of it was imported.",
        next_step="A line is one JSON object with `prompt` and `completion`, or with `messages`; "
        "`groove-node import --help` has the fields.",
    )


def _wrong_kind(source: str, path: Path, kind: str) -> SourceRefusedError:
    name = shown(str(path))
    what = f"{name} is no transcript of {source}" if source != "jsonl" else f"{name} holds no rows"
    like = f", but looks like one of {kind}" if kind else ""
    advice = (
        f"groove-node import {kind} {shlex.quote(name)}"
        if kind
        else f"`groove-node import {source}` alone finds what the tool keeps here."
    )
    return SourceRefusedError(what + like, unchanged="Nothing was imported.", next_step=advice)


class _Transcripts:
    """The sessions of a tool's files, those first that the tool deletes first."""

    def __init__(self, app: App, wanted: Wanted, done: Imported, report: Report) -> None:
        from .capture.sources.formats import formats

        every = {each.name: each for each in formats(tool_output=app.config.capture.tool_output)}
        self._app = app
        self._format = every[wanted.source]
        self._files = _files(self._format, wanted)
        self._chosen = bool(wanted.what)  # by the owner; else they are what the tool keeps
        self._done = done
        self._report = report
        days = self._format.expiry_days()
        done.expiring = sum(expires_soon(changed, days, app) for changed, _ in self._files)

    def __iter__(self) -> Iterator[SourceSession]:
        from .capture.sources.kinds import drifts
        from .capture.sources.source import SourceError

        idle_s, now = self._app.config.capture.idle_close_s, self._app.clock.now_s()
        phase, total = f"import {self._format.name}", len(self._files)
        for number, (changed, path) in enumerate(self._files):
            self._report(Progress(phase, number, total))
            over = now - changed > idle_s  # else it may still be going on
            try:
                reading = self._format.read(path, growing=not over)
            except SourceError as problem:
                self._done.unreadable += 1
                self._done.files.append(problem.what)
                continue
            except Exception as problem:  # a fault in one file's parsing must not stop the others
                reason = type(problem).__name__  # the message might quote a text
                log.warning("transcript not read source=%s reason=%s", self._format.name, reason)
                self._done.unreadable += 1
                self._done.files.append(f"{path} cannot be read: {reason}")
                continue
            if not all(map(self._allows, reading.sessions)):
                reading.counts.unknown.clear()  # a name may say what the folder is about
            if reading.counts.unknown and not drifts(self._format, path, reading):
                self._done.strangers += 1
                self._done.files.append(f"{path} is no transcript of {self._format.name}")
                continue
            self._done.parsed(reading.counts)
            self._done.open_answers += reading.open_answers
            for session in reading.sessions:
                yield replace(session, closed=session.closed and over)
        self._report(Progress(phase, total, total))
        if self._chosen and self._done.unreadable == total:
            raise SourceError(
                self._done.files[0],
                next_step="Check that the file is whole and yours to read, then import again.",
            )

    def _allows(self, session: SourceSession) -> bool:
        allowed = self._app.consent.allowed(self._app.user_id)
        return allowed.captures(self._format.name, *session.folders)


def _files(format_: TranscriptFormat, wanted: Wanted) -> list[tuple[float, Path]]:
    if not wanted.what:
        found = transcripts(format_)
    else:
        named: dict[Path, None] = {}
        for path in (Path(name).expanduser() for name in wanted.what):
            named.update(dict.fromkeys(_named_files(format_, path)))
        found = sorted(dated(named))
    if not found:
        where = f"in {', '.join(map(shown, wanted.what))}" if wanted.what else "here"
        raise SourceRefusedError(
            f"no transcripts of {format_.name} are {where}",
            unchanged="Nothing was imported.",
            next_step=f"Name files or folders: `groove-node import {format_.name} PATH`.",
        )
    return found


def _named_files(format_: TranscriptFormat, path: Path) -> list[Path]:
    """The transcripts that the owner means by a name. Raises SourceRefusedError."""
    from .capture.sources.kinds import is_stranger, kind_of

    _check_there(path)
    if path.is_dir():
        return [each for each in format_.files(path) if not is_stranger(format_, each)]
    if is_stranger(format_, path):
        raise _wrong_kind(format_.name, path, kind_of(path))
    return [path]


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
        untrainable=dict(done.untrainable),
    )
    try:
        Tally(app.home).add_source(wanted.source, counts)
    except OSError as problem:
        log.warning("counts not kept reason=%s", problem.strerror)
