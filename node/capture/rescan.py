"""What is stored, through the scrubber of today: for rules improve, and owners add known values.

A file is scrubbed while others write to it, and only its changed lines are exchanged, in the
writer's turn, by one rename: a kill leaves a file as it was or clean, and a second run goes on.
Running it again changes nothing, because a scrubbed text is its own scrubbed text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from leaves.ports import Report, silent

from .corpus import TrainingCorpus
from .record import ContentType, TrainingRecord, decode_line, encode_line, read_lines
from .scrubber import SCRUB_RULES_VERSION, ScrubError
from .stats import reading

log = logging.getLogger(__name__)


class Scrubs(Protocol):
    """The scrubber, as far as it is needed here."""

    def scrub(self, text: str) -> str: ...
    def scrub_value(self, value: Any) -> Any: ...


@dataclass(slots=True)
class Rescanned:
    """What a rescan came to. `sessions`: those of which a record was changed or taken out."""

    records: int = 0
    changed: int = 0
    dropped: int = 0  # could not be made clean
    damaged: int = 0  # lines taken out, because nobody can say what is in them
    sessions: set[str] = field(default_factory=set)


def is_due(corpus: TrainingCorpus) -> bool:
    """True if something here went through older rules than those of today."""
    return corpus.rules_version != SCRUB_RULES_VERSION


def rescan(
    corpus: TrainingCorpus,
    scrubber: Scrubs,
    *,
    before: Callable[[Collection[str]], None] = lambda sessions: None,
    report: Report = silent,
) -> Rescanned:
    """Clean every file, and return what was done.

    before: told the sessions that a file's exchange will change, before it happens; what it writes
    survives a kill that the counts of this run do not. The caller then settles what was made of
    those sessions, and calls `corpus.rescanned`.
    """
    out = Rescanned()
    read = reading(corpus, "rescan", report)
    for path in corpus.files():
        changes, sessions = _changes(path, scrubber, out, read)
        if changes:
            out.sessions |= sessions
            before(out.sessions)
            corpus.replace_lines(path, changes)
    log.info("corpus rescanned changed=%d dropped=%d", out.changed, out.dropped)
    return out


def _changes(
    path: Path, scrubber: Scrubs, out: Rescanned, read: Callable[[int], None]
) -> tuple[dict[bytes, bytes | None], set[str]]:
    """The lines of a file that cannot stay, with what replaces them, and whose they are."""
    changes: dict[bytes, bytes | None] = {}
    sessions: set[str] = set()
    for _, line in read_lines(path, 0):
        read(len(line))
        record = decode_line(line)
        if record is None:
            changes[line] = None
            out.damaged += 1
            continue
        out.records += 1
        try:
            clean = scrubbed(record, scrubber)
        except ScrubError:
            clean = None
        if clean == record:
            continue
        changes[line] = encode_line(clean) if clean is not None else None
        sessions.add(record.session_id)
        out.changed += clean is not None
        out.dropped += clean is None
    return changes, sessions


def scrubbed(record: TrainingRecord, scrubber: Scrubs) -> TrainingRecord:
    """Return the record as today's intake would have kept it. Raises ScrubError."""
    return replace(
        record,
        content=_content(record, scrubber),
        metadata=scrubber.scrub_value(record.metadata),
        source_provider=scrubber.scrub(record.source_provider),
        source_model=scrubber.scrub(record.source_model),
    )


def _content(record: TrainingRecord, scrubber: Scrubs) -> str:
    """A conversation is scrubbed inside its JSON, as at intake, so that it stays JSON."""
    if record.content_type == ContentType.CONVERSATION:
        try:
            messages = json.loads(record.content)
        except ValueError:
            return scrubber.scrub(record.content)
        clean = scrubber.scrub_value(messages)
        if clean == messages:
            return record.content
        return json.dumps(clean, ensure_ascii=False)
    return scrubber.scrub(record.content)
