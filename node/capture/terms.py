"""Under which terms a text may be trained on; providers forbid some uses of what their models say.

By default only what is the owner's own or open is trained on. Anything unknown is kept for
discovery and routing, and is never trained on.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Terms(StrEnum):
    """The terms class of a record."""

    OWN = "own"  # written by the owner, or vouched for by the owner at import
    OPEN = "open"  # an open licence, or the output of a model whose terms allow training
    RESTRICTED = "restricted"  # the provider forbids training models of one's own on it
    UNKNOWN = "unknown"


TRAINABLE: Final = frozenset({Terms.OWN, Terms.OPEN})

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
