"""The owner's rights over their data: see what there is, take a copy, clean it, have it deleted.

Each has a module of its own, and this one their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leaves.ports import Report, silent

from .consent.deleted import MARKER
from .deletion import Selection, delete, receipts
from .deletion import check as check_deletion
from .deletion import finish as finish_deletion
from .deletion import preview as preview_deletion
from .exporting import Filters, export, parse_after
from .rescanning import rescan, rescan_due

if TYPE_CHECKING:
    from .app import App

__all__ = [
    "MARKER",
    "Filters",
    "Selection",
    "check_deletion",
    "delete",
    "export",
    "finish_deletion",
    "parse_after",
    "preview_deletion",
    "receipts",
    "rescan",
    "rescan_due",
    "stats",
]


def stats(app: App, report: Report = silent) -> dict[str, Any]:
    """What is stored, what training may use of it and why not the rest; one pass."""
    from .capture import CorpusStats
    from .exporting import flagged

    figures = CorpusStats(
        app.corpus,
        app.consent,
        clock=app.clock,
        restricted_outputs=app.config.training.restricted_outputs,
        flagged=flagged(app),
    )
    return {
        **figures.report(7, report),
        "rescan_due": rescan_due(app),
        "deletions": len(receipts(app)),
    }
