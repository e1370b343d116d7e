"""Whom to dial, and when: as a state machine, and the small loop that dials.

A peer that fails is tried again after 1 s, 2 s, and so on to 60 s, each with jitter, so that a
mesh that comes back together does not do so in one instant; one that nobody but a peer named, up to
15 minutes. One that was connected a moment ago is most likely being restarted: for two minutes it
is tried every few seconds.

Who is linked with hostile peers alone believes what they say. So the links that count are those
that this node made itself: some are made however many others have come in, two of them to different
networks where the book knows such, and no more than half to peers that one other has introduced.

And who believes strangers dials whom they want: where they send this node is counted, see `knocks`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import trio
from msgspec import Struct

from .addresses import BY_MDNS, AddressBook, Entry, place_of
from .knocks import Knocks
from .multiaddrs import CIRCUIT, AddressError, Place, group_of, parse
from .ports import Connected, Disconnected, PeerId
from .transport_config import DialError, DialReason

log = logging.getLogger(__name__)

_NOTE_AGAIN_S = 3600.0  # that a link still works
_NAME_S = 5.0  # to look a name up
_HERE_S = 30.0  # of the local network, where who has just been started is announced too early
_NOT_TRIED = {DialReason.NO_ROUTE, DialReason.NOT_RUNNING}  # say nothing of who was dialled
_ANSWERED = {  # so that there is a network
    *(DialReason.WRONG_SWARM_KEY, DialReason.WRONG_PEER),
    *(DialReason.REFUSED, DialReason.HANDSHAKE),
}
_RELAY_ANSWERED = {DialReason.NO_RESERVATION, DialReason.RELAY_REFUSED}


class DialerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    links_wanted: int = 8  # then only the owner's peers are dialled
    outbound_min: int = 4  # of them dialled by this node, however many have dialled it
    groups_min: int = 2  # networks (/16) that the dialled ones lie in, where there are such
    introduced_share: float = 0.5  # of the links wanted, to peers that one other has introduced
    strangers_h_max: int = 16  # never reached before, dialled on one introducer's word in an hour
    knocks_h_max: int = 60  # dials in an hour of addresses that only strangers have named...
    knocks_host_h_max: int = 4  # ...to one host, or /64 of IPv6, that failed
    dials_max: int = 8  # at a time
    retry_s_min: float = 1.0
    retry_s_max: float = 60.0
    retry_learned_s_max: float = 900.0
    unheard_s: float = 5.0  # after a dial that succeeded but made no connection
    lost_s: float = 120.0  # after a connection's end, this long...
    lost_retry_s_max: float = 3.0  # ...it is tried at least this often
    woken_s: float = 5.0  # after waking, this long, it is dialled in the moment that it is lost
    direct_s_min: float = 10.0  # a peer linked through a relay is then dialled directly
    direct_s_max: float = 300.0
    stagger_s: float = 1.0  # then the next address is tried beside one that has not answered


@dataclass(slots=True)
class _State:
    """One peer's turn. times in seconds of the loop's clock."""

    due: float = 0.0
    failures: int = 0
    lost_at: float | None = None
    reached: bool = False  # dialled, and not yet told of as connected


@dataclass(slots=True)
class _Link:
    """One connected peer."""

    address: str
    outbound: bool
    direct_due: float | None = None  # of one through a relay
    direct_failures: int = 0


@dataclass(slots=True)
class _Spent:
    """Dials of strangers on one introducer's word."""

    since: float
    dials: int = 0


class Dialer:
    """Decides; `now` is seconds of any clock that does not go back."""

    def __init__(
        self, own: PeerId, book: AddressBook, rng: Random, config: DialerConfig | None = None
    ) -> None:
        self.book = book
        self._own = own
        self._rng = rng
        self._config = config or DialerConfig()
        self._linked: dict[PeerId, _Link] = {}
        self._dialling: dict[PeerId, None] = {}
        self._states: dict[PeerId, _State] = {}
        self._spent: dict[str, _Spent] = {}  # by introducer
        self._knocks = Knocks(self._config.knocks_h_max, self._config.knocks_host_h_max)
        self._woke_at: float | None = None

    def due(self, now: float) -> list[tuple[PeerId, list[str]]]:
        """Return the peers to dial now, each with its addresses, best first. Each must be
        followed by `reached` or `failed`."""
        chosen = []
        for peer in self._wanted(now):
            if len(self._dialling) >= self._config.dials_max:
                break
            if self._due_at(peer, now) <= now:
                self._spend(peer, now)
                self._dialling[peer] = None
                chosen.append((peer, self._knock(self.book.entries(peer), now)))
        for peer, link in self._linked.items():
            if link.direct_due is None or peer in self._dialling:
                continue
            if len(self._dialling) >= self._config.dials_max:
                break
            direct = self._direct(peer)
            if max(link.direct_due, self._free_at(direct, now)) <= now:
                self._dialling[peer] = None
                chosen.append((peer, self._knock(direct, now)))
        return chosen

    def next_due(self, now: float = 0.0) -> float | None:
        """Return when `due` may have something next; None if not before something changes."""
        if len(self._dialling) >= self._config.dials_max:
            return None
        times = [self._due_at(peer, now) for peer in self._wanted(now)]
        times += [
            max(link.direct_due, self._free_at(direct, now))
            for peer, link in self._linked.items()
            if link.direct_due is not None and peer not in self._dialling
            if (direct := self._direct(peer))
        ]
        return min(times, default=None)

    def connected(
        self, peer: PeerId, address: str = "", now: float = 0.0, *, inbound: bool = False
    ) -> None:
        state = self._states.pop(peer, None)
        dialled = peer in self._dialling or (state is not None and state.reached)
        outbound = dialled and not inbound
        self._dialling.pop(peer, None)
        if address and not address.endswith(f"/p2p/{peer}"):
            address = f"{address}/p2p/{peer}"  # libp2p leaves it out; the book does not
        relayed = CIRCUIT in address
        self._linked[peer] = _Link(
            address, outbound, now + self._config.direct_s_min if relayed else None
        )

    def reached(self, peer: PeerId, now: float) -> None:
        """A dial has succeeded. If no `connected` follows, the connection ended unheard."""
        self._dialling.pop(peer, None)
        if link := self._linked.get(peer):
            link.direct_due = None  # one through a relay has become a direct one, or was no other
            return
        state = self._state(peer)
        state.due, state.reached = now + self._config.unheard_s, True

    def disconnected(self, peer: PeerId, now: float) -> None:
        self._linked.pop(peer, None)
        state = self._state(peer)
        state.lost_at = now
        # Both ends may dial; the jitter makes it unlikely that they do so at once. After a sleep
        # or on a new network it is this end alone that knows of it.
        alone = self._woke_at is not None and now - self._woke_at < self._config.woken_s
        state.due = now if alone else now + self._rng.uniform(0.1, self._config.retry_s_min)

    def failed(self, peer: PeerId, now: float) -> None:
        self._dialling.pop(peer, None)
        config = self._config
        if link := self._linked.get(peer):
            pause_s = min(config.direct_s_max, config.direct_s_min * 2.0**link.direct_failures)
            link.direct_failures = min(link.direct_failures + 1, 16)
            if link.direct_due is not None:
                link.direct_due = now + pause_s * self._rng.uniform(0.5, 1.0)
            return
        state = self._state(peer)
        owners = self.book.is_owners(peer)
        longest_s = config.retry_s_max if owners else config.retry_learned_s_max
        pause_s = min(longest_s, config.retry_s_min * 2.0**state.failures)
        if state.lost_at is not None and now - state.lost_at < config.lost_s:
            pause_s = min(pause_s, config.lost_retry_s_max)
        state.failures = min(state.failures + 1, 16)
        state.due = now + pause_s * self._rng.uniform(0.5, 1.0)

    def given_up(self, peer: PeerId) -> None:
        """A dial was called off: it says nothing of the peer."""
        self._dialling.pop(peer, None)

    def answered(self, address: str) -> None:
        """Who was meant has answered there, if only to say no."""
        with suppress(AddressError):
            self._knocks.opened(parse(address))

    @property
    def is_alone(self) -> bool:
        """True while nobody is linked: what fails then may fail for want of a network."""
        return not self._linked

    def is_linked(self, peer: PeerId) -> bool:
        """True of who is linked, and not through a relay."""
        return peer in self._linked and CIRCUIT not in self._linked[peer].address

    @property
    def stagger_s(self) -> float:
        return self._config.stagger_s

    def woke(self, now: float) -> None:
        """The machine has slept, or its network is another one: no wait has a meaning any more."""
        self._woke_at = now
        self._states.clear()
        self._spent.clear()
        self._knocks.forgive()
        self.book.forgive()
        for link in self._linked.values():
            link.direct_failures = 0
            if link.direct_due is not None:
                link.direct_due = now

    def outbound(self) -> list[tuple[PeerId, str]]:
        """The links that this node made, and the addresses they lead to."""
        return [(peer, link.address) for peer, link in self._linked.items() if link.outbound]

    def _wanted(self, now: float) -> list[PeerId]:
        """Peers that should be linked and are not, the most wanted first."""
        config = self._config
        made = [peer for peer, link in self._linked.items() if link.outbound]
        made += [peer for peer in self._dialling if peer not in self._linked]
        under_way = sum(peer not in self._linked for peer in self._dialling)
        room = max(
            config.links_wanted - len(self._linked) - under_way, config.outbound_min - len(made)
        )
        groups = {self._group(peer) for peer in made}
        named = Counter(self.book.introducer(peer) for peer in made)
        wanted, strangers = [], []
        for peer in self.book.peers():
            if peer == self._own or peer in self._linked or peer in self._dialling:
                continue
            if self.book.is_owners(peer):
                wanted.append(peer)
                # One that fails keeps no place: the mesh must outlive the owner's peers.
                room -= not self._state(peer).failures
                groups |= set() if self._state(peer).failures else {self._group(peer)}
            else:
                strangers.append(peer)
        share = max(1, int(config.links_wanted * config.introduced_share))
        for peer in self._spread(strangers, groups):
            apart = len(groups) < config.groups_min and self._group(peer) not in groups
            by = self.book.introducer(peer)
            if (room <= 0 and not apart) or (by and named[by] >= share):
                continue
            wanted.append(peer)
            # Nor does one that waits for its turn, or strangers would keep out who is known.
            if not self._state(peer).failures and self._turn_at(peer, now) <= now:
                room -= 1
                groups.add(self._group(peer))
                named[by] += 1
        for peer in [p for p in self._states if p not in self.book]:
            del self._states[peer]  # no longer in the book: bounded by it
        return wanted

    def _spread(self, strangers: list[PeerId], groups: set[str]) -> list[PeerId]:
        """In the order given, but first one of each network that is still lacking."""
        first: dict[str, PeerId] = {}
        for peer in strangers:
            if len(groups) + len(first) >= self._config.groups_min:
                break
            if (group := self._group(peer)) not in groups:
                first.setdefault(group, peer)
        lacking = set(first.values())
        return [*first.values(), *(peer for peer in strangers if peer not in lacking)]

    def _group(self, peer: PeerId) -> str:
        link = self._linked.get(peer)
        known = next(iter(self.book.addresses(peer)), "")
        address = link.address if link and link.address else known
        return group_of(address)

    def _direct(self, peer: PeerId) -> list[Entry]:
        return [entry for entry in self.book.entries(peer) if CIRCUIT not in entry.address]

    def _due_at(self, peer: PeerId, now: float) -> float:
        return max(self._state(peer).due, self._turn_at(peer, now))

    def _turn_at(self, peer: PeerId, now: float) -> float:
        """When a peer may be dialled, as far as strangers have spent what they have; 0 if now."""
        turn = self._free_at(self.book.entries(peer), now)
        spent = self._spent.get(self.book.introducer(peer))
        if spent is None or self.book.is_proven(peer) or now - spent.since >= 3600.0:
            return turn
        full = spent.dials >= self._config.strangers_h_max
        return max(turn, spent.since + 3600.0) if full else turn

    def _free_at(self, entries: list[Entry], now: float) -> float:
        """When one of these may be dialled; 0 if now."""
        free = min((self._entry_free_at(entry, now) for entry in entries), default=now)
        return free if free > now else 0.0

    def _entry_free_at(self, entry: Entry, now: float) -> float:
        place = parse(entry.address)
        # Through a relay that is linked nobody is dialled but the relay asked.
        if not entry.is_strangers or place.relay in self._linked:
            return now
        vouched = entry.by != place.peer and self.book.is_proven(PeerId(entry.by))
        return self._knocks.free_at(place, now, vouched=vouched)

    def _knock(self, entries: list[Entry], now: float) -> list[str]:
        """Those of the addresses that may be dialled now, which they then are."""
        chosen = []
        for entry in entries:
            if self._entry_free_at(entry, now) > now:
                continue
            place = parse(entry.address)
            if entry.is_strangers and place.relay not in self._linked:
                pause_s = _HERE_S if entry.by == BY_MDNS else 3600.0
                self._knocks.knock(place, now, pause_s)
            chosen.append(entry.address)
        return chosen

    def _spend(self, peer: PeerId, now: float) -> None:
        by = self.book.introducer(peer)
        if not by or self.book.is_proven(peer):
            return
        for old in [each for each, spent in self._spent.items() if now - spent.since >= 3600.0]:
            del self._spent[old]
        self._spent.setdefault(by, _Spent(now)).dials += 1

    def _state(self, peer: PeerId) -> _State:
        return self._states.setdefault(peer, _State())


class DialLoop:
    """Runs a `Dialer`. dial: connects to an address or raises DialError; clock: Unix seconds.

    probe: True if a linked peer answers within so many seconds; one that does not it disconnects.
    """

    def __init__(
        self,
        dialer: Dialer,
        dial: Callable[[str], Awaitable[PeerId]],
        *,
        clock: Callable[[], float],
        probe: Callable[[PeerId, float], Awaitable[bool]] | None = None,
    ) -> None:
        self._dialer = dialer
        self._dial = dial
        self._clock = clock
        self._probe = probe
        self._stirred = trio.Event()
        self._linked: dict[PeerId, None] = {}
        self._trying: dict[trio.CancelScope, None] = {}
        self._nursery: trio.Nursery | None = None

    def stir(self) -> None:
        """Look again: the address book has changed."""
        self._stirred.set()

    def on_link(self, event: Connected | Disconnected) -> None:
        """Hear of a connection, whoever made it; see `GossipDriver`."""
        match event:
            case Connected(peer, address, inbound):
                self._linked[peer] = None
                self._dialer.connected(peer, address, trio.current_time(), inbound=inbound)
            case Disconnected(peer):
                self._linked.pop(peer, None)
                self._note_links()  # up to now it worked
                self._dialer.disconnected(peer, trio.current_time())
        self.stir()

    def woke(self, answer_s: float = 3.0) -> None:
        """The machine has slept or its network is another one: dial everybody at once, and ask the
        links that are left whether they live. What was being dialled is given up: a connection
        that is begun on a network that is gone takes its whole deadline to fail."""
        self._dialer.woke(trio.current_time())
        for scope in list(self._trying):
            scope.cancel()
        if self._nursery is not None and self._probe is not None:
            for peer in list(self._linked):
                self._nursery.start_soon(self._ask, peer, answer_s)
        self.stir()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                self._stirred = trio.Event()
                now = trio.current_time()
                self._note_links(_NOTE_AGAIN_S)
                for peer, addresses in self._dialer.due(now):
                    nursery.start_soon(self._try, peer, addresses)
                due = self._dialer.next_due(now)
                wait_s = _NOTE_AGAIN_S if due is None else due - trio.current_time()
                with trio.move_on_after(max(0.0, wait_s)):
                    await self._stirred.wait()

    def _note_links(self, older_s: float = 60.0) -> None:
        """Have the book know what works still: after a restart it is dialled first."""
        now_s, book = self._clock(), self._dialer.book
        last = {entry.address: entry.last_ok_s for entry in book}
        for _, address in self._dialer.outbound():
            if address in last and now_s - last[address] >= older_s:
                book.succeeded(address, now_s)

    async def _ask(self, peer: PeerId, answer_s: float) -> None:
        assert self._probe is not None
        if not await self._probe(peer, answer_s):
            log.info("link is dead peer=%s", peer)

    async def _try(self, peer: PeerId, addresses: list[str]) -> None:
        """Dial a peer's addresses, each a little after the one before, until one answers."""
        reached = False
        with trio.CancelScope() as scope:
            self._trying[scope] = None
            try:
                reached = await self._race(peer, addresses)
            finally:
                del self._trying[scope]
        if reached:
            self._dialer.reached(peer, trio.current_time())
        elif scope.cancelled_caught:
            self._dialer.given_up(peer)
        else:
            self._dialer.failed(peer, trio.current_time())
        self.stir()

    async def _race(self, peer: PeerId, addresses: list[str]) -> bool:
        won = False
        stagger_s = self._dialer.stagger_s
        ended = [trio.Event() for _ in addresses]

        async def attempt(number: int, address: str) -> None:
            nonlocal won
            with trio.move_on_after(number * stagger_s):
                for before in ended[:number]:
                    await before.wait()  # those that failed at once hold up nobody
            if await self._reaches(peer, address):
                won = True
                nursery.cancel_scope.cancel()
            ended[number].set()

        async with trio.open_nursery() as nursery:
            for number, address in enumerate(addresses):
                nursery.start_soon(attempt, number, address)
        return won

    async def _reaches(self, peer: PeerId, address: str) -> bool:
        book = self._dialer.book
        # A peer may come in while it is dialled where it never was; then nobody is dialled at all.
        linked = self._dialer.is_linked(peer)
        try:
            for each in await looked_up(address):
                await self._dial(each)
                break
        except DialError as error:
            self._note_failure(address, error)
            return False
        if not linked:
            self._dialer.answered(address)
            book.succeeded(address, self._clock())
        return True

    def _note_failure(self, address: str, error: DialError) -> None:
        """Have the book know of it, if it says anything of the address: an outage must not make
        those look bad that were always there."""
        log.debug("dial failed address=%s error=%s", address, error)
        if error.reason in _RELAY_ANSWERED:
            self._dialer.answered(address)
        book = self._dialer.book
        blameless = error.reason in _NOT_TRIED and not book.is_strangers(address)
        offline = self._dialer.is_alone and error.reason not in _ANSWERED
        if not (blameless or offline):
            book.failed(address, self._clock())


async def looked_up(address: str) -> list[str]:
    """Return the address, or those that its name stands for. Raises DialError."""
    try:
        place = place_of(address)
    except AddressError as error:
        raise DialError(str(error)) from None
    if not isinstance(place.host, str):
        return [address]
    family = {"dns4": trio.socket.AF_INET, "dns6": trio.socket.AF_INET6}.get(
        place.kind, trio.socket.AF_UNSPEC
    )
    try:
        with trio.fail_after(_NAME_S):
            found = await trio.socket.getaddrinfo(
                place.host, place.port, family, trio.socket.SOCK_STREAM
            )
    except (OSError, trio.TooSlowError, UnicodeError) as error:
        raise DialError(f"{address}: the name cannot be looked up: {error}") from None
    meant = []
    for kind, _, _, _, (host, *_rest) in found:
        version = "ip6" if kind == trio.socket.AF_INET6 else "ip4"
        meant.append(str(Place(version, host, place.port, place.relay, place.peer)))
    return list(dict.fromkeys(meant))
