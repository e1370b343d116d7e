"""From a prompt to a line of the corpus. Imported only once somebody here has consented."""

from node.consent import CURRENT_CONSENT_VERSION, ConsentManager, ConsentRecord, Scope

from .corpus import TrainingCorpus
from .intake import TrainingDataIntake
from .queue import CaptureItem, CaptureQueue, SessionEnd
from .record import TrainingRecord
from .scrubber import SCRUB_RULES_VERSION, PIIScrubber, ScrubError
from .session import CaptureSession
from .sessions import Session
from .stats import CorpusStats
from .tagger import DomainTagger

__all__ = [
    "CURRENT_CONSENT_VERSION",
    "SCRUB_RULES_VERSION",
    "CaptureItem",
    "CaptureQueue",
    "CaptureSession",
    "ConsentManager",
    "ConsentRecord",
    "CorpusStats",
    "DomainTagger",
    "PIIScrubber",
    "Scope",
    "ScrubError",
    "Session",
    "SessionEnd",
    "TrainingCorpus",
    "TrainingDataIntake",
    "TrainingRecord",
]
