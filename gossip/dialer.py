"""Whom to dial, and when: as a state machine, and the small loop that dials.

A peer that fails is tried again after 1 s, 2 s, and so on to 60 s, each with jitter, so that a
mesh that comes back together does not do so in one instant. One that was connected a moment ago
is most likely being restarted: for two minutes it is tried every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import trio
from msgspec import Struct

from .addresses import AddressBook
from .ports import Connected, Disconnected, PeerId
from .transport_config import DialError

log = logging.getLogger(__name__)


class DialerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    links_wanted: int = 8  # then only the owner's peers are dialled
    dials_max: int = 4  # at a time
    retry_s_min: float = 1.0
    retry_s_max: float = 60.0
    unheard_s: float = 5.0  # after a dial that succeeded but made no connection
    lost_s: float = 120.0  # after a connection's end, this long...
    lost_retry_s_max: float = 3.0  # ...it is tried at least this often


@dataclass(slots=True)
class _State:
    """One peer's turn. times in seconds of the loop's clock."""

    due: float = 0.0
    failures: int = 0
    lost_at: float | None = None


class Dialer:
    """Decides; `now` is seconds of any clock that does not go back."""

    def __init__(
        self, own: PeerId, book: AddressBook, rng: Random, config: DialerConfig | None = None
    ) -> None:
        self.book = book
        self._own = own
        self._rng = rng
        self._config = config or DialerConfig()
        self._linked: dict[PeerId, None] = {}
        self._dialling: dict[PeerId, None] = {}
        self._states: dict[PeerId, _State] = {}

    def due(self, now: float) -> list[tuple[PeerId, list[str]]]:
        """Return the peers to dial now, each with its addresses, best first. Each must be
        followed by `reached` or `failed`."""
        chosen = []
        for peer in self._wanted():
            if len(self._dialling) >= self._config.dials_max:
                break
            if self._state(peer).due <= now:
                self._dialling[peer] = None
                chosen.append((peer, self.book.addresses(peer)))
        return chosen

    def next_due(self) -> float | None:
        """Return when `due` may have something next; None if not before something changes."""
        if len(self._dialling) >= self._config.dials_max:
            return None
        return min((self._state(peer).due for peer in self._wanted()), default=None)

    def connected(self, peer: PeerId) -> None:
        self._dialling.pop(peer, None)
        self._linked[peer] = None
        self._states.pop(peer, None)

    def reached(self, peer: PeerId, now: float) -> None:
        """A dial has succeeded. If no `connected` follows, the connection ended unheard."""
        self._dialling.pop(peer, None)
        self._state(peer).due = now + self._config.unheard_s

    def disconnected(self, peer: PeerId, now: float) -> None:
        self._linked.pop(peer, None)
        state = self._state(peer)
        state.lost_at = now
        # Both ends may dial; the jitter makes it unlikely that they do so at once.
        state.due = now + self._rng.uniform(0.1, self._config.retry_s_min)

    def failed(self, peer: PeerId, now: float) -> None:
        self._dialling.pop(peer, None)
        state = self._state(peer)
        pause_s = min(self._config.retry_s_max, self._config.retry_s_min * 2.0**state.failures)
        if state.lost_at is not None and now - state.lost_at < self._config.lost_s:
            pause_s = min(pause_s, self._config.lost_retry_s_max)
        state.failures = min(state.failures + 1, 16)
        state.due = now + pause_s * self._rng.uniform(0.5, 1.0)

    def _wanted(self) -> list[PeerId]:
        """Peers that should be linked and are not, the most wanted first."""
        room = self._config.links_wanted - len(self._linked) - len(self._dialling)
        wanted = []
        for peer in self.book.peers():
            if peer == self._own or peer in self._linked or peer in self._dialling:
                continue
            if self.book.is_owners(peer) or room > 0:
                wanted.append(peer)
                # One that fails keeps no place: the mesh must outlive the owner's peers.
                room -= not self._state(peer).failures
        for peer in [p for p in self._states if not self.book.addresses(p)]:
            del self._states[peer]  # no longer in the book: bounded by it
        return wanted

    def _state(self, peer: PeerId) -> _State:
        return self._states.setdefault(peer, _State())


class DialLoop:
    """Runs a `Dialer`. dial: connects to an address or raises DialError; clock: Unix seconds."""

    def __init__(
        self,
        dialer: Dialer,
        dial: Callable[[str], Awaitable[PeerId]],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._dialer = dialer
        self._dial = dial
        self._clock = clock
        self._stirred = trio.Event()

    def stir(self) -> None:
        """Look again: the address book has changed."""
        self._stirred.set()

    def on_link(self, event: Connected | Disconnected) -> None:
        """Hear of a connection, whoever made it; see `GossipDriver`."""
        match event:
            case Connected(peer, _):
                self._dialer.connected(peer)
            case Disconnected(peer):
                self._dialer.disconnected(peer, trio.current_time())
        self.stir()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._stirred = trio.Event()
                for peer, addresses in self._dialer.due(trio.current_time()):
                    nursery.start_soon(self._try, peer, addresses)
                due = self._dialer.next_due()
                wait_s = float("inf") if due is None else due - trio.current_time()
                with trio.move_on_after(max(0.0, wait_s)):
                    await self._stirred.wait()

    async def _try(self, peer: PeerId, addresses: list[str]) -> None:
        for address in addresses:
            try:
                await self._dial(address)
            except DialError as error:
                self._dialer.book.failed(address)
                log.debug("dial failed address=%s error=%s", address, error)
            else:
                self._dialer.book.succeeded(address, self._clock())
                self._dialer.reached(peer, trio.current_time())
                break
        else:
            self._dialer.failed(peer, trio.current_time())
        self.stir()
