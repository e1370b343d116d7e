"""What a training set may contain: by the terms of whoever wrote a text, and by how good it is.

Providers forbid some uses of what their models say. By default only what is the owner's own or open
is trained on; what is not is kept for discovery and routing. The owner alone can let restricted
outputs in (`[training] restricted_outputs` in groove.toml). What is unknown stays out even then.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Final, Protocol

from .quality import POOR


class Terms(StrEnum):
    """The terms class of a record."""

    OWN = "own"  # written by the owner, or vouched for by the owner at import
    OPEN = "open"  # an open licence, or the output of a model whose terms allow training
    RESTRICTED = "restricted"  # the provider forbids training models of one's own on it
    UNKNOWN = "unknown"


TRAINABLE: Final = frozenset({Terms.OWN, Terms.OPEN})
COMPLETION_CHARS_MIN: Final = 2  # a shorter answer holds nothing to learn

_RESTRICTING_PROVIDERS = ("anthropic", "openai", "google", "mistral", "xai", "cohere")
_RESTRICTED_MODELS = ("claude", "gpt-3", "gpt-4", "gpt-5", "chatgpt", "gemini", "grok", "command-r")
# Families whose licence (Apache-2.0 or MIT) puts no limit on the use of outputs.
_OPEN_MODELS = ("qwen", "smollm", "olmo", "granite", "phi-", "deepseek", "gpt-oss", "mixtral")


def terms_of(provider: str, model: str) -> Terms:
    """Return the class of a completion by who made it; UNKNOWN unless it is certain."""
    name = model.lower().rpartition("/")[2]
    if name.startswith(_OPEN_MODELS):
        return Terms.OPEN
    if provider.lower() in _RESTRICTING_PROVIDERS or name.startswith(_RESTRICTED_MODELS):
        return Terms.RESTRICTED
    return Terms.UNKNOWN


def trainable(terms_class: str, *, restricted_outputs: bool = False) -> bool:
    """True if a text of this class may be trained on."""
    return terms_class in TRAINABLE or (restricted_outputs and terms_class == Terms.RESTRICTED)


class LeftOut(StrEnum):
    """Why a session is not trained on; of several reasons, the first of these."""

    SECOND_SCAN = "second scan"  # an independent scanner took something in it for a secret
    NO_ASK = "no ask"
    NO_COMPLETION = "no completion"
    NOT_CLOSED = "not closed"
    TOO_SHORT = "too short"
    RESTRICTED = "terms: restricted"
    UNKNOWN_TERMS = "terms: unknown"
    POOR = "tier C"


class Judged(Protocol):
    """What the judgement looks at: a `Session`, or what the statistics keep of one."""

    @property
    def session_id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def completion(self) -> str: ...
    @property
    def terms_class(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def last(self) -> float: ...


def why_left_out(
    session: Judged,
    *,
    restricted_outputs: bool = False,
    flagged: Collection[str] = frozenset(),
    open_after: float = float("inf"),
) -> LeftOut | None:
    """Return why a session may not be trained on, None if it may.

    flagged: ids that the second scan left out. open_after: a session without a closing record whose
    last record is younger than this Unix time may still go on. A session of which nothing is known
    has no tier, and is not held to be poor.
    """
    completion = session.completion.strip()
    terms = session.terms_class
    if session.session_id in flagged:
        return LeftOut.SECOND_SCAN
    if not session.prompt.strip():
        return LeftOut.NO_ASK
    if not completion:
        return LeftOut.NO_COMPLETION
    if not session.closed and session.last > open_after:
        return LeftOut.NOT_CLOSED
    if len(completion) < COMPLETION_CHARS_MIN:
        return LeftOut.TOO_SHORT
    if not trainable(terms, restricted_outputs=restricted_outputs):
        return LeftOut.RESTRICTED if terms == Terms.RESTRICTED else LeftOut.UNKNOWN_TERMS
    return LeftOut.POOR if session.tier == POOR else None
