"""The morning report: what a night did, cost and put off, from what was told while it went.

Everything that happens is told to the event file by whichever process did it. So the report is
read from there, and a night that was killed and went on has one report of all its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from leaves.model import Instant

from . import told
from .show import counted, size

LISTED_MAX = 20  # lines of one kind that are kept; the counts are of all
WAITED_MIN_S = 60.0  # what held the night back for less is not worth telling

# Events of the node and its rounds, by the heading under which an owner looks for them.
HEADINGS: Mapping[str, tuple[str, ...]] = {
    "grown": ("stage", "branch"),
    "reshaped": ("split", "merge"),
    "trained": ("judged",),
    "not_trained": ("not trained", "untrained", "unscanned", "left out"),
    "asked": ("proposed", "kept back", "rules wait"),
    "fetched": ("fetched",),
    "accepted": ("accepted",),
    "refused": ("refused",),
    "dropped": ("dropped",),
    "failed": ("round failed", "blocked", "nights damaged", "table damaged", "table kept"),
}
_HEADING_OF = {event: heading for heading, events in HEADINGS.items() for event in events}


class Line(Struct, frozen=True):
    """One event of the file, as `told.EventFile` writes it."""

    at: float
    event: str
    text: str
    data: dict[str, Any] = {}


class Report(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of a report is shown, as a file must hold it to be one."""

    date: str
    began: Annotated[int, Meta(ge=0, le=253_370_764_800)]
    ended: Annotated[int, Meta(ge=0, le=253_370_764_800)]
    minutes: float
    left: list[str]
    sessions: int
    published: int
    counts: dict[str, int]
    put_off: dict[str, float]
    bytes_in: int
    bytes_out: int
    cpu_hours: float
    energy_wh: float
    grown: list[str] = []
    reshaped: list[str] = []
    trained: list[str] = []
    not_trained: list[str] = []
    asked: list[str] = []
    fetched: list[str] = []
    accepted: list[str] = []
    refused: list[str] = []
    dropped: list[str] = []
    failed: list[str] = []


def checked(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as it was read from a file; empty if it cannot be shown."""
    try:
        found: dict[str, Any] = msgspec.to_builtins(msgspec.convert(report, Report))
    except (msgspec.ValidationError, RecursionError):
        return {}
    return found


def lines(home: Path, began: Instant, ended: Instant) -> Iterator[Line]:
    """The events of a stretch of time; lines that cannot be read are left out."""
    path = home / told.FILE
    for file in (path.with_suffix(".jsonl.1"), path):
        try:
            blob = file.read_bytes()
        except OSError:
            continue
        for raw in blob.splitlines():
            try:
                line = msgspec.json.decode(raw, type=Line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if began <= line.at <= ended + 1:
                yield line


def happened(home: Path, began: Instant, ended: Instant) -> dict[str, Any]:
    """What was told in a stretch of time, sorted for an owner; empty headings are left out."""
    texts: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    sessions = published = 0
    for line in lines(home, began, ended):
        match line.event:
            case "embedded":
                sessions += int(line.data.get("sessions", 0))
            case "published":
                published += 1
            case event if heading := _HEADING_OF.get(event):
                counts[heading] = counts.get(heading, 0) + 1
                if len(texts.setdefault(heading, [])) < LISTED_MAX:
                    texts[heading].append(line.text)
    return {"sessions": sessions, "published": published, "counts": counts, **texts}


def headline(report: Mapping[str, Any]) -> str:
    """The report in one line, for the log and for `status`."""
    counts: Mapping[str, int] = report.get("counts", {})
    parts = [f"{report['minutes']:,.0f} min", counted(report["sessions"], "new session")]
    words = (
        ("grown", "changes of stage"),
        ("reshaped", "splits and merges"),
        ("trained", "trainings judged"),
        ("fetched", "leaves fetched"),
        ("accepted", "accepted"),
        ("refused", "refused"),
        ("dropped", "dropped"),
        ("failed", "failed"),
    )
    parts += [f"{counts[name]:,} {word}" for name, word in words if counts.get(name)]
    if report["published"]:
        parts.append("published")
    if report["bytes_in"] or report["bytes_out"]:
        parts.append(f"{size(report['bytes_in'])} in, {size(report['bytes_out'])} out")
    parts.append(f"about {report['energy_wh']:.1f} Wh")
    if left := report.get("left"):
        parts.append(f"put off: {', '.join(left)}")
    return ", ".join(parts)


def put_off(waited_s: Mapping[str, float]) -> dict[str, float]:
    """What held a night back, and for how many minutes, the longest first."""
    told = ((why, seconds) for why, seconds in waited_s.items() if seconds >= WAITED_MIN_S)
    return {why: round(s / 60, 1) for why, s in sorted(told, key=lambda each: -each[1])}
