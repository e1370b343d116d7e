"""The one way into the corpus: consent, scrub, tag, write, in this order, or nothing at all."""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from node.clock import Clock, SystemClock
from node.consent import ConsentManager, Scope

from .corpus import TrainingCorpus
from .record import ContentType, TrainingRecord, is_date
from .scrubber import PIIScrubber, ScrubError
from .tagger import DomainTagger
from .terms import Terms, terms_of

log = logging.getLogger(__name__)

CONTENT_CHARS_MAX = 4 * 2**20  # of one text; what is longer is refused, never cut in a secret
API = "api"  # the source of what an application hands over itself


class Refusal(StrEnum):
    """Why a text was not kept."""

    NO_CONSENT = "no consent"
    SCRUB = "scrub"  # it could not be made clean
    TOO_LONG = "too long"


@dataclass(frozen=True, slots=True)
class Draft:
    """A text on its way in, not yet scrubbed. Never written, logged or shown."""

    user_id: str
    session_id: str
    content: str = field(repr=False)
    content_type: str
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    timestamp: float | None = None  # None: the time of intake
    record_id: str | None = None  # None: drawn at random
    source_provider: str = ""
    source_model: str = ""
    terms_class: str = ""  # empty: by kind, provider and model
    source: str = API
    folder: str | None = field(default=None, repr=False)  # asked for consent, never written
    # Metadata made by this node: words of its own, figures, hashes, text that is scrubbed already.
    # It is written as it is, because a hash may look like a card number to the scrubber.
    own: dict[str, Any] = field(default_factory=dict, repr=False)


class TrainingDataIntake:
    """Takes texts in. Every call does IO: keep it behind a `CaptureQueue` where time matters."""

    def __init__(
        self,
        consent_manager: ConsentManager,
        corpus: TrainingCorpus,
        scrubber: PIIScrubber,
        tagger: DomainTagger,
        *,
        clock: Clock | None = None,
        look_into: Callable[[str | None], None] = lambda folder: None,
    ) -> None:
        """look_into: has the scrubber know the secrets of a session's folder, allowed or not."""
        self.corpus = corpus
        self.look_into = look_into
        self.refused: Counter[Refusal] = Counter()
        self.last_refusal: Refusal | None = None  # why the last `admit` or `prepare` gave nothing
        self._consent = consent_manager
        self._scrubber = scrubber
        self._tagger = tagger
        self._clock = clock or SystemClock()

    def submit(
        self,
        user_id: str,
        session_id: str,
        content: str,
        content_type: str,
        metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """Keep one text and return its record id, or None if it was refused (see `refused`).

        Raises ValueError for an unknown content type, CorpusError if the disk fails.
        """
        record = self.keep(Draft(user_id, session_id, content, content_type, metadata or {}))
        return record.record_id if record else None

    def submit_batch(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep many; each needs user_id, session_id, content, content_type, may have metadata.

        Returns {"accepted", "rejected", "record_ids"} once the accepted ones are durable.
        """
        kept: list[TrainingRecord] = []
        for item in records:
            try:
                draft = Draft(
                    str(item["user_id"]),
                    str(item["session_id"]),
                    str(item["content"]),
                    str(item["content_type"]),
                    dict(item.get("metadata") or {}),
                )
                record = self.admit(draft)
            except (KeyError, TypeError, ValueError) as problem:
                log.warning("capture rejected reason=%s", type(problem).__name__)
                continue
            if record:
                kept.append(record)
        users = {record.user_id for record in kept}
        if not self.corpus.add_records(kept, allowed=lambda: all(map(self.allowed, users))):
            kept = []
        return {
            "accepted": len(kept),
            "rejected": len(records) - len(kept),
            "record_ids": [record.record_id for record in kept],
        }

    def delete_user(self, user_id: str) -> dict[str, Any]:
        """Revoke the user's consent, then remove all of the user's records for good."""
        revoked = self._consent.revoke_consent(user_id)
        deleted = self.corpus.delete_user(user_id)
        log.info("user deleted records=%d", deleted)
        return {"consent_revoked": revoked, "records_deleted": deleted}

    def keep(self, draft: Draft) -> TrainingRecord | None:
        """Admit a draft and write it."""
        record = self.admit(draft)
        if record is None:
            return None
        if not self.write([record], draft.source, draft.folder):
            return None
        return record

    def write(
        self, records: Sequence[TrainingRecord], source: str = API, folder: str | None = None
    ) -> bool:
        """Write prepared records of one user; False, and counted, if consent has ended meanwhile.

        A few are durable soon, as the corpus has it; many are durable at once.
        """
        if not records:
            return True
        user_id = records[0].user_id

        def allowed() -> bool:
            return self.allowed(user_id, source, folder)

        if len(records) == 1:
            written = self.corpus.add_record(records[0], allowed=allowed)
        else:
            written = bool(self.corpus.add_records(records, allowed=allowed))
        if not written:
            self.refused[Refusal.NO_CONSENT] += len(records)  # withdrawn while they were scrubbed
        return written

    @property
    def replaced(self) -> int:
        """How many values the scrubber has replaced so far."""
        return self._scrubber.replaced.total()

    def allowed(self, user_id: str, source: str = API, folder: str | None = None) -> bool:
        """True if capture is in force for the user now, from this source and of this folder."""
        return self._consent.may_capture(user_id, source, folder)

    def now_s(self) -> float:
        """What the intake's clock says."""
        return self._clock.now_s()

    def version(self, user_id: str) -> str | None:
        """The version of the terms under which the user is captured, None if it is not allowed."""
        return self._consent.version_in_force(user_id, Scope.CAPTURE)

    def admit(self, draft: Draft) -> TrainingRecord | None:
        """Return the scrubbed and tagged record of a draft without writing it, None if refused."""
        kind = ContentType(draft.content_type)  # a wrong one is the caller's error, allowed or not
        version = self.version(draft.user_id)
        if version is None or not self.allowed(draft.user_id, draft.source, draft.folder):
            self._refuse(Refusal.NO_CONSENT)
            return None
        return self.prepare(draft, kind, version)

    def prepare(self, draft: Draft, kind: ContentType, version: str) -> TrainingRecord | None:
        """`admit` without asking: the caller has asked, for a whole batch, and asks at the write.

        version: as `version` gave it for that batch.
        """
        if len(draft.content) > CONTENT_CHARS_MAX:
            self._refuse(Refusal.TOO_LONG)
            return None
        about = draft.metadata
        provider = draft.source_provider or str(about.get("source_provider", ""))
        model = draft.source_model or str(about.get("source_model", about.get("model_name", "")))
        terms = draft.terms_class or str(about.get("terms_class", ""))
        if not terms:
            terms = Terms.OWN if kind is ContentType.PROMPT else terms_of(provider, model)
        try:
            content = _encodable(self._clean(draft.content, kind))
            metadata = self._scrubber.scrub_value(about) if about else {}
            provider = self._scrubber.scrub(provider) if provider else ""
            model = self._scrubber.scrub(model) if model else ""
            msgspec.json.encode((metadata, provider, model))  # what no line can hold fails here
        except Exception as problem:  # fail closed; only a ScrubError's words are free of the text
            detail = problem if isinstance(problem, ScrubError) else type(problem).__name__
            log.warning("capture dropped reason=scrub detail=%s", detail)
            self._refuse(Refusal.SCRUB)
            return None
        return TrainingRecord(
            record_id=draft.record_id or uuid.uuid4().hex,
            user_id=draft.user_id,
            session_id=draft.session_id,
            timestamp=self._dated(draft.timestamp),
            domain=self._tagger.tag(content),
            content_type=kind.value,
            content=content,
            metadata={**metadata, **draft.own},
            consent_version=version,
            source_provider=provider,
            source_model=model,
            terms_class=str(terms),
        )

    def _refuse(self, why: Refusal) -> None:
        self.refused[why] += 1
        self.last_refusal = why

    def _dated(self, timestamp: float | None) -> float:
        return timestamp if timestamp is not None and is_date(timestamp) else self._clock.now_s()

    def clean(self, text: str) -> str | None:
        """A scrubbed text, or None if it cannot be kept; counts nothing."""
        if len(text) > CONTENT_CHARS_MAX:
            return None
        try:
            return self._scrubber.scrub(text)
        except Exception as problem:  # fail closed, and the text is in no message
            log.debug("text not scrubbed reason=%s", type(problem).__name__)
            return None

    def _clean(self, content: str, kind: ContentType) -> str:
        """Scrub a text; a conversation is scrubbed inside its JSON, so that it stays JSON."""
        if kind is ContentType.CONVERSATION:
            try:
                messages = json.loads(content)
            except ValueError:
                return self._scrubber.scrub(content)
            return json.dumps(self._scrubber.scrub_value(messages), ensure_ascii=False)
        return self._scrubber.scrub(content)


def _encodable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 has not, replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
