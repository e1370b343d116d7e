"""From a run that broke to the smallest that breaks alike, and the few events that explain it.

A seed that breaks an invariant at forty nodes under six faults is a puzzle; the same invariant
broken at five nodes under one is nearly an answer. Both searches are bounded by the events they
may play, never by a clock: the answer is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gossip.core import OriginView
from gossip.events import Broadcast, Effect, Event, LeafRetracted, OriginChanged, Received, Send
from gossip.ports import PeerId
from gossip.wire import Standing, WireError, decode_sync, encode

from .invariants import shown
from .runs import MUTABLE, Broken, Plan, Run, carry_out
from .watch import Change, Watcher

if TYPE_CHECKING:
    from .network import Network, Node

EVENTS_MAX = 1_000_000  # played in search of something smaller
PLAYS_MAX = 40
SIZES = (4, 5, 6, 8, 12, 16, 24, 40)  # of networks that are tried
STORY_MAX = 14  # events shown
HEADS_MAX = 6  # nodes of which it is shown what they hold in the end
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
    """Look for a smaller run that breaks alike; `run` must be broken."""
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
            if other.broken and other.broken.is_like(run.broken):
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
    return seen[0].story(run.broken)


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
    withdrawn: tuple[tuple[bytes, bytes | None], ...] = ()  # (origin, leaf) heard of by it


class _Causes(Watcher):
    """Remembers what happened at each node, and follows an event back to where it came from."""

    def __init__(self, net: Network) -> None:
        super().__init__(net)
        self._at: dict[PeerId, list[_Happened]] = {}
        self._changes: list[tuple[int, float, PeerId | None, Change]] = []  # after which event
        self._last: _Happened | None = None
        self._count = 0
        self._before = net.events  # that nobody looked on at

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
            withdrawn=tuple((e.origin, e.leaf) for e in effects if isinstance(e, LeafRetracted)),
        )
        if self._count <= KEPT_MAX:
            self._at.setdefault(node.name, []).append(self._last)

    def changed(self, kind: Change, name: PeerId | None) -> None:
        self._changes.append((self._count, self.net.now, name, kind))

    def story(self, broken: Broken) -> tuple[str, ...]:
        """The events that explain the last one, what the scenario did between, and who holds what.

        The one that broke it is marked; after it nothing happened.
        """
        end = self._in_hand() or self._breaking(broken.text)
        if end is None:
            return ()
        origin = self._about(broken.text, end)
        chosen: dict[int, _Happened] = {}
        waiting = [end, *self._earlier(end, origin)]
        while waiting and len(chosen) < STORY_MAX:
            event = waiting.pop(0)
            if event.number not in chosen:
                chosen[event.number] = event
                if cause := self._cause(event):
                    waiting.append(cause)
        lines: list[tuple[float, float, str]] = [
            (e.number, e.at, self._line(e)) for e in chosen.values()
        ]
        first = min(chosen)
        names = {None, *(event.node for event in chosen.values())}
        done = [c for c in self._changes if c[0] >= first and c[2] in names]
        # What is done to a node comes before the event that it is followed by.
        lines += [
            (after + 0.5, at, f"{name or '-'}  {kind}")
            for after, at, name, kind in done[-STORY_MAX // 2 :]
        ]
        if starting := self._starting(broken.text):
            lines.append((float(self._count + 1), self.net.now, starting))
        told = [f"{at:12.3f}  {what}" for _, at, what in sorted(lines)]
        told[-1] += "  <- here"
        return (*told, *self._held(origin))

    def _in_hand(self) -> _Happened | None:
        """The event that a core was given and never came back from."""
        if self.net.events - self._before == self._count:
            return None
        at, name, what = self.net.tail[-1]
        return _Happened(self._count + 1, at, name, f"{what}: raises", b"", None, (), ())

    def _starting(self, text: str) -> str:
        """The start at which it broke, of which nobody was told: it was not over."""
        name = PeerId(text.partition(":")[0])
        changes = [kind for _, _, changed, kind in self._changes if changed == name]
        node = self.net.nodes.get(name)
        if node is None or node.replica is None or changes[-1:] != ["crash"]:
            return ""
        return f"{name}  start"

    def _breaking(self, text: str) -> _Happened | None:
        """The event to explain: at the node that the text names, else at one that differs."""
        name = PeerId(text.partition(":")[0])
        if name in self._at:
            told = self._at[name]
            if told[-1].number != self._count:  # it broke at a start: what was lost came before
                lost = [event for event in told if event.withdrawn and "retract" in text]
                lost = [event for event in lost if _names_leaf(event, text)] or lost
                told = lost or [event for event in told if event.origins] or told
            return told[-1]
        groups: dict[object, list[PeerId]] = {}
        for node in self.net.up():
            groups.setdefault(shown(node), []).append(node.name)
        odd = min(groups.values(), key=len, default=[])
        changes = [e for each in odd for e in self._at.get(each, []) if e.origins]
        return max(changes, key=lambda e: e.number, default=self._last)

    def _about(self, text: str, end: _Happened) -> bytes | None:
        """The origin that it is about: one that the text names, else what changed last."""
        about = text.partition(": ")[2] or text
        named = [node.origin for node in self.net.nodes.values() if node.name in about]
        said = [origin for origin in end.origins if origin in named] or list(end.origins) or named
        return said[-1] if said else None

    def _held(self, origin: bytes | None) -> list[str]:
        """What nodes hold of an origin in the end: its own, and whoever holds something else."""
        if origin is None:
            return []
        groups: dict[str, list[PeerId]] = {}
        for node in self.net.up():
            if node.replica is not None:
                groups.setdefault(_head(node.replica.view(origin)), []).append(node.name)
        return [
            f"of {self._name(origin)} {_some(names)}: {head}"
            for head, names in sorted(groups.items(), key=lambda group: len(group[1]))[:HEADS_MAX]
        ]

    def _name(self, origin: bytes) -> str:
        names = (node.name for node in self.net.nodes.values() if node.origin == origin)
        return next(names, origin.hex()[:8])

    def _line(self, event: _Happened) -> str:
        changed = ", ".join(map(self._name, event.origins))
        altered = ""
        if event.source is not None and self._count <= KEPT_MAX and not self._cause(event):
            altered = f" ({event.source} sent no such frame: altered on the way, or put there)"
        more = f" -> holds more of {changed}" if changed else ""
        for origin, leaf in event.withdrawn:
            what = f"leaf {leaf.hex()[:8]}" if leaf else "all"
            more += f", and that {what} of {self._name(origin)} is withdrawn"
        return f"{event.node}  {event.text}{altered}{more}"

    def _earlier(self, end: _Happened, origin: bytes | None) -> list[_Happened]:
        """What the same node had been told of the same origin before."""
        before = [e for e in self._at.get(end.node, []) if e.number < end.number]
        return [e for e in reversed(before) if origin in e.origins][:EARLIER_MAX]

    def _cause(self, event: _Happened) -> _Happened | None:
        """The sender's last event that sent this frame, or passed it on.

        None if it sent none like this: it was altered on the way, or is the scenario's own.
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


def _names_leaf(event: _Happened, text: str) -> bool:
    return any(leaf.hex()[:8] in text for _, leaf in event.withdrawn if leaf)


def _head(view: OriginView) -> str:
    """A head as (epoch, seq) and the beginning of its hash, and what comes of it."""
    head = view.head
    said = f"head ({head.epoch}, {head.seq}) {_hash(encode(head)).hex()[:8]}" if head else "no head"
    leaves = "1 leaf" if len(view.cards) == 1 else f"{len(view.cards)} leaves"
    said += f", {leaves}, {len(view.retracted)} retracted"
    return said if view.standing is Standing.SOUND else f"{said}, {view.standing.name.lower()}"


def _some(names: Sequence[PeerId]) -> str:
    said = ", ".join(names[:HEADS_MAX])
    return said if len(names) <= HEADS_MAX else f"{said} and {len(names) - HEADS_MAX} more"


def _kind(frame: bytes, *, urgent: bool) -> str:
    try:
        kind = type(decode_sync(frame)).__name__
    except WireError:
        kind = "garbage"
    return f"urgent {kind}" if urgent else kind


def _hash(frame: bytes) -> bytes:
    return hashlib.sha256(frame).digest()[:12]
