"""Which sessions may teach and be shown: those in which a second, independent scan finds nothing.

Every session is scanned once under each version of the rules, by the round that would train on it.
What is remembered holds no text: hashes of what was scanned, and the rule of each find. A leaf that
was trained on a session in which something is found later is not published until it was trained
anew without it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from leaves.model import LeafId
from leaves.ports import Progress, Report, silent
from leaves.store import ForestStore, Role

from .home import write_atomic

if TYPE_CHECKING:
    from .capture.second_scan import SecondScan
    from .capture.sessions import Session

log = logging.getLogger(__name__)

FILE = "second_scan.json"
_STEP = 500  # sessions between two signs of progress
_ID_BYTES = 8
_ENTRY_BYTES = 2 * _ID_BYTES


class Memory(msgspec.Struct, frozen=True):
    """What is on disk. `scanned` is a hash of a session's id and one of its texts, end to end."""

    rules: str = ""
    scanned: bytes = b""
    hits: dict[str, str] = {}

    def entries(self) -> dict[bytes, bytes]:
        """Hash of the id → hash of the texts."""
        blob = self.scanned
        return {
            blob[i : i + _ID_BYTES]: blob[i + _ID_BYTES : i + _ENTRY_BYTES]
            for i in range(0, len(blob), _ENTRY_BYTES)
        }


@dataclass(frozen=True, slots=True)
class Screened:
    """The sessions that may be used; `hits` gives the rule that took each of the others out."""

    sessions: tuple[Session, ...]
    hits: dict[str, str]
    scanned: int  # of them, now

    def told(self) -> str:
        """Why sessions were left out, for the owner."""
        rules = ", ".join(f"{rule} {n:,}" for rule, n in Counter(self.hits.values()).most_common())
        return f"second scan: {len(self.hits):,} sessions left out ({rules})"


def screened(
    home: Path, sessions: Sequence[Session], scan: SecondScan, report: Report = silent
) -> Screened:
    """Scan what was not scanned yet under the rules of today, and keep what is clean.

    100,000 sessions of 2 KB take about 10 s the first time, and no scan later. Raises
    SecondScanError if the scanner cannot be run: nothing has been screened then.
    """
    from .capture.second_scan import rules_version

    before = read(home)
    same = before.rules == rules_version()
    known = before.entries() if same else {}
    now = {session.session_id: _entry(session) for session in sessions}
    hits = {id_: rule for id_, rule in before.hits.items() if same and id_ in now}
    due = [s for s in sessions if known.get(now[s.session_id][0]) != now[s.session_id][1]]
    for start in range(0, len(due), _STEP):
        step = due[start : start + _STEP]
        for session, rule in zip(step, scan.scan([_text(s) for s in step]), strict=True):
            hits.pop(session.session_id, None)
            if rule:
                hits[session.session_id] = rule
        report(Progress("second scan", start + len(step), len(due)))
    scanned = b"".join(sorted(id_ + texts for id_, texts in now.values()))
    memory = Memory(rules_version(), scanned, dict(sorted(hits.items())))
    if memory != before:
        write_atomic(home / FILE, msgspec.json.encode(memory))
    if hits:
        log.warning("sessions left out by the second scan count=%d", len(hits))
    clean = tuple(session for session in sessions if session.session_id not in hits)
    return Screened(clean, hits, len(due))


def read(home: Path) -> Memory:
    """What was found so far; empty if nothing was scanned, or if the file is damaged."""
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=Memory)
    except FileNotFoundError:
        return Memory()
    except msgspec.DecodeError:
        log.warning("second scan forgotten: its file is damaged; all sessions are scanned again")
        return Memory()


def forget(home: Path, session_ids: Iterable[str]) -> None:
    """Keep nothing of sessions that are gone; may be repeated."""
    before = read(home)
    gone = set(session_ids)
    hashes = set(map(_id_hash, gone))
    entries = before.entries().items()
    scanned = b"".join(id_ + texts for id_, texts in entries if id_ not in hashes)
    hits = {id_: rule for id_, rule in before.hits.items() if id_ not in gone}
    memory = Memory(before.rules, scanned, hits)
    if memory != before:
        write_atomic(home / FILE, msgspec.json.encode(memory))


def stamp(home: Path) -> int:
    """Changes whenever what is remembered does; reads nothing of it."""
    try:
        return (home / FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def left_out(home: Path) -> dict[str, int]:
    """How many sessions the second scan took out, by rule."""
    return dict(Counter(read(home).hits.values()).most_common())


def withheld(home: Path, store: ForestStore, leaves: Iterable[LeafId]) -> dict[LeafId, str]:
    """Leaves that were trained on what is not known to be clean, and why; not to be published."""
    from .capture.second_scan import rules_version

    memory = read(home)
    clean = memory.entries().keys() if memory.rules == rules_version() else frozenset()
    reasons: dict[LeafId, str] = {}
    for leaf in leaves:
        used = store.used(leaf, Role.TRAIN) | store.used(leaf, Role.CONTROL)
        if rules := sorted({memory.hits[id_] for id_ in used if id_ in memory.hits}):
            reasons[leaf] = f"the second scan found {rules[0]} in what it was trained on"
        elif not all(_id_hash(id_) in clean for id_ in used):
            reasons[leaf] = "what it was trained on waits for the second scan"
    return reasons


def _text(session: Session) -> str:
    edited: str = getattr(session, "edited", "")
    return "\n\n".join((session.prompt, session.completion, edited))


def _entry(session: Session) -> tuple[bytes, bytes]:
    texts = hashlib.blake2b(_text(session).encode("utf-8", "replace"), digest_size=_ID_BYTES)
    return _id_hash(session.session_id), texts.digest()


def _id_hash(session_id: str) -> bytes:
    return hashlib.blake2b(session_id.encode(), digest_size=_ID_BYTES).digest()
