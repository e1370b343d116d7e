"""What became of the sessions that were routed to a leaf: each is one vote for or against it.

Votes are counted anew from the corpus whenever they are needed and kept nowhere else by session:
one that is deleted takes its vote away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaves.model import LeafId

from .capture import quality
from .capture.record import TrainingRecord, decode_line, read_lines
from .capture.sessions import quality_of
from .routing import routing_record

__all__ = [
    "Closing",
    "Vote",
    "closings",
    "in_order",
    "routing_record",
    "tallied",
    "votes",
]

_ID = re.compile(r"[0-9a-f]{32}")
_ROUTED = b'"routing"'  # in the line of a closing record: the others are not decoded


@dataclass(frozen=True, slots=True)
class Vote:
    """One session that a leaf answered, and whether that went well."""

    leaf: LeafId
    well: bool
    at: float  # when it closed, Unix seconds


@dataclass(frozen=True, slots=True)
class Closing:
    """How a session ended. leaf: the one that answered it; None if something less specific did."""

    leaf: LeafId | None
    accepted: bool
    at: float  # Unix seconds


def votes(files: Iterable[Path]) -> dict[str, Vote]:
    """The vote of each session that has one, by its id. Costs one reading of the corpus.

    A session of middling quality says neither; nor does one that something less specific than its
    leaf answered: the leaf did not earn that. Of two closing records the later stands.
    """
    found: dict[str, Vote] = {}
    for record in _closing_records(files):
        found.pop(record.session_id, None)
        vote = _vote(record.metadata, record.timestamp)
        if vote is not None:
            found[record.session_id] = vote
    return found


def closings(files: Iterable[Path]) -> Iterator[tuple[str, Closing]]:
    """Each routed session's id, and how it ended; once for each closing record, in their order."""
    for record in _closing_records(files):
        leaf = _answered_by(record.metadata)
        taken = quality.tier(quality_of(record.metadata)) == quality.GOOD
        yield record.session_id, Closing(leaf, taken, record.timestamp)


def _closing_records(files: Iterable[Path]) -> Iterator[TrainingRecord]:
    for path in files:
        for _, line in read_lines(path, 0):
            if _ROUTED not in line:
                continue
            record = decode_line(line)
            if record is not None and record.closes:
                yield record


def in_order(given: Iterable[Vote]) -> list[tuple[LeafId, bool]]:
    """The votes as `router.weights` takes them, oldest first."""
    return [(v.leaf, v.well) for v in sorted(given, key=lambda v: (v.at, v.leaf, v.well))]


def tallied(given: Iterable[Vote]) -> dict[LeafId, tuple[int, int]]:
    """How many sessions of each leaf went well, and how many badly."""
    out: dict[LeafId, tuple[int, int]] = {}
    for vote in given:
        well, badly = out.get(vote.leaf, (0, 0))
        out[vote.leaf] = (well + vote.well, badly + (not vote.well))
    return dict(sorted(out.items()))


def _vote(about: Mapping[str, Any], at: float) -> Vote | None:
    leaf, tier = _answered_by(about), quality.tier(quality_of(about))
    if leaf is None or tier in ("", quality.FAIR):
        return None
    return Vote(leaf, tier == quality.GOOD, at)


def _answered_by(about: Mapping[str, Any]) -> LeafId | None:
    routing = about.get("routing")
    if not isinstance(routing, dict) or routing.get("fallback_used") is not False:
        return None
    leaf = routing.get("leaf_id")
    return LeafId(leaf) if isinstance(leaf, str) and _ID.fullmatch(leaf) else None
