"""How much leaves of peers are used, coarsely: what this node tells of it, and what it is told.

A round counts in the corpus which sessions went to a peer's leaf and were answered by it, by week,
and how many of the answers were taken; only the logarithms leave the machine, in the table that
this origin signs. What others tell is of use twice. An owner does not archive what others rely on;
and a leaf that too few own sessions can judge is taken on trust once enough origins say that its
answers were accepted there. Made-up origins can say so too: that trust is the weakest there is, and
a leaf on trust is judged as soon as there are sessions to judge it by.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gossip import wire
from leaves.model import Instant, LeafId

from .foreign import State
from .home import write_atomic

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

FILE = "usage.json"
WEEK_S = 168 * wire.HOUR_S
WEEKS = 5  # that are told and counted, this one too: a month, as a leaf's rest needs
ATTESTATIONS = 3  # origins whose users accepted a leaf's answers, to take it on trust


class Used(msgspec.Struct, frozen=True):
    """One foreign leaf in one week, on this node. Exact, so it stays in the home."""

    origin: str  # hex
    leaf: LeafId
    week: int
    routed: int
    accepted: int


def week_of(at: float) -> int:
    """The week of a moment, as the wire counts them: from 1970, of 168 hours."""
    return int(at // WEEK_S)


def told_of(now: Instant) -> range:
    """The weeks of which a peer's word counts: with the next, for its clock may be ahead, but none
    that is yet to come, or a row would count for ever."""
    return range(week_of(now) - WEEKS + 1, week_of(now) + 2)


def counted(files: Iterable[Path], origin_of: Mapping[LeafId, str], now: Instant) -> list[Used]:
    """Count the sessions of the last weeks that foreign leaves answered. Reads the corpus once.

    origin_of: of the foreign leaves that may be routed to. Of two closing records of a session the
    later stands; one that something less specific than its leaf answered is no use of the leaf.
    """
    from .feedback import closings

    since = week_of(now) - WEEKS + 1
    last: dict[str, tuple[LeafId, int, bool]] = {}
    for session, closing in closings(files):
        last.pop(session, None)
        if closing.leaf is None or closing.leaf not in origin_of:
            continue
        if since <= week_of(closing.at) <= week_of(now):
            last[session] = closing.leaf, week_of(closing.at), closing.accepted
    routed: Counter[tuple[LeafId, int]] = Counter()
    accepted: Counter[tuple[LeafId, int]] = Counter()
    for leaf, week, taken in last.values():
        routed[leaf, week] += 1
        accepted[leaf, week] += taken
    return [
        Used(origin_of[leaf], leaf, week, routed[leaf, week], accepted[leaf, week])
        for leaf, week in sorted(routed)
    ]


def origins_of(app: App) -> dict[LeafId, str]:
    """Whose each routed foreign leaf is. Two origins that claim one id are both left out: nobody
    can tell which of them was used."""
    claims: defaultdict[LeafId, set[str]] = defaultdict(set)
    own = app.forests.forest().leaves
    for known in app.foreign.all():
        if known.state is State.ACCEPTED and known.leaf.leaf not in own:
            claims[known.leaf.leaf].add(known.leaf.origin)
    return {leaf: min(origins) for leaf, origins in claims.items() if len(origins) == 1}


def rows(used: Iterable[Used], still: Container[tuple[str, LeafId]]) -> tuple[wire.Usage, ...]:
    """What of it is published: of leaves that are still there, the most used if there are many."""
    kept = [each for each in used if (each.origin, each.leaf) in still]
    kept.sort(key=lambda each: (-each.routed, -each.week, each.origin, each.leaf))
    chosen = kept[: wire.USAGE_ROWS_MAX]
    chosen.sort(key=lambda each: (each.origin, each.leaf, each.week))
    return tuple(
        wire.Usage(
            bytes.fromhex(each.origin),
            bytes.fromhex(each.leaf),
            each.week,
            wire.to_log2(each.routed),
            wire.to_log2(each.accepted),
        )
        for each in chosen
    )


# ---- of one home -------------------------------------------------------------------------------


def count(app: App) -> None:
    """Write down what was used of peers' leaves, for the running node to publish; for a round."""
    origins = origins_of(app)
    used = counted(app.corpus.files(), origins, app.now()) if origins else []
    data = msgspec.json.encode(used)
    path = app.home / FILE
    if (path.read_bytes() if path.exists() else b"[]") != data:
        write_atomic(path, data)


def published(app: App) -> tuple[wire.Usage, ...]:
    """What a head commits to; nothing if the file is damaged: the next round counts again."""
    try:
        used = msgspec.json.decode((app.home / FILE).read_bytes(), type=list[Used])
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError) as problem:
        log.warning("usage cannot be read why=%s", type(problem).__name__)
        return ()
    still = {(known.leaf.origin, known.leaf.leaf) for known in app.foreign.all()}
    return rows(used, still)


def stamp(home: Path) -> int:
    """Changes whenever what was counted does; reads nothing of it."""
    try:
        return (home / FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def by_others(app: App) -> dict[LeafId, int]:
    """Of each own leaf, how many origins report that they use it; for the lifecycle."""
    return app.foreign.users(app.origin.hex(), told_of(app.now()))


def attestations(app: App, origin: str, leaf: LeafId) -> int:
    """How many other origins report accepted sessions of a foreign leaf."""
    return app.foreign.attesting(origin, leaf, told_of(app.now()), without=app.origin.hex())
