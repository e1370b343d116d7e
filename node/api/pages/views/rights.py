"""Data and rights: what is allowed since when, what is stored, what leaves this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from node import consenting, rights, usage
from node.api.pages.desk import Desk
from node.api.pages.page import Ask, Page
from node.consent import ENDPOINT_SOURCES, disclosure
from node.tally import Tally

SOURCES = ("claude-code", "codex", "llm", *ENDPOINT_SOURCES)
SHOWN_MAX = 5  # leaves that are shown to peers, as examples
RECEIPTS_SHOWN = 50


def data(desk: Desk, ask: Ask) -> Page:
    app = desk.app
    stamp = desk.stamp("consent")
    stands = desk.kept("consent", stamp, lambda: consenting.standing(app))
    since = stands["since"]
    scopes = desk.scopes()
    facts = {
        "line": disclosure.standing_line(stands),
        "undone": bool(stands["undone"]),
        "scopes": disclosure.scope_rows(stands["scopes"], since),
        "sources": [(name, since.get(name, "")) for name in stands["sources"]],
        "others": [name for name in SOURCES if name not in stands["sources"]],
        "folders": [(name, since.get(name, "")) for name in stands["folders"]],
        "capture": "capture" in scopes,
        "log": desk.kept("log", stamp, lambda: consenting.consent_log(app))[::-1][:RECEIPTS_SHOWN],
        "receipts": desk.kept("receipts", stamp, lambda: consenting.receipts(app))[::-1][
            :RECEIPTS_SHOWN
        ],
        "problems": desk.kept("verify", stamp, lambda: consenting.verify(app)),
        "publish": "publish" in scopes,
        "fetch": "fetch" in scopes,
        "shown": _shown(desk),
        "used": [msgspec.to_builtins(each) for each in usage.published(app)][:SHOWN_MAX],
        "stored": _stored(desk),
        "errands": [each for each in desk.errands.all() if each.name in ("delete", "rescan")],
        "deletions": rights.receipts(app)[::-1],
        "home": str(app.home),
    }
    topics = ("consent", "captured", "embedded", "mesh", "errands")
    return Page("rights.html", "Data and rights", facts, topics)


def _stored(desk: Desk) -> dict[str, Any]:
    """What is stored, by what costs nothing to know; the whole account reads every record."""
    counts = Tally(desk.home).read()
    folder = desk.home / "training_data"
    files = desk.kept("files", desk.stamp("captured"), lambda: _sizes(folder))
    return {
        "files": len(files),
        "bytes": sum(files),
        "embedded": desk.embedded(),
        "sources": sorted(
            (name, each.sessions, each.records) for name, each in counts.sources.items()
        ),
        "rescan_due": bool(files)
        and desk.kept("rescan", desk.stamp("captured"), lambda: rights.rescan_due(desk.app)),
    }


def _sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("training_*.jsonl")]


def _shown(desk: Desk) -> list[dict[str, Any]]:
    """What peers are shown of own leaves, byte by byte: the first of them, as examples."""
    stamp = desk.stamp("mesh", "forest")
    leaves = desk.forest().leaves
    shown = desk.kept("shown", stamp, desk.app.shown)
    return [
        {
            "name": leaves[id_].name,
            "leaf": id_,
            "stage": leaves[id_].stage.value,
            "sessions": f"2^{max(each.sessions, 1).bit_length()}",
            "version": leaves[id_].version,
            "centroid": each.centroid[:16].hex(" "),
            "bytes": len(each.centroid),
        }
        for id_, each in sorted(shown.items())
        if id_ in leaves
    ][:SHOWN_MAX]


def grant(desk: Desk, ask: Ask) -> Page:
    """The words that are agreed to, before the button that does: the receipt has their hash."""
    scopes, sources, folders = asked(ask)
    consenting.check_grant(desk.app, scopes, sources, folders)
    facts = {
        "scopes": scopes,
        "sources": sources,
        "folders": [str(folder) for folder in folders],
        "text": disclosure.text(scopes, sources, folders),
    }
    return Page("grant.html", "Allow it?", facts)


def asked(ask: Ask) -> tuple[list[str], list[str], list[Path]]:
    """What a form or a query asks to allow or to withdraw; what is no scope or source is left."""
    given = {**{name: (value,) for name, value in ask.query.items()}, **ask.forms}
    scopes = [x for x in given.get("scope", ()) if x in ("capture", "train", "publish", "fetch")]
    sources = [x for x in given.get("source", ()) if x in SOURCES]
    folders = [Path(x.strip()).expanduser() for x in given.get("folder", ()) if x.strip()]
    return scopes, sources, folders
