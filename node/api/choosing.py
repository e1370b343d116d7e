"""Which leaf answers a request, and what answers when routing is in trouble.

A leaf is chosen as `groove-node route` chooses it. A conversation stays with its leaf. Whatever is
wrong with encoder, table, neighbours or bundles, there is a choice: the chassis at least, with a
word of the cause that is counted and that the client sees.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from leaves.model import Instant, LeafId
from node.errors import OwnerError
from node.routing import routing_record, starters_of, way
from node.shelf import Shelf
from router.table import Entry, Route

from .config import ApiConfig
from .conversations import Conversations
from .counts import Counts
from .encoding import Line, LineError
from .ground import Ground, Grounds
from .ports import Adapter

if TYPE_CHECKING:
    from node.app import App

log = logging.getLogger(__name__)

PREFIX = "groove/"
CHASSIS = "chassis"
_ID = re.compile(r"[0-9a-f]{6,32}")  # as little of a leaf's id as is taken for one
_WARM = "What is this?"  # the first prompt is not the one that waits for the encoder to load


class UnknownModelError(Exception):
    """No leaf of this name. Its text goes to the client."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers one request, and why.

    adapter: None is the bare chassis. system: a starter's system prompt, or "". leaf, name: whose
    domain the prompt is in; served_by: the name of who answers. fallback: "" or one word of cause.
    routing: for the capture, as in `node.routing.routing_record`.
    """

    adapter: Adapter | None
    system: str
    leaf: str | None
    name: str
    served_by: str
    confidence: float
    gate: float
    level: int
    fallback: str
    routing: dict[str, Any] | None


def chassis(fallback: str = "") -> Choice:
    return Choice(None, "", None, CHASSIS, CHASSIS, 0.0, 0.0, 0, fallback, None)


class Chooser:
    """One for the process. All but `run` is for the tasks of its loop."""

    def __init__(self, app: App, config: ApiConfig, counts: Counts) -> None:
        self._app = app
        self._counts = counts
        self._within_s = config.route_within_ms / 1000
        self._grounds = Grounds(app)
        self._line = Line(self._route, app.adapters, self._within_s)
        self._conversations = Conversations(app.clock.now_s)
        self._routed: dict[LeafId, Instant] = {}  # not yet written down
        self._used: set[str] = set()  # bundles, likewise
        self.ready = trio.Event()  # the table is read and the encoder loaded, or both have failed

    async def run(self) -> None:
        """Read what changes, encode, and write down what was used, until cancelled."""
        pace = self._app.adapters.pace
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._warm)
                nursery.start_soon(self._line.run)
                nursery.start_soon(_every, pace.refresh_s, self._note_use)
                await _every(pace.poll_s, self._look)
        finally:
            self._write(self._routed, self._used)

    async def auto(self, ask_text: str, conversation: str | None) -> Choice:
        """The leaf for a conversation that began with `ask_text`. Never raises."""
        try:
            choice = await self._auto(ask_text, conversation)
        except LineError as problem:
            choice = chassis(problem.cause)
        except Exception as problem:  # whatever it is, the chassis can answer
            log.error("prompt not routed problem=%s", type(problem).__name__)
            choice = chassis("router_failed")
        if self._grounds.current.blind:  # the answer is a leaf's, but it was chosen with less
            self._counts.fallbacks["no_neighbours"] += 1
        self._count(choice)
        return choice

    def named(self, name: str) -> Choice:
        """A leaf by its name, its id, or the first digits of that. Raises UnknownModelError."""
        name = name.removeprefix(PREFIX)
        if name == CHASSIS:
            return chassis()
        ground = self._grounds.current
        if ground.table is None:  # who it is cannot be looked up, and an answer there must be
            choice = chassis(ground.trouble)
        else:
            entry = self._entry(ground, name)
            server = entry if entry.system else ground.table.server_of(entry)
            route = Route(entry, server, 1.0, 0.0, entry.level, server is not entry)
            choice = _chosen(ground, route)
            self._note(choice)
        self._count(choice)
        return choice

    def models(self) -> list[dict[str, Any]]:
        """What clients may ask for, as rows of /v1/models."""
        ground = self._grounds.current
        rows = [_row("auto", ground.made), _row(CHASSIS, ground.made)]
        serving = [entry for entry in ground.entries.values() if entry.servable]
        serving.sort(key=lambda e: (bool(e.origin), e.name, e.leaf, e.origin))
        taken = Counter(entry.name for entry in serving)
        own = Counter(entry.name for entry in serving if not entry.origin)
        for entry in serving:
            about = {
                "leaf": entry.leaf,
                "stage": entry.stage.value,
                "level": entry.level,
                "origin": entry.origin[:8],
            }
            rows.append(_row(_called(entry, taken, own), ground.made, about))
        return rows

    def without(self, choice: Choice, cause: str) -> Choice:
        """The chassis in its stead, counted: its adapter could not be put on."""
        if choice.adapter is not None and cause == "adapter":
            self._grounds.refuse(choice.adapter.bundle)
        routing = None if choice.routing is None else {**choice.routing, "fallback_used": True}
        bare = replace(
            choice, adapter=None, system="", served_by=CHASSIS, fallback=cause, routing=routing
        )
        self._count(bare)
        return bare

    # ---- how a prompt comes to its leaf ----------------------------------------------------------

    async def _auto(self, text: str, conversation: str | None) -> Choice:
        if self._grounds.current.table is None and not self.ready.is_set():
            with trio.move_on_after(self._within_s):  # the node has just started
                await self.ready.wait()
        ground = self._grounds.current
        if ground.table is None:
            return chassis(ground.trouble)
        if conversation and (before := self._conversations.get(conversation)):
            still = _still(ground, before)
            if still is not None:
                self._note(still)
                return still
            self._conversations.forget(conversation)
        if not text.strip():
            return chassis("no_ask")
        choice = await self._line.ask(text)
        # What trouble chose is not kept: the next turn, of the same first ask, may find its leaf.
        if conversation:
            self._conversations.put(conversation, choice)
        self._note(choice)
        return choice

    def _route(self, text: str) -> Choice:
        """In the thread. What was just retracted is not routed to: the disk is looked at first."""
        ground = self._grounds.look()
        if ground.table is None:
            raise LineError(ground.trouble)
        try:
            vector = self._app.encoder().encode_one(text)
        except OwnerError as problem:
            log.warning("prompt not encoded reason=%s", problem.what)
            raise LineError("encoder_failed") from None
        try:
            return _chosen(ground, way(ground.table, vector, ground.near))
        except Exception as problem:
            log.error("prompt not routed problem=%s", type(problem).__name__)
            raise LineError("router_failed") from None

    def _entry(self, ground: Ground, name: str) -> Entry:
        short, at, origin = name.rpartition("@")
        if at and len(origin) >= 8:
            own = self._app.origin.hex()
            found = [
                e
                for e in ground.entries.values()
                if e.name == short and (e.origin or own).startswith(origin)
            ]
        else:
            found = _by_name(ground, name)
        if not found and ground.table is not None:  # what the answers' heads name can be asked for
            found = [e for e in starters_of(ground.table) if e.name == name]
        if not found and _ID.fullmatch(name):
            found = [e for e in ground.entries.values() if e.leaf.startswith(name)]
        match found:
            case [entry]:
                return entry
            case []:
                raise UnknownModelError(
                    f"there is no leaf {name[:80]!r} here: GET /v1/models lists them, "
                    "and groove/auto chooses one"
                )
            case _:
                ways = ", ".join(sorted(f"{PREFIX}{_exact(e)}" for e in found[:5]))
                raise UnknownModelError(f"{name[:80]!r} may be several leaves: {ways}")

    # ---- what is counted and written down --------------------------------------------------------

    def _count(self, choice: Choice) -> None:
        if choice.fallback:
            self._counts.fallbacks[choice.fallback] += 1

    def _note(self, choice: Choice) -> None:
        """Remember for `_note_use` what `groove-node route` writes down at once."""
        if choice.leaf is not None and (LeafId(choice.leaf), "") in self._grounds.current.entries:
            self._routed[LeafId(choice.leaf)] = self._app.now()
        if choice.adapter is not None:
            self._used.add(choice.adapter.bundle)

    async def _note_use(self) -> None:
        routed, self._routed = self._routed, {}
        used, self._used = self._used, set()
        if routed or used:
            await self._app.adapters.in_thread(partial(self._write, routed, used))

    def _write(self, routed: dict[LeafId, Instant], used: set[str]) -> None:
        try:
            for leaf, at in routed.items():
                self._app.forests.routed(leaf, at)
            shelf = Shelf.of(self._app)
            for bundle in used:
                with suppress(FileNotFoundError):  # retracted meanwhile
                    shelf.used(bundle)
        except Exception as problem:  # a disk that is full must not stop the answers
            self._counts.failures["use_not_noted"] += 1
            log.error("use of leaves not noted problem=%s", type(problem).__name__)

    async def _warm(self) -> None:
        await self._look()
        with suppress(LineError):
            await self._app.adapters.in_thread(self._encode_first)
        self.ready.set()

    def _encode_first(self) -> None:
        try:
            self._app.encoder().encode_one(_WARM)
        except Exception as problem:  # said again, and counted, for each prompt that needs it
            log.warning("encoder not loaded problem=%s", type(problem).__name__)

    async def _look(self) -> None:
        await self._app.adapters.in_thread(self._grounds.look)


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await trio.sleep(seconds)
        await work()


def _chosen(ground: Ground, route: Route) -> Choice:
    leaf, server = route.leaf, route.served_by
    adapter = None
    if server is not None and not server.system:
        assert server.bundle is not None, server.leaf
        adapter = Adapter(server.leaf, server.name, server.bundle, server.origin)
    return Choice(
        adapter,
        server.system if server else "",
        leaf.leaf if leaf else None,
        leaf.name if leaf else CHASSIS,
        server.name if server else CHASSIS,
        route.score,
        route.gate,
        route.level,
        _cause(ground, route),
        routing_record(route),
    )


def _cause(ground: Ground, route: Route) -> str:
    """Why something less specific than the nearest leaf answers, in one word."""
    leaf, server = route.leaf, route.served_by
    if not route.fallback_used:
        return ""
    if leaf is None:
        return "gate" if server is None else "starter"
    if (leaf.leaf, leaf.origin) in ground.lacking:
        return "no_adapter"
    if server is leaf:
        return "gate"  # a nearer one, more specific, did not take it
    if server is None:
        return "no_adapter"
    if server.system:
        return "starter"
    return "kin" if server.origin else "sprout_parent"


def _still(ground: Ground, choice: Choice) -> Choice | None:
    """The choice of before with the adapter of today; None if it must be made anew."""
    adapter = choice.adapter
    if adapter is None:
        return choice
    entry = ground.entries.get((adapter.leaf, adapter.origin))
    if entry is None or not entry.servable or entry.bundle is None:
        return None
    if entry.bundle == adapter.bundle:
        return choice
    return replace(choice, adapter=replace(adapter, bundle=entry.bundle))


def _by_name(ground: Ground, name: str) -> list[Entry]:
    """Own leaves go before those of peers, and those that answer for themselves before others."""
    found = [e for e in ground.entries.values() if e.name == name]
    for better in (lambda e: not e.origin, lambda e: e.servable):
        found = [e for e in found if better(e)] or found
    return found


def _called(entry: Entry, taken: Counter[str], own: Counter[str]) -> str:
    """The shortest name that means this leaf and no other."""
    first = not entry.origin and own[entry.name] == 1
    return entry.name if first or taken[entry.name] == 1 else _exact(entry)


def _exact(entry: Entry) -> str:
    return f"{entry.name}@{entry.origin[:8]}" if entry.origin else entry.leaf


def _row(name: str, made: int, about: dict[str, Any] | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": PREFIX + name,
        "object": "model",
        "created": made,
        "owned_by": "groove",
    }
    return row if about is None else {**row, "groove": about}
