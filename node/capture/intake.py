"""The one way into the corpus: consent, scrub, tag, write, in this order, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from node.clock import Clock, SystemClock
from node.consent import ConsentManager, Scope
from node.home import USER_ID_CHARS_MAX

from .corpus import TrainingCorpus
from .encoder_tag import DEFAULT_ENCODER, EncoderTag
from .record import (
    LINE_BYTES_MAX,
    ContentType,
    TrainingRecord,
    decode_line,
    encode_line,
    is_date,
)
from .scrubber import PIIScrubber, ScrubError
from .tagger import DomainTagger
from .terms import Terms, terms_of

log = logging.getLogger(__name__)

CONTENT_CHARS_MAX = 4 * 2**20  # of one text; what is longer is refused, never cut in a secret
API = "api"  # the source of what an application hands over itself
IDS_KEPT_MAX = 1_000  # that were looked at already

_COUNTED = re.compile(r"[A-Za-z_-]{1,10}[0-9]{0,6}")  # `sess_001`: too short to hold anything
_ID = re.compile(r"[\w.:-]{1,128}")
_HASH = re.compile(r"[0-9a-f]{32}")


class Refusal(StrEnum):
    """Why a text was not kept."""

    NO_CONSENT = "no consent"
    SCRUB = "scrub"  # it could not be made clean
    TOO_LONG = "too long"
    MALFORMED = "malformed"  # something else than the text, the ids and the metadata of a `Draft`
    DELETED = "deleted by the owner"  # the session; an application goes on with it


@dataclass(frozen=True, slots=True)
class Draft:
    """A text on its way in, not yet scrubbed. Never written, logged or shown.

    The user's id is written as it is, for consent and deletion are asked for by it. Other ids are,
    if they are plain names that the scrubber finds nothing in; else a hash stands for them.
    """

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
        encoder: EncoderTag = DEFAULT_ENCODER,
    ) -> None:
        """look_into: has the scrubber know the secrets of a session's folder, allowed or not."""
        self.corpus = corpus
        self.encoder = encoder  # what closing records say
        self.look_into = look_into
        self.refused: Counter[Refusal] = Counter()
        self.last_refusal: Refusal | None = None  # why the last `admit` or `prepare` gave nothing
        self._consent = consent_manager
        self._scrubber = scrubber
        self._tagger = tagger
        self._clock = clock or SystemClock()
        self._ids: dict[str, str] = {}  # as given, and as written

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
            except (AttributeError, KeyError, TypeError, ValueError) as problem:
                log.warning("capture rejected reason=%s", type(problem).__name__)
                continue
            if record:
                kept.append(record)
        written: set[str] = set()
        for user_id in dict.fromkeys(record.user_id for record in kept):
            mine = [record for record in kept if record.user_id == user_id]
            written.update(record.record_id for record in self.written(mine) or ())
        self.corpus.flush()
        kept = [record for record in kept if record.record_id in written]
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
        """Write prepared records of one user; False, and counted, if none of them was to be."""
        return not records or bool(self.written(records, source, folder))

    def written(
        self, records: Sequence[TrainingRecord], source: str = API, folder: str | None = None
    ) -> list[TrainingRecord] | None:
        """Write prepared records of one user, and return those that were written.

        None if consent has ended meanwhile. Those of sessions that the owner has deleted are left
        out. A few are durable soon, as the corpus has it; many are durable at once.
        """
        if not records:
            return []
        stands = True

        def allowed() -> bool:
            nonlocal stands
            stands = self.allowed(records[0].user_id, source, folder)
            return stands

        if len(records) == 1:
            count = int(self.corpus.add_record(records[0], allowed=allowed))
        else:
            count = self.corpus.add_records(records, allowed=allowed)
        if not stands:
            self.refused[Refusal.NO_CONSENT] += len(records)  # withdrawn while they were scrubbed
            return None
        if count == len(records):
            return list(records)
        kept = [record for record in records if not self.corpus.was_deleted(record.session_id)]
        self.refused[Refusal.DELETED] += len(records) - len(kept)
        return kept

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
        if not _is_draft(draft):
            self._refuse(Refusal.MALFORMED)
            return None
        version = self.version(draft.user_id)
        if version is None or not self.allowed(draft.user_id, draft.source, draft.folder):
            self._refuse(Refusal.NO_CONSENT)
            return None
        return self.prepare(draft, kind, version)

    def prepare(self, draft: Draft, kind: ContentType, version: str) -> TrainingRecord | None:
        """`admit` without asking: the caller has asked, for a whole batch, and asks at the write.

        version: as `version` gave it for that batch.
        """
        if not _is_draft(draft):
            self._refuse(Refusal.MALFORMED)
            return None
        if len(draft.content) > CONTENT_CHARS_MAX:
            self._refuse(Refusal.TOO_LONG)
            return None
        try:
            record = self._cleaned(draft, kind, version)
            line = encode_line(record)
            if decode_line(line) is None:  # one that cannot be read back must not be written
                raise ScrubError("no line can hold it")
        except Exception as problem:  # fail closed; only a ScrubError's words are free of the text
            detail = problem if isinstance(problem, ScrubError) else type(problem).__name__
            log.warning("capture dropped reason=scrub detail=%s", detail)
            self._refuse(Refusal.SCRUB)
            return None
        if len(line) > LINE_BYTES_MAX:
            self._refuse(Refusal.TOO_LONG)
            return None
        return record

    def _cleaned(self, draft: Draft, kind: ContentType, version: str) -> TrainingRecord:
        """The record of a draft: nothing of the caller's own stands in it that was not looked at.

        Raises ScrubError, and whatever else the scrubber may.
        """
        about = draft.metadata
        provider = draft.source_provider or str(about.get("source_provider", ""))
        model = draft.source_model or str(about.get("source_model", about.get("model_name", "")))
        content = _encodable(self._clean(draft.content, kind))
        metadata = self._scrubber.scrub_value(about) if about else {}
        return TrainingRecord(
            record_id=uuid.uuid4().hex if draft.record_id is None else self._id(draft.record_id),
            user_id=draft.user_id,
            session_id=self._id(draft.session_id),
            timestamp=self._dated(draft.timestamp),
            domain=self._tagger.tag(content),
            content_type=kind.value,
            content=content,
            metadata={**metadata, **draft.own},
            consent_version=version,
            source_provider=self._scrubber.scrub(provider) if provider else "",
            source_model=self._scrubber.scrub(model) if model else "",
            terms_class=_terms(draft, kind, provider, model).value,
        )

    def _id(self, given: str) -> str:
        """An id as it may be written: itself, or a hash, so that a session stays together."""
        if _HASH.fullmatch(given) or _COUNTED.fullmatch(given):
            return given
        if not _ID.fullmatch(given):
            return _hash(given)
        known = self._ids.get(given)
        if known is None:
            known = _hash(given) if self._scrubber.find(given) else given
            if len(self._ids) >= IDS_KEPT_MAX:
                self._ids.clear()
            self._ids[given] = known
        return known

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


def _is_draft(draft: Draft) -> bool:
    """False if a caller handed over something else than what a draft is said to hold."""
    user_id = draft.user_id
    return (
        isinstance(draft.content, str)
        and isinstance(draft.session_id, str)
        and isinstance(draft.metadata, dict)
        and isinstance(user_id, str)
        and 0 < len(user_id) <= USER_ID_CHARS_MAX
        and user_id.isprintable()
    )


def _terms(draft: Draft, kind: ContentType, provider: str, model: str) -> Terms:
    """The class that the caller states; one that is none is unknown. Else by kind and model."""
    stated = draft.terms_class or draft.metadata.get("terms_class", "")
    if not stated:
        return Terms.OWN if kind is ContentType.PROMPT else terms_of(provider, model)
    return next((each for each in Terms if each == stated), Terms.UNKNOWN)


def _hash(given: str) -> str:
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:32]
