"""Captures one session: its texts as they come, and at its end how it went."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from leaves.model import Stage
from node.clock import Clock, SystemClock
from node.consent import ConsentManager
from router.ports import ENCODED_CHARS

from . import quality
from .corpus import TrainingCorpus
from .encoder_tag import DEFAULT_ENCODER, EncoderTag
from .intake import API, Draft, TrainingDataIntake
from .quality import Outcome
from .record import EDIT, SESSION_CLOSE, ContentType, TrainingRecord
from .scrubber import PIIScrubber
from .tagger import DomainTagger

COUNT_MAX = 1_000_000  # of corrections and errors in a session
_LEAF = re.compile(r"[0-9a-f]{32}")


def close_draft(
    user_id: str,
    session_id: str,
    first_ask: str,
    *,
    outcome: str = "",
    corrections: int = 0,
    errors: int = 0,
    routing: Mapping[str, Any] | None = None,
    encoder: EncoderTag = DEFAULT_ENCODER,
    source: str = API,
    folder: str | None = None,
    group: str = "",
    metadata: Mapping[str, Any] | None = None,
    stated: int | None = None,
) -> Draft:
    """The SESSION_CLOSE record; `first_ask` is scrubbed already, so a cut halves no secret.

    group: a hash, or empty. metadata: what the source tells of the session; it is scrubbed.
    stated: a quality, 0 to 100, that whoever made the session states; else the outcome's.
    """
    told = dict(metadata or {})
    corrections, errors = _count(corrections), _count(errors)
    outcome = outcome if outcome in list(Outcome) else ""
    scored = quality.score(outcome, corrections=corrections, errors=errors)
    routed = dict(routing) if isinstance(routing, Mapping) else {}
    if routed and not _is_of_router(routed):  # words of somebody else's: they are scrubbed
        told["routing"] = routed
    own: dict[str, Any] = {
        "event": SESSION_CLOSE,
        "outcome": str(outcome),
        "corrections": corrections,
        "errors": errors,
        "quality": scored if stated is None else stated,
        "session_embedding": {
            "model": encoder.model,
            "enc8": encoder.enc8,
            "source_text": first_ask[:ENCODED_CHARS],
        },
    }
    if routed and "routing" not in told:
        own["routing"] = routed  # an id of a leaf looks like a key to the scrubber
    if source != API:  # what has none is a live session
        own["source"] = source
    if group:
        own["group"] = group
    return Draft(
        user_id,
        session_id,
        SESSION_CLOSE,
        ContentType.WORKFLOW,
        told,
        source=source,
        folder=folder,
        own=own,
    )


def _is_of_router(routing: Mapping[str, Any]) -> bool:
    """True if this holds nothing but what the router says: ids of leaves, a stage, a figure."""
    return all(key in _ROUTING and _ROUTING[key](value) for key, value in routing.items())


def _is_leaf(given: object) -> bool:
    return given is None or (isinstance(given, str) and _LEAF.fullmatch(given) is not None)


def _is_stage(given: object) -> bool:
    return given is None or (isinstance(given, str) and given in list(Stage))


_ROUTING: Final[Mapping[str, Callable[[object], bool]]] = {
    "leaf_id": _is_leaf,
    "leaf_lifecycle_stage": _is_stage,
    "routing_confidence": lambda given: isinstance(given, (int, float)),
    "fallback_used": lambda given: isinstance(given, bool),
    "parent_leaf_id": _is_leaf,
}


def _count(given: object) -> int:
    """A figure that a caller gives, within reason: what is none counts nothing."""
    return max(0, min(given, COUNT_MAX)) if isinstance(given, int) else 0


class CaptureSession:
    """One session of one user. Asks for consent at every call; without it nothing is kept."""

    def __init__(
        self,
        user_id: str,
        session_id: str,
        consent_manager: ConsentManager,
        corpus: TrainingCorpus,
        scrubber: PIIScrubber,
        tagger: DomainTagger,
        *,
        clock: Clock | None = None,
        encoder: EncoderTag = DEFAULT_ENCODER,
    ) -> None:
        self.source = API  # set both before it begins: consent is asked for them
        self.folder: str | None = None  # of the project, where it is known
        self.intake = TrainingDataIntake(
            consent_manager,
            corpus,
            scrubber,
            tagger,
            clock=clock or SystemClock(),
            encoder=encoder,
        )
        self._user_id = user_id
        self._session_id = session_id
        self._clock = clock or SystemClock()
        self._active = False
        self._edited = False
        self._started_s = 0.0
        self._first_ask = ""
        self._records = 0
        self._bytes = 0
        self._domains: Counter[str] = Counter()

    def start(self) -> None:
        """Begin. Raises PermissionError if the user has not opted in."""
        if not self.allowed():
            raise PermissionError("capture is not consented to: nothing is recorded")
        self.begin()

    def begin(self) -> None:
        """`start` without asking, for a caller that has just asked for many sessions at once."""
        self._active = True
        self._started_s = self._clock.now_s()

    def allowed(self) -> bool:
        """True if the user may be captured now, whether or not this session is active."""
        return self.intake.allowed(self._user_id, self.source, self.folder)

    def is_active(self) -> bool:
        """True if started, not ended, and consent is in force now. Once false, it stays false."""
        self._active = self._active and self.allowed()
        return self._active

    def consented(self) -> str | None:
        """The version of the terms in force if the session is active, else None."""
        return self.intake.version(self._user_id) if self.is_active() else None

    @property
    def refused(self) -> Counter[Any]:
        """What was not kept, by reason."""
        return self.intake.refused

    def record_prompt(self, text: str, metadata: dict[str, Any] | None = None) -> None:
        self.record(text, ContentType.PROMPT, metadata)

    def record_completion(self, text: str, metadata: dict[str, Any] | None = None) -> None:
        self.record(text, ContentType.COMPLETION, metadata)

    def record_conversation(
        self, messages: list[dict[str, Any]], metadata: dict[str, Any] | None = None
    ) -> None:
        self.record(json.dumps(messages), ContentType.CONVERSATION, metadata)

    def record_workflow(self, text: str, metadata: dict[str, Any] | None = None) -> None:
        """Record what the user is doing; `workflow_type` in the metadata is kept as it is."""
        self.record(text, ContentType.WORKFLOW, metadata)

    def record_edit(self, text: str, metadata: dict[str, Any] | None = None) -> None:
        """Record what the owner made of the last completion: an accepted edit."""
        self.record(text, ContentType.WORKFLOW, {**(metadata or {}), "event": EDIT})

    def record(
        self, text: str, kind: ContentType, metadata: dict[str, Any] | None = None
    ) -> TrainingRecord | None:
        """Record a text of any kind; None if it was not kept."""
        version = self.consented()
        record = self.prepare(text, kind, metadata, version) if version else None
        if record is None or not self.intake.write([record], self.source, self.folder):
            return None
        self.count(record)
        return record

    def prepare(
        self, text: str, kind: ContentType, metadata: Mapping[str, Any] | None, version: str
    ) -> TrainingRecord | None:
        """The record of a text, not written: for a caller that asks and writes for many at once."""
        about = dict(metadata or {})
        draft = Draft(
            self._user_id,
            self._session_id,
            text,
            kind.value,
            about,
            source=self.source,
            folder=self.folder,
        )
        return self.intake.prepare(draft, kind, version)

    def count(self, record: TrainingRecord) -> None:
        """Take note of a record that was written."""
        self._records += 1
        self._bytes += len(record.content.encode())
        self._domains[record.domain] += 1
        if record.content_type == ContentType.PROMPT and not self._first_ask:
            self._first_ask = record.content
        self._edited = self._edited or record.edits

    def end(
        self,
        outcome: str = "",
        routing: Mapping[str, Any] | None = None,
        *,
        corrections: int = 0,
        errors: int = 0,
    ) -> dict[str, Any]:
        """Write the closing record if consent still stands, and say what was captured.

        outcome: a `node.capture.quality.Outcome`; without one, an edit says "modified".
        """
        duration_s = max(0.0, self._clock.now_s() - self._started_s) if self._started_s else 0.0
        if version := self.consented():
            closing = self.closing(
                version, outcome, routing, corrections=corrections, errors=errors
            )
            if closing is not None:
                self.intake.write([closing], self.source, self.folder)
        self._active = False
        return {
            "session_id": self._session_id,
            "records_captured": self._records,
            "bytes_captured": self._bytes,
            "domains": dict(self._domains),
            "duration_seconds": duration_s,
        }

    def closing(
        self,
        version: str,
        outcome: str = "",
        routing: Mapping[str, Any] | None = None,
        *,
        corrections: int = 0,
        errors: int = 0,
    ) -> TrainingRecord | None:
        """The closing record, not written; None if nothing was captured."""
        if not self._records:
            return None
        draft = close_draft(
            self._user_id,
            self._session_id,
            self._first_ask,
            outcome=outcome or (Outcome.MODIFIED if self._edited else ""),
            corrections=corrections,
            errors=errors,
            routing=routing,
            encoder=self.intake.encoder,
            source=self.source,
            folder=self.folder,
        )
        return self.intake.prepare(draft, ContentType.WORKFLOW, version)
