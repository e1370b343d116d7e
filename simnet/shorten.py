"""From a run that broke to the smallest that breaks alike, and the few events that explain it.

A seed that breaks an invariant at forty nodes under six faults is a puzzle; the same invariant
broken at five nodes under one is nearly an answer. Both searches are bounded by the events they
may play, never by a clock: the answer is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gossip.events import Broadcast, Effect, Event, LeafRetracted, OriginChanged, Received, Send
from gossip.ports import PeerId
from gossip.wire import WireError, decode_sync

from .invariants import shown
from .runs import MUTABLE, Plan, Run, carry_out
from .watch import Change, Watcher

if TYPE_CHECKING:
    from .network import Network, Node

EVENTS_MAX = 1_000_000  # played in search of something smaller
PLAYS_MAX = 40
SIZES = (4, 5, 6, 8, 12, 16, 24, 40)  # of networks that are tried
STORY_MAX = 14  # events shown
EARLIER_MAX = 3  # events of one node, about the same origin, that are followed back
KEPT_MAX = 400_000  # events remembered of a run; older ones are forgotten

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shortest:
    """The smallest run that was found to break alike, and what explains it."""

    run: Run
    story: tuple[str, ...]  # events, oldest first
    plays: int


def shorten(run: Run, tell: Tell = lambda text: None) -> Shortest:
    """Look for a smaller run in which the same invariant breaks; `run` must be broken."""
    assert run.broken is not None
    best, plays, events = run, 0, 0
    tried = {run.plan}
    improved = True
    while improved:
        improved = False
        for plan in _smaller(best):
            if plan in tried:
                continue
            if plays >= PLAYS_MAX or events >= EVENTS_MAX:
                break
            tried.add(plan)
            tell(plan.command)
            other = carry_out(plan)
            plays, events = plays + 1, events + other.events
            if other.broken and other.broken.invariant == run.broken.invariant:
                best, improved = other, True
                break
    return Shortest(best, story(best.plan), plays)


def _smaller(run: Run) -> Iterator[Plan]:
    """What to try next: fewer nodes first, for that makes all that follows cheap."""
    plan = run.plan
    for nodes in SIZES:
        if nodes < plan.nodes:
            yield replace(plan, nodes=nodes)
    for other in (
        replace(plan, loss=0.0),
        replace(plan, duplicate=0.0),
        replace(plan, delay=0.0),
        replace(plan, flip=0.0),
    ):
        if other != plan:
            yield other
    for fault in MUTABLE:
        if fault not in plan.without and any(fault in kind for kind in run.faults):
            yield replace(plan, without=(*plan.without, fault))


def story(plan: Plan) -> tuple[str, ...]:
    """Play a broken plan once more, and tell how it came to what broke."""
    seen: list[_Causes] = []

    def look_on(net: Network) -> _Causes:
        seen.append(_Causes(net))
        return seen[-1]

    run = carry_out(plan, [look_on])
    assert run.broken is not None, "a plan broke once and not again: the run is no function of it"
    return seen[0].story(run.broken.text)


@dataclass(frozen=True, slots=True)
class _Happened:
    """One event at one node, with all that can link it to others."""

    number: int
    at: float
    node: PeerId
    text: str
    heard: bytes  # hash of the frame that arrived, or nothing
    source: PeerId | None
    sent: tuple[bytes, ...]  # hashes of frames
    origins: tuple[bytes, ...]  # that changed by it


class _Causes(Watcher):
    """Remembers what happened at each node, and follows an event back to where it came from."""

    def __init__(self, net: Network) -> None:
        super().__init__(net)
        self._at: dict[PeerId, list[_Happened]] = {}
        self._changes: list[tuple[float, str]] = []
        self._last: _Happened | None = None
        self._count = 0

    def handed(self, node: Node, event: Event, effects: Sequence[Effect]) -> None:
        heard = _hash(event.frame) if isinstance(event, Received) else b""
        frames = [e.frame for e in effects if isinstance(e, Send | Broadcast)]
        origins = [e.origin for e in effects if isinstance(e, OriginChanged | LeafRetracted)]
        self._count += 1
        self._last = _Happened(
            number=self._count,
            at=self.net.now,
            node=node.name,
            text=_told(event),
            heard=heard,
            source=event.peer if isinstance(event, Received) else None,
            sent=tuple(map(_hash, frames)),
            origins=tuple(dict.fromkeys(origins)),
        )
        if self._count <= KEPT_MAX:
            self._at.setdefault(node.name, []).append(self._last)

    def changed(self, kind: Change, name: PeerId | None) -> None:
        self._changes.append((self.net.now, f"{name}  {kind}" if name else f"-  {kind}"))

    def story(self, text: str) -> tuple[str, ...]:
        """The events that explain the last one, and what the scenario did between them."""
        end = self._breaking(text)
        if end is None:
            return ()
        origin = end.origins[-1] if end.origins else None
        chosen: dict[int, _Happened] = {}
        waiting = [end, *self._earlier(end, origin)]
        while waiting and len(chosen) < STORY_MAX:
            event = waiting.pop(0)
            if event.number not in chosen:
                chosen[event.number] = event
                if cause := self._cause(event):
                    waiting.append(cause)
        names_of = {node.origin: node.name for node in reversed(self.net.nodes.values())}
        lines = [(e.at, 1, _line(e, names_of)) for e in chosen.values()]
        first = min(e.at for e in chosen.values())
        names = {str(e.node) for e in chosen.values()} | {"-"}
        done = [c for c in self._changes if c[0] >= first and c[1].split("  ")[0] in names]
        lines += [(at, 0, what) for at, what in done[-STORY_MAX // 2 :]]
        return tuple(f"{at:12.3f}  {what}" for at, _, what in sorted(lines))

    def _breaking(self, text: str) -> _Happened | None:
        """The event to explain: at the node that the text names, else at one that differs."""
        name = PeerId(text.partition(":")[0])
        if name in self._at:
            return self._at[name][-1]
        groups: dict[object, list[PeerId]] = {}
        for node in self.net.up():
            groups.setdefault(shown(node), []).append(node.name)
        odd = min(groups.values(), key=len, default=[])
        changes = [e for each in odd for e in self._at.get(each, []) if e.origins]
        return max(changes, key=lambda e: e.number, default=self._last)

    def _earlier(self, end: _Happened, origin: bytes | None) -> list[_Happened]:
        """What the same node had been told of the same origin before."""
        before = [e for e in self._at.get(end.node, []) if e.number < end.number]
        return [e for e in reversed(before) if origin in e.origins][:EARLIER_MAX]

    def _cause(self, event: _Happened) -> _Happened | None:
        """The sender's last event that sent this frame, or passed it on.

        None if nobody sent it like this: it was altered on the way, or is the scenario's own.
        """
        if event.source is None:
            return None
        for other in reversed(self._at.get(event.source, [])):
            if other.number < event.number and (
                event.heard in other.sent or event.heard == other.heard
            ):
                return other
        return None


def _told(event: Event) -> str:
    match event:
        case Received(peer, frame, _, urgent):
            return f"hears {_kind(frame, urgent=urgent)} from {peer}"
        case _:
            return f"{type(event).__name__} {getattr(event, 'peer', '')}".rstrip()


def _line(event: _Happened, names: Mapping[bytes, PeerId]) -> str:
    changed = ", ".join(names.get(origin, origin.hex()[:8]) for origin in event.origins)
    return f"{event.node}  {event.text}" + (f" -> holds more of {changed}" if changed else "")


def _kind(frame: bytes, *, urgent: bool) -> str:
    try:
        kind = type(decode_sync(frame)).__name__
    except WireError:
        kind = "garbage"
    return f"urgent {kind}" if urgent else kind


def _hash(frame: bytes) -> bytes:
    return hashlib.sha256(frame).digest()[:12]
