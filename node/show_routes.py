"""How routing looks on a terminal: values in, lines out. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from leaves.model import Instant

from .show import moment
from .tables import Row

CANDIDATES = (
    *("LEAF", "LEVEL", "COSINE", "HUBNESS", "WEIGHT", "VOTES", "CHOSEN BY", "SCORE", "GATE"),
    "PASSES",
)
TABLES = ("TABLE", "SINCE", "", "LEAVES", "STARTERS", "ACCURACY", "WHY")


def route_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    origin = f" of {result['origin'][:8]}" if result["origin"] else ""
    facts = [
        ("domain", result["leaf_name"]),
        ("confidence", f"{result['confidence']:.3f} (gate {result['gate']:.3f})"),
        ("answered by", f"{result['served_by_name']}{origin}"),
    ]
    for label, loss in result.get("loss", {}).items():
        facts.append((f"loss, {label}", f"{loss:.3f} nats per token of the given answer"))
    if result["trouble"]:
        facts.append(("trouble", result["trouble"]))
    if result["table"] is not None and (standing := result.get("standing")):
        facts.append(("routing", standing))
    return facts


def path_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The way to whoever answers, one step a line."""
    return [("path" if step == 0 else "", line) for step, line in enumerate(result["path"])]


def candidate_rows(result: dict[str, Any]) -> list[Sequence[str]]:
    """Those that were asked, in order; then the nearest that were not.

    "chosen by" is cosine - hubness + weight, less what votes for others take off, each with the
    sign that `--json` gives it: a hub's hubness is positive. "score" is what is held against the
    gate.
    """
    asked: list[Sequence[str]] = [
        (
            each["name"],
            str(each["level"]),
            f"{each['cosine']:.3f}",
            f"{each['hubness']:+.3f}",
            f"{each['weight']:+.3f}",
            "-" if each["votes"] is None else f"{each['votes']:.0%}",
            f"{each['chosen_by']:.3f}",
            f"{each['score']:.3f}",
            f"{each['gate']:.3f}",
            "yes" if each["passes"] else "no",
        )
        for each in result["candidates"]
    ]
    others = [
        (each["name"], str(each["level"]), f"{each['cosine']:.3f}", *("-",) * 6, "not asked")
        for each in result["not_asked"]
    ]
    return asked + others


def votes_facts(votes: dict[str, Any]) -> list[tuple[str, str]]:
    """What became of the sessions that a leaf answered; nothing if none is known."""
    of = votes.get("feedback", {})
    if not of or not of["accepted"] + of["rejected"]:
        return []
    told = f"{of['accepted']:,} accepted, {of['rejected']:,} rejected: weight {of['weight']:+.3f}"
    return [("feedback", told)]


def table_rows(rows: Iterable[Row]) -> list[Sequence[str]]:
    """The tables that are kept, the newest first."""
    out: list[Sequence[str]] = []
    for row in rows:
        note = row.note
        if note is None:
            state = "in force, damaged" if row.in_force else "damaged"
            out.append((str(row.number), "-", state, "-", "-", "-", "its file cannot be read"))
            continue
        accuracy = f"{note.accuracy:.1%} of {note.replayed:,}" if note.accuracy is not None else "-"
        out.append(
            (
                str(row.number),
                moment(Instant(note.at)),
                _state(row),
                f"{note.leaves:,}",
                note.starters.value,
                accuracy,
                note.why,
            )
        )
    return out


def tables_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [
        {
            "table": row.number,
            "in_force": row.in_force,
            "at": row.note.at if row.note else None,
            "kind": row.note.kind.value if row.note else None,
            "why": row.note.why if row.note else None,
            "leaves": row.note.leaves if row.note else None,
            "starters": row.note.starters.value if row.note else None,
            "accuracy": row.note.accuracy if row.note else None,
            "replayed": row.note.replayed if row.note else None,
            "replay": row.note.replay if row.note else None,
            "pinned": row.note.pinned if row.note else None,
        }
        for row in rows
    ]


def _state(row: Row) -> str:
    if row.note is None or not row.in_force:
        return ""
    return "in force, pinned" if row.note.pinned else "in force"
