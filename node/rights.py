"""The owner's rights over their data: see how much there is, take a copy, have it deleted.

Deletion is one order that survives a crash: a marker is written first, and whoever opens the home
next finishes what it finds begun. What was trained on the data goes with it, here and at peers.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .home import sync_dir, write_atomic
from .mailbox import Retract
from .told import Told

if TYPE_CHECKING:
    from .app import App

MARKER = "deletion.pending"
_FOLDERS = ("rounds", "training", "router", "embeddings")  # made of the data, and of nothing else
_FILES = ("shown.json", "events.jsonl", "events.jsonl.1")


def stats(app: App) -> dict[str, Any]:
    """Counts, size, domains and growth of what is stored."""
    from .capture import CorpusStats

    report = CorpusStats(app.corpus, app.consent)
    return {**report.summary(), "daily_growth": report.daily_growth(7)}


def export(app: App, path: Path) -> int:
    """Write every record to a JSONL file and return how many."""
    return app.corpus.export_jsonl(path)


def delete(app: App) -> dict[str, Any]:
    """Withdraw consent, delete everything captured, retract every leaf; returns when it is done."""
    with _alone(app):  # first: an order that is refused must not be carried out later
        write_atomic(app.home / MARKER, msgspec.json.encode({"asked": app.clock.now_s()}))
        return _delete(app)


def finish_deletion(app: App) -> dict[str, Any]:
    """Carry a begun deletion through; each step may be repeated.

    The retractions are in the mailbox before the leaves' ids are forgotten. A running node tells
    peers at once; otherwise the next start does.
    """
    with _alone(app):
        return _delete(app)


def _alone(app: App) -> AbstractContextManager[None]:
    return app.lock("round", "a round is running, and it works on what is to be deleted")


def _delete(app: App) -> dict[str, Any]:
    from .capture import DomainTagger, PIIScrubber, TrainingDataIntake

    app.consent.revoke_consent(app.user_id)
    with app.lock("publish", wait=True):  # what is being published is on record after this
        shown = _shown(app)
    now_s = app.clock.now_s()
    for leaf_id in shown:
        app.mailbox.post(Retract(leaf_id), now_s)
    intake = TrainingDataIntake(app.consent, app.corpus, PIIScrubber(), DomainTagger())
    deleted = intake.delete_user(app.user_id)
    foreign = app.foreign.expected()
    for path in [*(app.home / "bundles").glob("*.bundle"), *(app.home / "bundles").glob("*.part")]:
        if path.stem not in foreign:  # also of versions that were replaced or not taken
            path.unlink(missing_ok=True)
    app.forests.erase()
    for name in _FOLDERS:
        shutil.rmtree(app.home / name, ignore_errors=True)
    for path in app.home.glob("adapters-*"):  # of a command that was killed
        shutil.rmtree(path, ignore_errors=True)
    for path in [*map(app.home.joinpath, _FILES), *app.home.glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    sync_dir(app.home)
    (app.home / MARKER).unlink(missing_ok=True)
    sync_dir(app.home)
    result = {
        "consent_revoked": True,
        "records_deleted": deleted["records_deleted"],
        "leaves_retracted": len(shown),
    }
    app.events.tell(Told("deleted", f"deleted {deleted['records_deleted']:,} records", result))
    return result


def _shown(app: App) -> list[str]:
    """All leaves that peers may have heard of: those on record, and those in the forest."""
    try:
        shown = set(app.shown())
    except msgspec.DecodeError:
        shown = set()  # damaged: rather retract too much
        shown |= {leaf.id for leaf in app.forests.forest()}
    return sorted(shown)
