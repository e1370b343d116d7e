"""How the last sessions were routed, from the end of the corpus: it is never read whole."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from node.app import App

TAIL_BYTES = 4 << 20  # of the newest files together
ROUTED_MAX = 2_000
_MARK = b'"routing"'  # in the line of a closing record: the others are not decoded


@dataclass(slots=True)
class Recent:
    """How sure the router was, and how many sessions something less specific answered."""

    confidences: list[float] = field(default_factory=list)
    fallbacks: int = 0


class _Metadata(msgspec.Struct):
    routing: dict[str, Any] | None = None


class _Closing(msgspec.Struct):
    metadata: _Metadata


def recent_routes(app: App) -> Recent:
    """The newest closing records; none, and nothing is opened, where nothing was ever captured."""
    found = Recent()
    folder = app.home / "training_data"
    left = TAIL_BYTES
    for path in sorted(folder.glob("training_*.jsonl"), reverse=True):
        if left <= 0 or len(found.confidences) >= ROUTED_MAX:
            break
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - left)
            file.seek(start)
            raw = file.read(left)
        left -= len(raw)
        lines = raw.splitlines()
        for line in reversed(lines[1:] if start else lines):
            if _MARK in line and len(found.confidences) < ROUTED_MAX:
                _count(found, line)
    return found


def _count(found: Recent, line: bytes) -> None:
    try:
        routing = msgspec.json.decode(line, type=_Closing).metadata.routing
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    match routing:
        case {"routing_confidence": float() | int() as confidence, **rest}:
            found.confidences.append(float(confidence))
            found.fallbacks += bool(rest.get("fallback_used"))
