"""What the owner has agreed to, and the proof of it.

`manager` answers whether something is allowed; `ledger` writes decisions in turn; `store` keeps
them; `receipts` links and signs them; `witness` remembers them outside the home, and `deleted`
remembers deletions there; `grants` says since when something is allowed.
"""

from .manager import (
    CURRENT_CONSENT_VERSION,
    ENDPOINT_SOURCES,
    FOLDER_SOURCES,
    FREE_SOURCES,
    NOTHING,
    Allowed,
    ConsentManager,
    ConsentRecord,
    NotGrantedError,
    Scope,
    Standing,
    named_by,
)
from .store import ConsentLockedError, ConsentUnreadableError

__all__ = [
    "CURRENT_CONSENT_VERSION",
    "ENDPOINT_SOURCES",
    "FOLDER_SOURCES",
    "FREE_SOURCES",
    "NOTHING",
    "Allowed",
    "ConsentLockedError",
    "ConsentManager",
    "ConsentRecord",
    "ConsentUnreadableError",
    "NotGrantedError",
    "Scope",
    "Standing",
    "named_by",
]
