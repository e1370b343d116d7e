"""Whole nodes in one process: `node.app` and `node.daemon` on simulated time, from one seed.

Every node has a home on disk, its own consent, corpus, forest, routing tables and mesh store, and
runs the daemon that a real one runs; only the models and the network are simulated (`fakes`). Its
owner asks by day (`traffic`), its rounds run by themselves each night, its leaves are published,
fetched, judged and used by the others. A node can be killed at any moment and is started again
from its home. What must hold is checked each morning (`world_checks`), and after each retraction.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import trio
import trio._core._run as trio_run
from threadpoolctl import threadpool_limits
from trio.testing import MockClock

from leaves.model import DAY_S
from leaves.ports import Progress
from node import rounds, routing
from node.app import App, BusyError
from node.capture.intake import Draft
from node.capture.session import close_draft
from node.consent import Scope
from node.daemon import Daemon
from node.errors import OwnerError
from node.feedback import routing_record
from node.home import USER_ID_FILE
from node.importing import intake_of
from node.mailbox import Retract
from node.told import Told

from .fakes import (
    LabelClusterer,
    Medium,
    Simulated,
    TopicEncoder,
    address_of,
    peer_named,
    write_chassis,
)
from .traffic import Traffic, outcome

START_S = 1_800_000_000 // DAY_S * DAY_S  # midnight of the first day, Unix seconds
HOUR_S = 3600.0
LINKS = 4  # peers that a node is told of
TAIL = 200  # of what was told, for a failure

CONFIG = """
[rules]
branch_sessions = 1_000_000
seed_sessions = 40
child_sessions = 20
first_discovery_sessions = 50
skill_sessions = 100
reasoning_sessions = 100
sprout_retrain_sessions = 40
mature_sessions = 120
mature_retrain_sessions = 120
dormant_days = 7
dormant_sessions_per_month = 2
merge_sessions = 400
stay_days = 2
[rounds]
auto = true
every_h = 24.0
sessions = 1_000_000
[night]
window = "always"
[training]
chassis = "{chassis}"
control_pairs = 0
[publish]
novel = "auto"
[mesh]
peers = {peers}
[mesh.gossip]
sync_interval_s = 900.0
"""


class Killed(BaseException):
    """Stands for kill -9 in a round: nothing may catch it but who started the round."""


class WorldClock:
    """Midnight of the first day and the seconds since."""

    def __init__(self, mock: MockClock) -> None:
        self._mock = mock

    def now_s(self) -> float:
        return START_S + self._mock.current_time()


@dataclass
class Node:
    """One home, and the process in it if it is up."""

    number: int
    name: str
    home: Path
    adapters: Simulated
    app: App | None = None  # of the running node
    daemon: Daemon | None = None
    scope: trio.CancelScope | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    origin: bytes = b""
    kill_after: int | None = None  # so many signs of progress of a round
    publishes: bool = True

    @property
    def up(self) -> bool:
        return self.daemon is not None


@dataclass
class World:
    """Some nodes. Everything happens inside `live`."""

    size: int
    nights: int
    seed: int
    folder: Path
    mock: MockClock
    traffic: Traffic
    told: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    events: int = 0
    failure: BaseException | None = None
    whole: trio.CancelScope | None = None  # of all that goes on

    def __post_init__(self) -> None:
        self.clock = WorldClock(self.mock)
        self.medium = Medium(self.seed)
        self.rng = Random(f"{self.seed}/world")
        self._trace = hashlib.sha256()
        self._chassis = write_chassis(self.folder / "chassis")
        encoder = TopicEncoder(self.traffic.centre)
        clusterer = LabelClusterer(self.traffic.label)
        self.nodes = [self._made(number, encoder, clusterer) for number in range(self.size)]

    def _made(self, number: int, encoder: TopicEncoder, clusterer: LabelClusterer) -> Node:
        home = self.folder / f"node{number:02d}"
        home.mkdir(mode=0o700)
        others = [n for n in range(self.size) if n != number]
        known = Random(f"{self.seed}/peers/{number}").sample(others, min(LINKS, len(others)))
        peers = [address_of(peer_named(n)) for n in known]
        text = CONFIG.format(chassis=self._chassis, peers=str(peers).replace("'", '"'))
        (home / "groove.toml").write_text(text)
        user = home / USER_ID_FILE
        user.write_text(hashlib.sha256(f"{self.seed}/{number}".encode()).hexdigest()[:32] + "\n")
        user.chmod(0o600)
        node = Node(number, home.name, home, None)  # type: ignore[arg-type]
        node.adapters = Simulated(
            f"{self.seed}/{number}",
            peer_named(number),
            self.medium,
            encoder,
            clusterer,
            lambda command: self._command(node),
        )
        app = self.opened(node)
        node.origin = app.origin
        app.consent.record_consent(app.user_id, True, "1.0", scopes=set(Scope))
        shut(app)
        return node

    # ---- what a node's process is --------------------------------------------------------------

    def opened(self, node: Node) -> App:
        """The home as another process opens it."""
        return App(node.home, self.clock, node.adapters)

    async def start(self, node: Node, nursery: trio.Nursery) -> None:
        """Start a node from its home, if it is not up."""
        if node.up:
            return
        node.app = self.opened(node)
        node.daemon = Daemon(node.app, None, node.app.telling(self._listening(node)))
        node.ended = trio.Event()
        nursery.start_soon(self._run, node)
        await trio.lowlevel.checkpoint()

    async def _run(self, node: Node) -> None:
        assert node.daemon is not None and node.app is not None
        with trio.CancelScope() as node.scope:
            try:
                await node.daemon.run()
            except Exception as problem:  # a node must not end by itself
                self.fail(problem)
        shut(node.app)
        node.app = node.daemon = None
        node.ended.set()

    async def kill(self, node: Node) -> None:
        """End a node at the await that it is at; what is on disk is all that is left of it."""
        assert node.scope is not None
        self.faults["F9 crash"] += 1
        node.scope.cancel()
        await node.ended.wait()

    def _command(self, node: Node) -> int:
        """What the scheduler starts: `round --if-due`, as a process of its own."""
        app = self.opened(node)
        left: int | None = None

        def report(progress: Progress) -> None:
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    self.faults["F10 killed round"] += 1
                    raise Killed

        try:
            if rounds.due(app) is None:
                return 0
            left, node.kill_after = node.kill_after, None
            app.round(self._listening(node), report)
            return 0
        except Killed:
            return 9
        except OwnerError as problem:
            self.note(node, "round refused", problem.what)
            return 1
        except Exception as problem:  # a fault of the node's own, whose fence would go on for ever
            self.fail(problem)
            return 1
        finally:
            shut(app)

    # ---- what is told --------------------------------------------------------------------------

    def _listening(self, node: Node) -> Callable[[Told], None]:
        def listen(told: Told) -> None:
            self.note(node, told.event, told.text)
            if stage := told.data.get("stage"):
                self.told[f"to {stage}"] += 1

        return listen

    def note(self, node: Node, event: str, text: str) -> None:
        """Take down one event; all of them together are the trace."""
        line = f"{self.mock.current_time():.3f} {node.name} {event}: {text}"
        self._trace.update(line.encode() + b"\n")
        self.told[event] += 1
        self.events += 1
        self.tail.append(line)

    def fail(self, problem: BaseException) -> None:
        """Something in a node failed that must not: the story ends with it."""
        self.failure = self.failure or problem
        if self.whole is not None:
            self.whole.cancel()

    def trace_hash(self) -> str:
        """The same for the same seed, on any machine."""
        return self._trace.hexdigest()

    # ---- the owner -----------------------------------------------------------------------------

    def ask(self, node: Node, night: int) -> int:
        """Take in what a node's owner asked in one night, through the real way into the corpus.

        Each ask is routed by the table in force, and its closing record says so. What importing
        does in bulk is done likewise here: the texts of a night are written at once.
        """
        app = self.opened(node)
        intake, user = intake_of(app), app.user_id
        version = intake.version(user)
        table = app.tables.load_sound()
        records, count = [], 0
        for visit in self.traffic.night(node.number, night) if version is not None else ():
            routed: dict[str, Any] | None = None
            by_leaf = False
            if table is not None:
                route = routing.way(table, app.encoder().encode_one(visit.prompt), None)
                routed = routing_record(route)
                by_leaf = route.leaf is not None and not route.fallback_used
                if route.leaf is not None and not route.leaf.origin and not route.leaf.system:
                    app.forests.routed(route.leaf.leaf, app.now())
            drafts = [
                Draft(user, visit.session, visit.prompt, "prompt"),
                Draft(user, visit.session, visit.completion, "completion", terms_class="own"),
                close_draft(
                    user,
                    visit.session,
                    visit.prompt,
                    outcome=outcome(visit, by_leaf=by_leaf),
                    routing=routed,
                ),
            ]
            records += [record for draft in drafts if (record := intake.admit(draft)) is not None]
            count += 1
        intake.written(records)
        app.corpus.flush()
        shut(app)
        return count

    def retract(self, node: Node, leaf: str | None) -> None:
        """Leave the owner's order, as the command does."""
        app = self.opened(node)
        app.mailbox.post(Retract(leaf), app.clock.now_s())
        shut(app)

    async def revoke(self, node: Node, *scopes: Scope) -> None:
        """Withdraw scopes, as the command does: it waits for what is just being published."""
        app = self.opened(node)
        for scope in scopes:
            app.consent.revoke_scope(app.user_id, scope)
        while True:
            with suppress(BusyError), app.lock("publish"):
                break
            await trio.sleep(0.1)
        app.deploy_if_routed()
        if Scope.PUBLISH in scopes:
            node.publishes = False
        shut(app)

    def grant(self, node: Node, *scopes: Scope) -> None:
        app = self.opened(node)
        for scope in scopes:
            app.consent.grant_scope(app.user_id, scope)
        node.publishes = app.allows("publish")
        shut(app)

    def up(self) -> list[Node]:
        return [node for node in self.nodes if node.up]


def shut(app: App) -> None:
    """Close what a process would close by ending."""
    for name in ("consent", "forests", "foreign", "mailbox", "mesh_store", "corpus"):
        store = app.__dict__.pop(name, None)
        if store is not None:
            store.close()


@contextmanager
def places() -> Iterator[Path]:
    """A folder for a world, in memory if the machine has one; with cache and state of its own."""
    memory = Path("/dev/shm")
    within = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="groove-world-", dir=within))
    names = ("GROOVE_HOME", "GROOVE_CACHE", "GROOVE_STATE")
    before = {name: os.environ.get(name) for name in names}
    try:
        for name in names:
            os.environ[name] = str(folder / name.lower())
            Path(os.environ[name]).mkdir(mode=0o700)
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def in_order(seed: int) -> Iterator[None]:
    """Have trio run its tasks in an order that follows from the seed."""
    module: Any = trio_run
    before = module._ALLOW_DETERMINISTIC_SCHEDULING
    state = module._r.getstate()
    module._ALLOW_DETERMINISTIC_SCHEDULING = True
    module._r.seed(seed)
    try:
        yield
    finally:
        module._ALLOW_DETERMINISTIC_SCHEDULING = before
        module._r.setstate(state)


class _Failures(logging.Handler):
    """Hears of tasks that failed in a node, which its fence starts again."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        problem = record.exc_info[1] if record.exc_info else None
        self._world.fail(problem or RuntimeError(record.getMessage()))


@contextmanager
def heard(world: World) -> Iterator[None]:
    """What nodes log goes to the world: refusals are part of the story, failures end it."""
    handler = _Failures(world)
    logs = [logging.getLogger(name) for name in ("node", "gossip")]
    before = [(log.level, log.propagate) for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
            log.propagate = False
            log.addHandler(handler)
        yield
    finally:
        for log, (level, propagate) in zip(logs, before, strict=True):
            log.setLevel(level)
            log.propagate = propagate
            log.removeHandler(handler)


Story = Callable[[World, trio.Nursery], Awaitable[None]]


def lived(size: int, nights: int, seed: int, story: Story, **traffic: int) -> World:
    """Run a world until its story ends, and return it. Raises what a node or a check raised."""
    mock = MockClock(autojump_threshold=0)
    with places() as folder, in_order(seed):
        world = World(size, nights, seed, folder, mock, Traffic(seed, nights, **traffic))

        async def whole() -> None:
            async with trio.open_nursery() as nursery:
                world.whole = nursery.cancel_scope
                try:
                    await story(world, nursery)
                except Exception as problem:  # raised below, as it is and not in a group
                    world.fail(problem)
                nursery.cancel_scope.cancel()

        # One thread: several add in an order of their own, and a sum in another order is another.
        with heard(world), threadpool_limits(1):
            try:
                trio.run(whole, clock=mock)
            except BaseExceptionGroup as group:  # Ctrl-C, out of the nursery that it fell into
                if group.subgroup(KeyboardInterrupt) is None:
                    raise
                raise KeyboardInterrupt from None
        if world.failure is not None:
            raise world.failure
        return world
