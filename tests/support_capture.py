"""What the tests of capture share: a clock told the time, and a node's capture whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.capture import (
    CaptureSession,
    ConsentManager,
    DomainTagger,
    PIIScrubber,
    TrainingCorpus,
    TrainingDataIntake,
    TrainingRecord,
)

USER = "f8e7d6c5b4a3f8e7d6c5b4a3f8e7d6c5"
NOON = 1_777_204_800.0  # 2026-04-26 12:00 UTC


class HandClock:
    """Stands still until a test moves it."""

    def __init__(self, now_s: float = NOON) -> None:
        self.time_s = now_s

    def now_s(self) -> float:
        return self.time_s


@dataclass
class Capture:
    """Everything between a prompt and a line, in one folder."""

    home: Path
    clock: HandClock
    consent: ConsentManager
    corpus: TrainingCorpus
    scrubber: PIIScrubber
    tagger: DomainTagger
    intake: TrainingDataIntake

    def session(self, session_id: str) -> CaptureSession:
        return CaptureSession(
            USER,
            session_id,
            self.consent,
            self.corpus,
            self.scrubber,
            self.tagger,
            clock=self.clock,
        )

    def grant(self) -> None:
        self.consent.record_consent(USER, opted_in=True, consent_version="1.0")

    def on_disk(self) -> bytes:
        """All bytes of all files under the home."""
        return b"".join(p.read_bytes() for p in sorted(self.home.rglob("*")) if p.is_file())


def capture(home: Path, *, granted: bool = True) -> Capture:
    clock = HandClock()
    consent = ConsentManager(home / "consent.db", clock=clock)
    corpus = TrainingCorpus(home / "training_data", clock=clock)
    scrubber, tagger = PIIScrubber(), DomainTagger()
    intake = TrainingDataIntake(consent, corpus, scrubber, tagger, clock=clock)
    made = Capture(home, clock, consent, corpus, scrubber, tagger, intake)
    if granted:
        made.grant()
    return made


def record(number: int, *, at: float = NOON, user: str = USER, **changes: object) -> TrainingRecord:
    fields: dict[str, object] = {
        "record_id": f"{number:032x}",
        "user_id": user,
        "session_id": f"session-{number}",
        "timestamp": at,
        "domain": "code",
        "content_type": "prompt",
        "content": f"What does function {number} do?",
        "metadata": {},
        "consent_version": "1.0",
    }
    return TrainingRecord(**{**fields, **changes})  # type: ignore[arg-type]
