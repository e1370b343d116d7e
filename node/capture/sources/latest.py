"""The newest asks of the owner's own history, for the preview that consent is asked with.

Nothing is stored, and little is read: the ends of a few files, newest first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.capture.record import ContentType
from node.home import dated

from .source import SourceError, SourceSession, TranscriptFormat, Turn

log = logging.getLogger(__name__)

FILES_MAX = 96  # looked into at most, over all formats; for a handful of asks a few do
BUDGETS = (2**18, 2**22)  # bytes of a file's end; more only if the first hold no ask


@dataclass(frozen=True, slots=True)
class Sample:
    """One ask as the owner wrote it, unscrubbed: to be shown after scrubbing, never kept."""

    source: str
    folder: str | None
    text: str = field(repr=False)
    answer: str = field(default="", repr=False)  # all that was said until the next ask
    folders: tuple[str, ...] = ()  # all that the session was in


Wanted = Callable[[str, tuple[str, ...]], bool]  # of a source and the folders of a session


def latest_asks(
    formats: Sequence[TranscriptFormat], limit: int, wanted: Wanted = lambda source, folders: True
) -> list[Sample]:
    """Return up to `limit` asks, newest first, no text twice; never raises.

    A history that cannot be read has no asks. Of one that is long, what is wanted and older than
    the newest FILES_MAX files is not found.
    """
    dated: list[tuple[float, Sample]] = []
    for changed, path, source in _newest(formats):
        # Asks are no younger than their file: the rest are older than what there is.
        if len(dated) >= limit > 0 and sorted(dated, key=_date)[-limit][0] > changed:
            break
        dated += [each for each in _asks(source, path, changed) if _is(each[1], wanted)]
    unique: dict[str, Sample] = {}
    for _, sample in sorted(dated, key=_date, reverse=True):
        unique.setdefault(sample.text, sample)
    return list(unique.values())[: max(0, limit)]


def _is(sample: Sample, wanted: Wanted) -> bool:
    return wanted(sample.source, sample.folders)


def _date(dated: tuple[float, Sample]) -> float:
    return dated[0]


def _newest(formats: Sequence[TranscriptFormat]) -> list[tuple[float, Path, TranscriptFormat]]:
    found: list[tuple[float, Path, TranscriptFormat]] = []
    for source in formats:
        for root in source.roots():
            found += ((changed, path, source) for changed, path in dated(source.files(root)))
    return sorted(found, key=lambda entry: entry[0], reverse=True)[:FILES_MAX]


def _asks(source: TranscriptFormat, path: Path, changed: float) -> list[tuple[float, Sample]]:
    """The asks at a file's end, each with its time; the file's own where it tells none."""
    for budget in BUDGETS:
        try:
            reading = source.read(path, source.recent(path, budget))
        except SourceError as problem:
            log.info("no preview source=%s reason=%s", source.name, problem.reason)
            return []
        except Exception as problem:  # a parser's fault in one file is no reason not to ask
            log.warning("no preview source=%s reason=%s", source.name, type(problem).__name__)
            return []
        asks = [
            (
                ask.timestamp or changed,
                Sample(source.name, session.folder, ask.text, answer, session.folders),
            )
            for session in reading.sessions
            for ask, answer in _answered(session)
        ]
        if asks:
            return asks
    return []


def _answered(session: SourceSession) -> list[tuple[Turn, str]]:
    """Each ask of a session, and what was said until the next."""
    asks: list[tuple[Turn, list[str]]] = []
    for turn in session.turns:
        if turn.kind is ContentType.PROMPT:
            asks.append((turn, []))
        elif turn.kind is ContentType.COMPLETION and asks:
            asks[-1][1].append(turn.text)
    return [(ask, "\n\n".join(said)) for ask, said in asks]
