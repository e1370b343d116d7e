"""Captures one session: its texts as they come, and at its end how it went."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from node.clock import Clock, SystemClock
from node.consent import ConsentManager
from router.minilm_encoder import ENC8
from router.ports import ENCODED_CHARS

from .corpus import TrainingCorpus
from .intake import Draft, TrainingDataIntake
from .record import SESSION_CLOSE, ContentType, TrainingRecord
from .scrubber import PIIScrubber
from .tagger import DomainTagger

# What an outcome says of the answer, 0 to 100: tier A from 70, B from 50, C below.
QUALITY: Final[Mapping[str, int]] = {
    "accepted": 90,
    "modified": 70,
    "iterated": 55,
    "rejected": 25,
    "error": 10,
}


@dataclass(frozen=True, slots=True)
class EncoderTag:
    """Which encoder will embed the session; the vector itself is made later, and kept elsewhere."""

    model: str
    enc8: str  # 16 hex digits


DEFAULT_ENCODER = EncoderTag("all-MiniLM-L6-v2", ENC8.hex())


def close_draft(
    user_id: str,
    session_id: str,
    first_ask: str,
    *,
    outcome: str = "",
    routing: Mapping[str, Any] | None = None,
    encoder: EncoderTag = DEFAULT_ENCODER,
    **about: Any,
) -> Draft:
    """The SESSION_CLOSE record; `first_ask` is scrubbed already, so a cut halves no secret."""
    metadata: dict[str, Any] = {
        "event": SESSION_CLOSE,
        "outcome": outcome,
        "quality": QUALITY.get(outcome),
        "session_embedding": {
            "model": encoder.model,
            "enc8": encoder.enc8,
            "source_text": first_ask[:ENCODED_CHARS],
        },
        **about,
    }
    if routing is not None:
        metadata["routing"] = dict(routing)
    return Draft(user_id, session_id, SESSION_CLOSE, ContentType.WORKFLOW, metadata)


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
        self._user_id = user_id
        self._session_id = session_id
        self._clock = clock or SystemClock()
        self._encoder = encoder
        self._intake = TrainingDataIntake(
            consent_manager, corpus, scrubber, tagger, clock=self._clock
        )
        self._active = False
        self._started_s = 0.0
        self._first_ask = ""
        self._records = 0
        self._bytes = 0
        self._domains: Counter[str] = Counter()

    def start(self) -> None:
        """Begin. Raises PermissionError if the user has not opted in."""
        if not self._intake.allowed(self._user_id):
            raise PermissionError("capture is not consented to: nothing is recorded")
        self._active = True
        self._started_s = self._clock.now_s()

    def is_active(self) -> bool:
        """True if started, not ended, and consent is in force now. Once false, it stays false."""
        self._active = self._active and self._intake.allowed(self._user_id)
        return self._active

    @property
    def refused(self) -> Counter[Any]:
        """What was not kept, by reason."""
        return self._intake.refused

    def record_prompt(self, text: str, metadata: dict[str, Any] | None = None) -> None:
        self.record(text, ContentType.PROMPT, metadata)

    def record_completion(self, text: str, metadata: dict[str, Any] | None = None) -> None:
        self.record(text, ContentType.COMPLETION, metadata)

    def record_conversation(
        self, messages: list[dict[str, Any]], metadata: dict[str, Any] | None = None
    ) -> None:
        self.record(json.dumps(messages), ContentType.CONVERSATION, metadata)

    def record(
        self, text: str, kind: ContentType, metadata: dict[str, Any] | None = None
    ) -> TrainingRecord | None:
        """Record a text of any kind; None if it was not kept."""
        if not self.is_active():
            return None
        draft = Draft(self._user_id, self._session_id, text, kind.value, metadata or {})
        record = self._intake.keep(draft)
        if record is not None:
            self._records += 1
            self._bytes += len(record.content.encode())
            self._domains[record.domain] += 1
            if kind is ContentType.PROMPT and not self._first_ask:
                self._first_ask = record.content
        return record

    def end(self, outcome: str = "", routing: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the closing record if consent still stands, and say what was captured."""
        duration_s = max(0.0, self._clock.now_s() - self._started_s) if self._started_s else 0.0
        if self.is_active() and self._records:
            self._intake.keep(
                close_draft(
                    self._user_id,
                    self._session_id,
                    self._first_ask,
                    outcome=outcome,
                    routing=routing,
                    encoder=self._encoder,
                )
            )
        self._active = False
        return {
            "session_id": self._session_id,
            "records_captured": self._records,
            "bytes_captured": self._bytes,
            "domains": dict(self._domains),
            "duration_seconds": duration_s,
        }
