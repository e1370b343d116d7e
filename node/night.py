"""The running node's nights: watches the machine, carries a night through its phases, gives way.

Two tasks. One looks about once a second at what the owner said and at the machine, and stops or
lets go on whatever works unattended. The other waits for a night and goes through its phases; each
is journaled when it is done, and can be done twice without harm, so that a kill costs one phase.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from gossip.driver import PeerStats
from gossip.ports import Channel, PeerId
from leaves.model import Instant

from . import heard, held, morning
from .governor import FAILED, Governor, Senses, State, Verdict, Work
from .night_book import Book, Phase
from .schedule import Scheduler
from .told import Tell, Told

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

LOOK_S = 15.0  # between two looks at the machine while nothing works: a night is long
SENSE_S = 5.0  # for all senses together; what hangs is not waited for, and not asked again
SAVE_S, SAVE_S_MAX = 60.0, 3600.0  # between two notes of what work has cost: at work, at rest
SLEPT_S = 60.0  # a clock that gained so much on the loop's: the machine slept
PEERS_MAX = 3  # reconciled with, in a phase


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for what, in seconds."""

    held_s: float = 600.0  # a round stopped for longer is ended: it holds memory, and is on disk
    peer_s: float = 30.0  # for the first peer of a node that has just woken
    answer_s: float = 10.0  # for a peer to answer, and...
    silence_s: float = 2.0  # ...then to have said it all
    heard_s: float = 6 * 3600.0  # between two times that peers are heard out, besides in nights
    again_s: float = 60.0  # the same as long as peers' leaves wait for it


class Mesh(Protocol):
    """What nights need of `gossip.driver.GossipDriver`."""

    def peers(self) -> tuple[PeerStats, ...]: ...

    async def sync(self) -> None: ...

    def hold_bundles(self, on: bool) -> None:
        """Ask for no more chunks of what was not asked for by hand."""
        ...

    def hold_serving(self, on: bool) -> None:
        """Send no chunks."""
        ...


class Fetching(Protocol):
    """What nights need of `fetch.Fetcher`."""

    @property
    def by_hand(self) -> bool: ...

    def wake(self) -> None: ...

    async def at_rest(self) -> None: ...


class Traffic:
    """What has passed between this node and all peers, also those that are gone."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._last: dict[tuple[PeerId, float], tuple[int, int]] = {}
        self._in = self._out = 0

    def collect(self) -> None:
        """To be called often: what a peer sent between the last call and its end is missed."""
        now = {
            (each.peer, each.since): (sum(each.bytes_in.values()), sum(each.bytes_out.values()))
            for each in self._mesh.peers()
        }
        for key, (into, out) in now.items():
            before = self._last.get(key, (0, 0))
            self._in, self._out = self._in + into - before[0], self._out + out - before[1]
        self._last = now

    def taken(self) -> tuple[int, int]:
        """Bytes in and out that were collected since the last time that they were taken."""
        found = self._in, self._out
        self._in = self._out = 0
        return found


@dataclass(frozen=True, slots=True)
class _Holds:
    """What goes on between peers and is held back. Judging is held with the fetching."""

    fetching: bool = False
    serving: bool = False


class Nights:
    """Keeps one node's unattended work within what its owner allows."""

    def __init__(
        self,
        app: App,
        governor: Governor,
        scheduler: Scheduler,
        mesh: Mesh,
        fetching: Fetching,
        publish: Callable[[], Awaitable[None]],
        tell: Tell,
        patience: Patience | None = None,
        asked: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """asked: how many answers the endpoint was asked for so far, and how many it gives now."""
        self._app = app
        self._patience = patience or Patience()
        self._governor = governor
        self._senses = app.adapters.senses(app.home, app.config.night)
        self._scheduler = scheduler
        self._mesh = mesh
        self._fetching = fetching
        self._publish = publish
        self._tell = tell
        self._asked = asked
        self._asked_before = 0
        self._served_s = -math.inf  # when the endpoint was last at it, by the loop's clock
        self._book = Book(app.home, app.now())
        self._traffic = Traffic(mesh)
        self._changed = trio.Event()  # set and replaced with each verdict
        self._slept = trio.Event()
        self._sensing = False
        self._seen = Senses()
        self._looked_s = -math.inf  # by the loop's clock
        self._saved_s = 0.0
        self._counted_cpu_s = 0.0
        self._held_since_s: float | None = None
        self._holds = _Holds()
        self._night: trio.CancelScope | None = None
        self._judge()

    async def run(self) -> None:
        """Watch and work until cancelled. May be run again after it failed; until then nothing
        works that nobody waits for."""
        self._night, self._held_since_s = None, None
        try:
            self._tell_of_damage()
            self._end_forgotten()
            self._scheduler.watched(self._book.works)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._listen)
                if not self._governor.always:
                    nursery.start_soon(self._work)
        except Exception as problem:
            self._night = None
            self._act(self._governor.fails(_reason(problem)))
            raise

    async def round_if_due(self) -> None:
        """A round at any hour, of a node that is to work always; else nights see to it."""
        if not self._governor.always or not self._governor.allows(Work.ROUND):
            return
        began, before = self._app.now(), self._app.forests.last_round()
        await self._scheduler.look()
        after = self._app.forests.last_round()
        if after is not None and (before is None or after.id != before.id):
            self._saved_s = -math.inf
            self._count()
            self._report(began)  # what it cost is all since the round before
            self._book.begin("", self._app.now())

    def state(self) -> dict[str, Any]:
        """What `status` and `doctor` show of a running node."""
        verdict = self._governor.verdict
        return {
            "state": verdict.state.value,
            "why": verdict.why,
            "until": verdict.until,
            "at": verdict.at,
            "phase": self._phase(),
            "unknown": dict(self._senses.unknown),
        }

    # ---- watching --------------------------------------------------------------------------------

    async def _watch(self) -> None:
        wall_s, loop_s = self._app.clock.now_s(), trio.current_time()
        while True:
            await self._look()
            await trio.sleep(self._app.adapters.pace.night_s)
            now_wall_s, now_loop_s = self._app.clock.now_s(), trio.current_time()
            slept_s = (now_wall_s - wall_s) - (now_loop_s - loop_s)
            if slept_s > SLEPT_S:
                log.info("woke slept_s=%d", slept_s)
                self._slept.set()
            wall_s, loop_s = now_wall_s, now_loop_s

    async def _look(self) -> None:
        """Come to a verdict and act on it."""
        before = self._governor.verdict
        busy = self._night is not None or self._scheduler.runs
        pace_s = 0.0 if busy and not self._governor.always else LOOK_S
        if trio.current_time() - self._looked_s >= pace_s:
            self._seen = await self._sense()
            self._looked_s = trio.current_time()
        self._hear_of_asks()
        self._count()
        verdict = self._judge()
        if (verdict.state, verdict.cause) != (before.state, before.cause):
            log.info("unattended work state=%s why=%s", verdict.state, verdict.why)
        if verdict.works != before.works:
            changed, self._changed = self._changed, trio.Event()
            changed.set()
            if verdict.works:
                self._fetching.wake()
        self._act(verdict)
        if verdict.state is State.RESTS and self._night is None:
            self._report_what_was_cut_off()

    def _hear_of_asks(self) -> None:
        """Whoever has an answer made here waits for it, and gets the machine to himself."""
        asked, now_answering = self._asked()
        if now_answering or asked != self._asked_before:
            self._asked_before, self._served_s = asked, trio.current_time()
        served_s = trio.current_time() - self._served_s
        self._seen = replace(self._seen, served_s=None if served_s == math.inf else served_s)

    def _judge(self) -> Verdict:
        """Come to a verdict. A judgement that fails is one that nothing may work."""
        try:
            self._governor.knows(self._book.record())
            return self._governor.look(self._seen, self._app.now())
        except Exception as problem:  # the node must run, and must not do what it may not
            if self._governor.verdict.cause != FAILED:
                log.exception("nobody can tell whether unattended work is allowed")
            return self._governor.fails(_reason(problem))

    async def _sense(self) -> Senses:
        """Look at the machine, in a thread that is given up if it hangs: on a dead disk, say."""
        if self._sensing:
            return Senses()
        found = Senses()
        with trio.move_on_after(SENSE_S) as patience:
            found = await self._app.adapters.in_spare_thread(self._read)
        if patience.cancelled_caught:
            log.warning("the machine's state is not known: no answer in %d s", SENSE_S)
        return found

    def _read(self) -> Senses:
        self._sensing = True
        try:
            return self._senses.read()
        finally:
            self._sensing = False

    def _act(self, verdict: Verdict) -> None:
        """Stop what may not go on, let go on what may."""
        fetches = self._governor.allows(Work.FETCH) or self._fetching.by_hand
        holds = _Holds(not fetches, not self._governor.allows(Work.SERVE))
        if holds.fetching != self._holds.fetching:
            self._mesh.hold_bundles(holds.fetching)
        if holds.serving != self._holds.serving:
            self._mesh.hold_serving(holds.serving)
        if holds.fetching:
            self._app.evaluator.pause()  # each time: it may be another child, of the same job
        elif self._holds.fetching:
            self._app.evaluator.resume()
        self._holds = holds
        if verdict.works:
            self._held_since_s = None
            self._scheduler.release()
        elif verdict.state is State.RESTS:
            self._held_since_s = None
            self._scheduler.end()
            if self._night is not None:
                self._night.cancel()
        else:
            self._give_way(verdict)

    def _give_way(self, verdict: Verdict) -> None:
        """Stop the round where it is; end it if that lasts, for it holds the owner's memory."""
        if self._night is not None:
            self._book.waited(verdict.cause or verdict.state, self._app.adapters.pace.night_s)
        if not self._scheduler.runs:
            self._held_since_s = None
            return
        now_s = trio.current_time()
        if self._held_since_s is None:
            self._held_since_s = now_s
        if now_s - self._held_since_s >= self._patience.held_s:
            self._scheduler.end()
        else:
            self._scheduler.hold()

    def _count(self) -> None:
        """Add to the night's budgets what has passed and was computed since the last time."""
        self._traffic.collect()
        if self._night is None and not self._governor.always:
            self._traffic.taken()  # by day: of no night's budget
            self._counted_cpu_s = self._senses.own_cpu_s
            return
        save_s = SAVE_S if self._night is not None or self._scheduler.runs else SAVE_S_MAX
        if trio.current_time() - self._saved_s < save_s:
            return
        self._saved_s = trio.current_time()
        cpu_s = self._senses.own_cpu_s - self._counted_cpu_s
        self._counted_cpu_s += cpu_s
        self._book.spent(*self._traffic.taken(), cpu_s)

    def _end_forgotten(self) -> None:
        """The round of a node that was killed goes on from disk: its process may lie stopped."""
        if self._scheduler.runs:  # after a failure of this task alone
            return
        worker = self._book.pages.worker
        if worker is not None and worker.lives():
            log.warning("round of a former process ended pid=%d", worker.pid)
            held.end(worker.pid)
        self._book.works(None)  # also the first note of a new home: nothing before it was missed

    # ---- working ---------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Carry out one night after the other."""
        while True:
            await self._until_works()
            date = self._governor.date
            if date != self._book.pages.date or Phase.REPORT in self._book.pages.done:
                self._report_what_was_cut_off()
                self._book.begin(date, self._app.now())
            await self._one_night()

    async def _one_night(self) -> None:
        """Go through the phases; a night that is over before its last one is reported so."""
        self._saved_s = trio.current_time()
        log.info("night begins date=%s phase=%s", self._book.pages.date, self._next_phase())
        with trio.CancelScope() as self._night:
            await self._hear()  # after each start: words may have come meanwhile
            self._book.finish(Phase.CATCH_UP)
            await self._once(Phase.ROUND, self._round)
            await self._once(Phase.PUBLISH, self._publish)
            await self._once(Phase.RECONCILE, self._hear)
            await self._once(Phase.FETCH, self._fetch)
        self._saved_s = -math.inf
        self._count()
        self._night = None
        self._close()
        await self._look()

    async def _once(self, phase: Phase, work: Callable[[], Awaitable[object]]) -> None:
        if phase not in self._book.pages.done:
            await self._until_works()
            await work()
            self._book.finish(phase)

    async def _round(self) -> None:
        """A round, taken up again after it was ended to give way."""
        while True:
            await self._until_works()
            await self._scheduler.look()
            if not self._scheduler.gave_way:
                return

    async def _fetch(self) -> None:
        """All that is wanted of peers is fetched and judged, or cannot be had tonight."""
        while self._app.allows("fetch") and self._mesh.peers():
            await self._until_works()
            self._fetching.wake()
            await self._fetching.at_rest()
            if self._governor.verdict.works:
                return

    async def _until_works(self) -> None:
        while not self._governor.verdict.works:
            await self._changed.wait()

    # ---- hearing peers out -----------------------------------------------------------------------

    async def _listen(self) -> None:
        """At the start, after a sleep of the machine, and now and then, hear peers out."""
        while True:
            silent = heard.silent(self._app.home, self._app.now())
            if silent:
                log.warning("peers' leaves are not routed to until peers are heard again")
                await self._app.adapters.in_thread(self._app.deploy_if_routed)
            answered = await self._hear()
            wait_s = self._patience.again_s if silent and not answered else self._patience.heard_s
            with trio.move_on_after(wait_s):
                await self._slept.wait()
            self._slept = trio.Event()

    async def _hear(self) -> bool:
        """Reconcile with up to three peers: what they take back comes before what they offer."""
        home, aside = self._app.home, self._app.adapters.in_thread
        silent = heard.silent(home, self._app.now())
        with trio.move_on_after(self._patience.peer_s):
            while not self._mesh.peers():
                await trio.sleep(1.0)
        answers = 0
        for _ in range(min(PEERS_MAX, len(self._mesh.peers()))):
            answers += await self._answered()
        if answers:
            await aside(partial(heard.note, home, self._app.now()))
            if silent:
                await aside(self._app.deploy_if_routed)
        return answers > 0

    async def _answered(self) -> bool:
        """Reconcile with a peer; True once it answered and then has nothing more to say."""
        known, answered, silence_s = self._synced(), False, self._patience.silence_s
        changed_s = trio.current_time()
        await self._mesh.sync()
        with trio.move_on_after(self._patience.answer_s):
            while not answered or trio.current_time() - changed_s < silence_s:
                await trio.sleep(silence_s / 4)
                if (now := self._synced()) != known:
                    known, answered, changed_s = now, True, trio.current_time()
        return answered

    def _synced(self) -> int:
        return sum(each.bytes_in[Channel.SYNC] for each in self._mesh.peers())

    # ---- telling ---------------------------------------------------------------------------------

    def _next_phase(self) -> str:
        return next((each.value for each in Phase if each not in self._book.pages.done), "")

    def _phase(self) -> str:
        """The phase that a night is in; "" between nights."""
        return "" if self._night is None else self._next_phase()

    def _tell_of_damage(self) -> None:
        if self._book.damaged:
            self._tell(Told("nights damaged", self._book.damaged))
            self._book.damaged = ""

    def _report_what_was_cut_off(self) -> None:
        """A night whose node was killed or off before its end has a report all the same."""
        pages = self._book.pages
        if pages.date and Phase.REPORT not in pages.done:
            self._close()

    def _close(self) -> None:
        self._report(Instant(self._book.pages.began or self._app.now()))
        self._book.finish(Phase.REPORT)

    def _report(self, began: Instant) -> None:
        pages, ended = self._book.pages, self._app.now()
        left = [x.value for x in Phase if x not in pages.done and x is not Phase.REPORT]
        report = {
            "date": pages.date,
            "began": began,
            "ended": ended,
            "minutes": round(max(0, ended - began) / 60, 1),
            "left": left if pages.date else [],
            **morning.happened(self._app.home, began, ended),
            "put_off": morning.put_off(pages.waited_s),
            "bytes_in": pages.bytes_in,
            "bytes_out": pages.bytes_out,
            "cpu_hours": round(pages.cpu_s / 3600, 3),
            "energy_wh": round(self._governor.energy_wh(pages.cpu_s), 2),
        }
        self._book.tell(report)
        line = morning.headline(report)
        log.info("night done date=%s %s", pages.date or "-", line)
        self._tell(Told("night", f"the last night: {line}", report))


def governor_of(app: App) -> Governor:
    """The governor of a home; its secret follows from the key that this node dials with."""
    secret = hmac.digest(app.identity.transport, b"groove-node night 1", hashlib.sha256)
    return Governor(app.config.night, secret)


def _reason(problem: BaseException) -> str:
    """The first of the failures of a group of tasks, by its name."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return type(problem).__name__
