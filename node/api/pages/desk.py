"""What pages read from, in the thread that reads: an App of its own, and what was read lately.

A home of 100,000 sessions is not read anew for each page. What is kept goes by the stamps of the
files it came from, which cost a few system calls; so nothing that is shown is older than they are.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from leaves.model import Forest
from node import night_book, overview, told
from node.app import App

from .errands import Errands
from .hub import Hub

if TYPE_CHECKING:
    from node.foreign import Known

log = logging.getLogger(__name__)

T = TypeVar("T")
KEPT_MAX = 512  # things that were read, of all pages together
AT_ONCE_MAX = 20_000  # sessions; of more, figures over all of them are counted after the page

# By topic, the files of a home whose change means that something shown may have changed.
FILES: dict[str, tuple[str, ...]] = {
    "forest": ("leaves.db", "leaves.db-wal"),
    "foreign": ("foreign.db", "foreign.db-wal", "pins.json"),
    "consent": ("consent.db", "consent.db-wal", "publish.json", "consent.flag"),
    "night": (night_book.FILE, night_book.PAUSE_FILE),
    "node": (overview.RUN_FILE,),
    "events": (told.FILE,),
    "routing": ("router/current", "router"),
    "captured": ("capture_counts.json", "training_data"),
    "embedded": ("embeddings/index.sqlite", "embeddings/index.sqlite-wal"),
    "mailbox": ("mailbox.db", "mailbox.db-wal"),
    "mesh": ("mesh.db", "mesh.db-wal", "peers.json", "usage.json", "shown.json"),
    "settings": ("groove.toml",),
    "map": ("map/map.json", "map/making.json"),
}

Stamp = tuple[Hashable, ...]


class Desk:
    """Belongs to one thread, but for `stamps`, which touches nothing that is open."""

    def __init__(self, app: App, hub: Hub) -> None:
        self._given = app
        self.hub = hub
        self.home = app.home
        self.errands = Errands(app.home)
        self._kept: OrderedDict[Hashable, tuple[Stamp, Any]] = OrderedDict()
        self._due: dict[Hashable, Callable[[], object]] = {}
        self._counted = 0  # figures that were counted after a page
        self._keys: Stamp = ()

    @cached_property
    def _app(self) -> App:
        return App(self._given.home, self._given.clock, self._given.adapters)

    @property
    def app(self) -> App:
        """The home as this thread has it open; opened anew once its keys or settings are others."""
        keys = self.stamp("settings") + _stamp(self.home / "keys")
        if keys != self._keys:
            self.__dict__.pop("_app", None)
            self._kept.clear()
            self._keys = keys
        return self._app

    def stamp(self, *topics: str) -> Stamp:
        """Changes whenever one of these topics may have."""
        return tuple(_stamp(self.home / name) for topic in topics for name in FILES[topic])

    def stamps(self) -> dict[str, Stamp]:
        """Of all topics, as open pages are told of."""
        found = {topic: self.stamp(topic) for topic in FILES}
        return found | {"errands": self.errands.stamp(), "figures": (self._counted,)}

    def kept(self, name: Hashable, stamp: Stamp, make: Callable[[], T]) -> T:
        """What `make` gave when the stamp was the same; else what it gives now."""
        held = self._kept.get(name)
        if held is not None and held[0] == stamp:
            self._kept.move_to_end(name)
            found: T = held[1]
            return found
        made = make()
        self._kept[name] = stamp, made
        self._kept.move_to_end(name)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return made

    def lately(self, name: Hashable, stamp: Stamp, make: Callable[[], T], otherwise: T) -> T:
        """As `kept`; but in a large home what was made last, or `otherwise`, and the fresh one
        after the page: counting over all sessions takes longer than a page may."""
        held = self._kept.get(name)
        if (held is not None and held[0] == stamp) or self.embedded() <= AT_ONCE_MAX:
            return self.kept(name, stamp, make)
        self._due[name] = lambda: self.kept(name, stamp, make)
        found: T = held[1] if held is not None else otherwise
        return found

    def catch_up(self) -> bool:
        """Make one thing that pages went without; False if there is none. Open pages hear of it."""
        if not self._due:
            return False
        name = next(iter(self._due))
        make = self._due.pop(name)
        try:
            make()
        except Exception as problem:  # what is wrong is told by the page that asks next
            self.hub.counts.failures["page_figures"] += 1
            log.error("figures not counted name=%s problem=%s", name, type(problem).__name__)
        self._counted += 1
        return True

    # What several pages need

    def forest(self) -> Forest:
        return self.kept("forest", self.stamp("forest"), self.app.forests.forest)

    def foreign(self) -> list[Known]:
        return self.kept("foreign", self.stamp("foreign"), self.app.foreign.all)

    def running(self) -> dict[str, Any] | None:
        """The running node; one that serves this page runs, whatever its file says."""
        return overview.running(self.app)

    def embedded(self) -> int:
        return self.kept("embedded", self.stamp("embedded"), lambda: len(self.app.embeddings))

    def scopes(self) -> frozenset[str]:
        app = self.app
        return self.kept(
            "scopes",
            self.stamp("consent"),
            lambda: frozenset(str(each) for each in app.consent.scopes(app.user_id)),
        )


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
