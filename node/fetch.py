"""From a peer's card to a leaf that may serve here: fetch by hash, check, judge on own sessions.

A peer's claims count for nothing. A bundle is taken only if its form is exactly what the chassis
allows, and a leaf is routed to only if it wins its trial on this node's own sessions (`trial`).
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from gossip.downloads import FetchError, FetchResult
from gossip.driver import GossipDriver
from gossip.exchange import CONTRADICTS_CARD, NO_HOLDER, TOO_LARGE, TOO_OFTEN
from gossip.patience import NO_PROGRESS, TOO_SLOW
from gossip.wire import CHUNK_BYTES, CHUNKS_MAX
from leaves.bundle import (
    LABEL_BYTES_MAX,
    RANKS,
    BundleError,
    CheckedBundle,
    check_form,
    encode_label,
)
from leaves.training.child import TrainingError
from leaves.training.evaluate import HELD_OUT_MIN

from .errors import OwnerError
from .foreign import SERVED, WANTED, Known, State
from .shelf import Shelf
from .told import Tell, Told
from .trial import tried
from .usage import ATTESTATIONS, attestations

if TYPE_CHECKING:
    from leaves.training.chassis import Chassis

    from .app import App

log = logging.getLogger(__name__)

EVICTED = "evicted"  # in a leaf's detail: it made room; it comes again by hand, or when changed
CANDIDATES_MAX = 256  # leaves looked at in one go; of more, another draw comes with the next
FAILURES_FREE = 2  # then a leaf that cannot be had is asked for ever more rarely...
PAUSE_S, PAUSE_S_MAX = 60.0, 3600.0  # ...at first after this long, at last this often
_STAYS = "what has come stays: fetch it again to go on from there"
WHY = {  # what the owner is told of a fetch by hand, by the exchange's reason
    NO_HOLDER: "none of the connected peers has it; its origin, or a peer that uses it, must be "
    "connected: dial one with `groove-node peers add`",
    NO_PROGRESS: f"for minutes no peer gave anything of it; {_STAYS}, or connect to other peers",
    TOO_SLOW: f"the peers that have it give it too slowly; {_STAYS}",
    TOO_LARGE: "it is larger than `bundle_bytes_max` under [exchange] in groove.toml allows",
    CONTRADICTS_CARD: "its origin's card names a bundle that is none; it can be had once that "
    "origin publishes the leaf anew",
    TOO_OFTEN: f"peers came, gave nothing and went too often; {_STAYS}",
}
_FRAME_BYTES = (1 << 20) + 4096  # what a bundle holds besides its label and tensors, at most


@dataclass(frozen=True, slots=True)
class Fetched:
    """A leaf's bundle and its style control's, checked and on disk."""

    leaf: CheckedBundle
    control: CheckedBundle
    sources: dict[str, int]
    size_bytes: int


class _GaveWayError(Exception):
    """The owner waits for another leaf."""


class Fetcher:
    """Brings foreign leaves from HEARD to ACCEPTED or REFUSED, one at a time."""

    def __init__(
        self,
        app: App,
        driver: GossipDriver,
        serve: Callable[[], Awaitable[None]],
        tell: Tell,
        rng: Random,
        may: Callable[[], bool] = lambda: True,
    ) -> None:
        """serve: answers for the bundles that may be had now. may: whether something may be
        fetched now that nobody waits for; what may not waits until woken again."""
        self._app = app
        self._driver = driver
        self._serve = serve
        self._tell = tell
        self._rng = rng
        self._aside = app.adapters.in_thread
        self._may = may
        self._shelf = Shelf.of(app)
        self._woken = trio.Event()
        self._rested = trio.Event()
        self._rested.set()
        self._turn = trio.Lock()
        self._by_hand = False  # the leaf whose turn it is
        self._unattended: trio.CancelScope | None = None  # the fetch under way that nobody awaits
        self._waited_for = 0  # leaves that the owner asked for and has not got yet
        self._coming: set[str] = set()  # roots of the leaf whose turn it is
        self._failures: Counter[str] = Counter()  # by origin, since it last gave what it promised
        self._tries: dict[str, tuple[int, float]] = {}  # root → failures, not before

    def wake(self) -> None:
        """There may be something new to fetch."""
        self._woken.set()
        if self._rested.is_set():
            self._rested = trio.Event()

    @property
    def by_hand(self) -> bool:
        """True while the owner waits for a leaf, also for its turn behind one that is held."""
        return self._waited_for > 0

    async def at_rest(self) -> None:
        """Return once all that was wanted at the last `wake` has been tried, or may not be now."""
        await self._rested.wait()

    async def run(self) -> None:
        """Fetch what is wanted whenever woken."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            await self._bring_wanted()
            if not self._woken.is_set():
                self._rested.set()

    async def _bring_wanted(self) -> None:
        if not self._may():
            return
        wanted = await self._aside(partial(self._wanted, trio.current_time()))
        if wanted:
            delay_s = self._app.config.mesh.fetch_delay_s
            await trio.sleep(self._rng.uniform(delay_s / 2, delay_s))
        self._rng.shuffle(wanted)  # so that peers who want the same do not ask in one order
        # An origin that fails must not hold up the others, however many leaves it names.
        wanted.sort(key=lambda known: self._failures[known.leaf.origin])
        for known in wanted:
            if not self._may():
                return
            await self.bring(known)
            if self._woken.is_set():
                return  # something better may have come

    async def bring(self, known: Known, *, by_hand: bool = False) -> Known:
        """Fetch, check and judge one leaf; returns how far it came.

        by_hand: the owner asked for it, so it is held to no budget of bytes, a fetch that nobody
        waits for gives way to it, and if it cannot be had an OwnerError says why.
        """
        self._waited_for += by_hand
        if by_hand and self._unattended is not None:
            self._unattended.cancel()
        try:
            return await self._in_turn(known, by_hand=by_hand)
        finally:
            self._waited_for -= by_hand

    async def _in_turn(self, known: Known, *, by_hand: bool) -> Known:
        async with self._turn:
            self._by_hand = by_hand
            now = self._app.foreign.get(known.leaf.origin, known.leaf.leaf)
            if now is None or now.leaf.root is None:
                if by_hand:
                    raise _not_had("its origin has withdrawn it")
                return known  # it went while it waited for its turn
            root = now.leaf.root
            self._coming = {root}
            if now.detail.get(EVICTED):
                now = self._app.foreign.settle(now, now.state, {EVICTED: False, "reason": ""})
            try:
                settled = await self._bring(now)
            except (FetchError, TrainingError, OSError) as problem:
                self._failed(now)
                log.info("bundle not had leaf=%s reason=%s", now.leaf.leaf, problem)
                if by_hand:
                    reason = problem.reason if isinstance(problem, FetchError) else ""
                    raise _not_had(WHY.get(reason, str(problem))) from problem
                return now  # asked for again later
            except _GaveWayError:
                self.wake()  # its turn comes again, and it is nobody's failure
                return now
            finally:
                self._coming = set()
                self._by_hand = False
                await self.tidy()
            if settled.state is State.ACCEPTED:
                self._failures.pop(now.leaf.origin, None)
            if settled.state is State.REFUSED:
                self._failures[now.leaf.origin] += 1
            self._tries.pop(root, None)
            return settled

    async def tidy(self) -> None:
        """Delete the bundles of peers' leaves that are gone, changed or refused, and not pinned."""
        needed = self._app.foreign.roots(WANTED) | self._app.own_roots()
        needed |= self._shelf.pinned_roots(self._app.foreign.all())
        for root in self._app.foreign.expected():
            if root not in needed and root not in self._coming:
                await self._driver.remove_bundle(bytes.fromhex(root))
                self._app.foreign.removed(root)

    async def let_go(self, gone: Sequence[Known]) -> None:
        """Stop at once to fetch what is no longer there to be had, and tidy up."""
        self._coming -= {known.leaf.root for known in gone if known.leaf.root}
        await self.tidy()

    async def _bring(self, known: Known) -> Known:
        try:
            fetched = await self._fetch(known)
            label = fetched.leaf.label
            known = self._settled(known, State.FETCHED, _origins(fetched), shown(label.name))
            await self._serve()  # how good it is, each node finds out for itself
            control = fetched.leaf.label.control_root
            state, detail = await self._aside(partial(tried, self._app, known, control))
        except BundleError as problem:
            state, detail = State.REFUSED, {"reason": str(problem)}
        if not self._is_current(known):
            return known
        known = self._settled(known, state, detail)
        if state in (State.ACCEPTED, State.REFUSED):  # it may have been routed to until now
            await self._aside(self._app.deploy)
            await self._serve()
        return known

    def _failed(self, known: Known) -> None:
        assert known.leaf.root is not None
        self._failures[known.leaf.origin] += 1
        tries = self._tries.get(known.leaf.root, (0, 0.0))[0] + 1
        beyond = tries - FAILURES_FREE
        pause_s = min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(beyond, 16)) if beyond > 0 else 0.0
        self._tries.pop(known.leaf.root, None)
        self._tries[known.leaf.root] = (tries, trio.current_time() + pause_s)
        if len(self._tries) > 10_000:
            del self._tries[next(iter(self._tries))]
        if len(self._failures) > 10_000:
            del self._failures[next(iter(self._failures))]

    def _wanted(self, now: float) -> list[Known]:
        """Mature leaves on our chassis, in a region where we have sessions to judge them by."""
        if not self._app.allows("fetch"):
            return []
        chassis, foreign = self._app.chassis.tag8.hex(), self._app.foreign
        heard = [
            known
            for known in (*foreign.unsettled(chassis), *foreign.on_trust(chassis))
            if self._tries.get(known.leaf.root or "", (0, 0.0))[1] <= now
            and not known.detail.get(EVICTED)
        ]
        if len(heard) > CANDIDATES_MAX:
            heard = self._rng.sample(heard, CANDIDATES_MAX)
        regions = self._app.regions([known.leaf for known in heard])
        return [
            known
            for known, rows in zip(heard, regions, strict=True)
            if len(rows) >= HELD_OUT_MIN or (rows and self._vouched(known))
        ]

    def _vouched(self, known: Known) -> bool:
        """True of a leaf that is not routed to yet and may be, on the word of others."""
        count = attestations(self._app, known.leaf.origin, known.leaf.leaf)
        return known.state is not State.ACCEPTED and count >= ATTESTATIONS

    async def _fetch(self, known: Known) -> Fetched:
        assert known.leaf.root is not None
        result = await self._get(known.leaf.root, known.leaf.size_bytes)
        leaf = await self._aside(partial(self._check, known.leaf.root))
        if hashlib.sha256(encode_label(leaf.label)).hexdigest() != known.leaf.label:
            raise BundleError("label is not the one that the card names")
        label = leaf.label
        sources: dict[str, int] = {str(p): size for p, size in result.sources.items()}
        # Without it a leaf would be judged by less than own leaves are.
        if not label.control_root or not 0 < label.control_bytes <= CHUNK_BYTES * CHUNKS_MAX:
            raise BundleError("no style control to judge it by")
        if not self._is_current(known):
            raise FetchError("the leaf is gone")
        self._coming.add(label.control_root)
        other = await self._get(label.control_root, label.control_bytes)
        control = await self._aside(partial(self._check, label.control_root))
        for peer, size in other.sources.items():
            sources[peer] = sources.get(peer, 0) + size
        if not self._is_current(known):
            raise FetchError("the leaf is gone")
        return Fetched(leaf, control, sources, result.size_bytes)

    def _is_current(self, known: Known) -> bool:
        """False once the leaf was retracted, or names another bundle."""
        now = self._app.foreign.get(known.leaf.origin, known.leaf.leaf)
        return now is not None and now.leaf.root == known.leaf.root

    async def _get(self, root: str, size_bytes: int) -> FetchResult:
        """Fetch a bundle, if it can be one of this chassis and there is room for it."""
        if self._waited_for and not self._by_hand:
            raise _GaveWayError
        if self._app.bundles.path(root) is None:
            if size_bytes > largest_bundle(self._app.chassis):
                raise BundleError("larger than any adapter of this chassis")
            await self._make_room(root, size_bytes)
            self._app.foreign.expect(root, size_bytes)  # first: a crash must not leave an orphan
        root_bytes = bytes.fromhex(root)
        if self._by_hand:
            return await self._driver.fetch(root_bytes, size_bytes, by_hand=True)
        with trio.CancelScope() as self._unattended:
            try:
                return await self._driver.fetch(root_bytes, size_bytes)
            finally:
                self._unattended = None
        raise _GaveWayError

    async def _make_room(self, root: str, size_bytes: int) -> None:
        """Keep peers' bundles within their bound, at the cost of what was begun and not had, then
        of what was used longest ago."""
        expected = self._app.foreign.expected()
        held = self._app.foreign.roots(SERVED)
        stays = self._coming | self._app.own_roots() | {root}
        stays |= self._shelf.pinned_roots(self._app.foreign.all())
        room = self._app.config.mesh.cache_bytes_max
        room -= sum(size for other, size in expected.items() if other != root)
        begun = [other for other in expected if other not in stays | held]
        whole = self._shelf.oldest_first(other for other in expected if other in held - stays)
        if room + sum(expected[other] for other in (*begun, *whole)) < size_bytes:
            raise FetchError(
                "no room for more of peers' bundles: unpin some, or raise `cache_bytes_max` under "
                "[mesh] in groove.toml"
            )
        for other in (*begun, *whole):
            if room >= size_bytes:
                return
            for gone in await self._evict(other, stays) if other in held else [other]:
                room += self._app.foreign.expected().get(gone, 0)
                await self._driver.remove_bundle(bytes.fromhex(gone))
                self._app.foreign.removed(gone)

    async def _evict(self, root: str, stays: set[str]) -> list[str]:
        """Use no more the leaves that a bundle is of; return their bundles that nothing needs."""
        leaves = [
            known
            for known in self._app.foreign.all()
            if known.state in SERVED and root in (known.leaf.root, known.detail.get("control_root"))
        ]
        for known in leaves:
            reason = "made room for bundles in use"
            self._settled(known, State.HEARD, {EVICTED: True, "reason": reason})
        if any(known.state is State.ACCEPTED for known in leaves):
            await self._aside(self._app.deploy)
        await self._serve()
        still = self._app.foreign.roots(SERVED) | stays
        roots = {known.leaf.root for known in leaves}
        roots |= {known.detail.get("control_root") for known in leaves}
        return sorted({root, *filter(None, roots)} - still)

    def _check(self, root: str) -> CheckedBundle:
        blob = self._app.bundles.get(root)
        if blob is None:
            raise BundleError("gone")
        return check_form(blob, self._app.chassis)

    def _settled(
        self, known: Known, state: State, detail: dict[str, Any], name: str | None = None
    ) -> Known:
        settled = self._app.foreign.settle(known, state, detail, name)
        reason = detail.get("reason", "")
        self._tell(
            Told(
                state.value,
                f"{settled.name} of {settled.leaf.origin[:8]}: {state}"
                + (f"; {reason}" if reason else ""),
                {"leaf": known.leaf.leaf, "origin": known.leaf.origin, **detail},
            )
        )
        return settled


def largest_bundle(chassis: Chassis) -> int:
    """Size in bytes of the largest bundle that could be accepted."""
    shapes = chassis.adapter_shapes(max(RANKS), tuple(chassis.targets)).values()
    return 4 * sum(math.prod(shape) for shape in shapes) + LABEL_BYTES_MAX + _FRAME_BYTES


def shown(name: str) -> str:
    """A peer's words as they may be shown: nothing that steers a terminal, and not long."""
    return "".join(c if c.isprintable() else "?" for c in name)[:60]


def _not_had(why: str) -> OwnerError:
    return OwnerError(
        why,
        unchanged="Nothing was installed.",
        next_step="`groove-node peers list` shows who is connected.",
    )


def _origins(fetched: Fetched) -> dict[str, Any]:
    total = sum(fetched.sources.values())
    return {
        "bytes": total,
        "sources": fetched.sources,
        "control_root": fetched.leaf.label.control_root,
        "reason": f"{total / 1e6:.1f} MB from {len(fetched.sources)} peers, hashes verified",
    }
