"""The newest asks of the owner's own history, for the preview that consent is asked with.

Nothing is stored, and little is read: the ends of a few files, newest first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.capture.record import ContentType

from .source import SourceError, TranscriptFormat

log = logging.getLogger(__name__)

FILES_MAX = 24  # looked into, over all formats; enough for a handful of asks
BUDGETS = (2**18, 2**22)  # bytes of a file's end; more only if the first hold no ask


@dataclass(frozen=True, slots=True)
class Sample:
    """One ask as the owner wrote it, unscrubbed: to be shown after scrubbing, never kept."""

    source: str
    folder: str | None
    text: str = field(repr=False)


def latest_asks(formats: Sequence[TranscriptFormat], limit: int) -> list[Sample]:
    """Return up to `limit` asks, newest first, no text twice; never raises.

    A history that cannot be read has no asks.
    """
    dated: list[tuple[float, Sample]] = []
    for changed, path, source in _newest(formats):
        # Asks are no younger than their file: the rest are older than what there is.
        if len(dated) >= limit > 0 and sorted(dated, key=_date)[-limit][0] > changed:
            break
        dated += _asks(source, path, changed)
    unique: dict[str, Sample] = {}
    for _, sample in sorted(dated, key=_date, reverse=True):
        unique.setdefault(sample.text, sample)
    return list(unique.values())[: max(0, limit)]


def _date(dated: tuple[float, Sample]) -> float:
    return dated[0]


def _newest(formats: Sequence[TranscriptFormat]) -> list[tuple[float, Path, TranscriptFormat]]:
    found: list[tuple[float, Path, TranscriptFormat]] = []
    for source in formats:
        for root in source.roots():
            for path in source.files(root):
                try:
                    found.append((path.stat().st_mtime, path, source))
                except OSError:
                    log.debug("transcript gone while listing file=%s", path)
    return sorted(found, key=lambda entry: entry[0], reverse=True)[:FILES_MAX]


def _asks(source: TranscriptFormat, path: Path, changed: float) -> list[tuple[float, Sample]]:
    """The asks at a file's end, each with its time; the file's own where it tells none."""
    for budget in BUDGETS:
        try:
            reading = source.read(path, source.recent(path, budget))
        except SourceError as problem:
            log.info("no preview file=%s reason=%s", path, problem.what)
            return []
        asks = [
            (turn.timestamp or changed, Sample(source.name, session.folder, turn.text))
            for session in reading.sessions
            for turn in session.turns
            if turn.kind is ContentType.PROMPT
        ]
        if asks:
            return asks
    return []
