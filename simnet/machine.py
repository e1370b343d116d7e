"""One simulated machine: its replica, its disk, its links, its line and its clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from gossip.core import Replica
from gossip.events import Effect, Event
from gossip.keys import Keys
from gossip.ports import PeerId

from .disk import Disk


class Hostile(Protocol):
    """What a byzantine node does: it is asked in place of the replica, which may live on beside it.

    It passes no broadcast on of itself; what it wants others to hear it sends.
    """

    def handle(self, node: Node, event: Event) -> list[Effect]: ...


@dataclass(slots=True)
class Fresh:
    """A broadcast that is still told of at heartbeats, and kept for who asks for it."""

    frame: bytes
    windows: int
    depth: int


@dataclass(slots=True, eq=False)
class Node:
    """One machine: a disk, and while it is up a replica."""

    name: PeerId
    keys: Keys
    disk: Disk
    rng: Random
    replica: Replica | None = None
    life: int = 0  # counts starts; timers of an earlier life are dead
    links: dict[PeerId, None] = field(default_factory=dict)  # whom it connects to at its start
    connected: dict[PeerId, int] = field(default_factory=dict)  # peer -> in which of its lives
    crash_after: int | None = None  # effects of the next event that has any
    hostile: Hostile | None = None
    # The line, and the clock.
    rate_bytes_s: float | None = None  # up and down; None is a line without a limit
    bytes_in: int = 0
    bytes_out: int = 0
    busy_in: float = 0.0  # until when frames queue before this node
    busy_out: float = 0.0
    clock_ahead_s: int = 0  # what its own clock shows beyond true time
    asleep: bool = False
    overslept: dict[bool, None] = field(default_factory=dict)  # timers that came due meanwhile
    depth: int = 0  # the longest chain of frames that ended here since the mark
    # Whom it might dial.
    view: list[PeerId] = field(default_factory=list)  # names heard of, that it is not linked with
    retry: dict[PeerId, tuple[float, float]] = field(default_factory=dict)  # pause, and until when
    dialling: bool = False
    # The urgent plane.
    mesh: dict[PeerId, None] = field(default_factory=dict)  # of its links, whom it pushes to
    grafting: bool = False
    seen: dict[bytes, float] = field(default_factory=dict)  # broadcasts, by hash, and since when
    validating: dict[bytes, dict[PeerId, None]] = field(default_factory=dict)  # and who sent each
    strange: dict[bytes, None] = field(default_factory=dict)  # heard only from who is not linked
    fresh: dict[bytes, Fresh] = field(default_factory=dict)
    asked: dict[bytes, float] = field(default_factory=dict)  # broadcasts asked for, and when
    beating: bool = False
    # For the checker, where it looks at quiet points only.
    unchecked: dict[bytes, None] = field(default_factory=dict)
    pending: deque[Effect] = field(default_factory=deque)

    @property
    def origin(self) -> bytes:
        return self.keys.origin

    @property
    def awake(self) -> bool:
        return self.replica is not None and not self.asleep

    def forget(self) -> None:
        """Lose what is not on the disk, as a process does at its end."""
        for kept in (self.connected, self.mesh, self.retry, self.seen, self.validating):
            kept.clear()
        self.fresh.clear()
        self.asked.clear()
        self.strange.clear()
        self.overslept.clear()
        self.busy_in = self.busy_out = 0.0
        self.asleep = self.dialling = self.beating = self.grafting = False
