"""Takes in what other tools write while the node runs, soon after they have written it.

One thread of low priority does all of it: it waits for the file system's word, asks for consent,
reads, scrubs and writes. It stops between two texts. While nothing is allowed it asks for consent
every few seconds and nothing else of capture is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .consent import ENDPOINT_SOURCES, FREE_SOURCES, Scope
from .consent.grants import Grants
from .errors import OwnerError
from .show import counted
from .tally import SourceCounts, Tally
from .told import Tell, Told

if TYPE_CHECKING:
    from .app import App
    from .capture.sources.following import Follower, StateFile
    from .capture.sources.importing import ImportResult

log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every change

ASK_S = 3.0  # between two questions to consent; also how soon a newly allowed source is watched
SETTLE_MS = 2_000  # changes are gathered for at most so long
STEP_MS = 400  # a file that was quiet for so long is read; also how soon a stop is noticed
LOOK_S = 60.0  # all files are looked at so often, whatever the file system has told
POLL_S = 10.0  # the same where it tells nothing
RETRY_S = 30.0  # after a full disk or a consent store that cannot be read
SAVE_S = 10.0  # between two savings of how far files were read: a kill costs a second reading
NICE = 10


class Watcher:
    """Watches the sources of one home. `run` is a thread's whole work; `stop` ends it."""

    def __init__(self, app: App, tell: Tell) -> None:
        self._app = app
        self._tell = tell
        self._stop = threading.Event()
        self._tally = Tally(app.home)
        self._state: StateFile | None = None
        self._followers: list[Follower] = []
        self._allowed: object = None
        self._unsaved_since: float | None = None
        self._told: set[str] = set()

    def stop(self) -> None:
        """Ask `run` to end; it does within about half a second, and a text's scrubbing."""
        self._stop.set()

    def run(self) -> None:
        """Watch until stopped. What fails is told once, and tried again later."""
        _lower_priority()
        while not self._stop.is_set():
            try:
                self._follow()
            except OwnerError as problem:  # a full disk, a store that cannot be read
                self._say_once(f"capture of sources waits: {problem.what}")
                self._stop.wait(RETRY_S)
            except Exception as problem:  # capture never ends the node; the text is in no message
                reason = type(problem).__name__
                log.error("watching failed reason=%s at=%s", reason, _place(problem))
                self._stop.wait(RETRY_S)
            finally:
                self._save()

    # ---- what is watched -------------------------------------------------------------------------

    def _follow(self) -> None:
        """Watch what is allowed now, until something else is."""
        self._ask()
        if not self._followers:
            self._stop.wait(ASK_S)
            return
        roots = self._roots()
        looked = float("-inf")  # once more when watching has begun: something came in between
        self._look(None)
        for changed in self._changes(roots):
            if self._stop.is_set() or self._ask():
                return
            due = time.monotonic() - looked >= LOOK_S
            if due:
                looked = time.monotonic()
                if self._roots() != roots:
                    return
            self._look(None if due else changed)
            self._save(every_s=SAVE_S)

    def _ask(self) -> bool:
        """Ask for consent; True if another answer than before makes other followers."""
        app = self._app
        allowed = app.consent.scopes(app.user_id)
        sources = app.consent.allowed_sources(app.user_id) - FREE_SOURCES
        sources -= frozenset(ENDPOINT_SOURCES)  # they come to the node by themselves
        if Scope.CAPTURE not in allowed or not app.config.capture.watch:
            sources = frozenset()
        grants = Grants(app.consent.get_consent_history(app.user_id) if sources else ())
        # What was withdrawn and granted again between two questions has another date.
        ahead = grants.last > app.clock.now_s()
        answer = (sources, grants.sources, grants.folders, ahead) if sources else ()
        if answer == self._allowed:
            return False
        if sources or self._state is not None:
            self._rebuild(sources, grants)
        self._allowed = answer
        return True

    def _rebuild(self, sources: frozenset[str], grants: Grants) -> None:
        from .capture.sources.following import Follower, State, StateFile
        from .capture.sources.formats import formats
        from .capture.sources.held import HeldRecords
        from .importing import intake_of

        app, now = self._app, self._app.clock.now_s()
        state = self._state = self._state or StateFile(app.home)
        for name in state.sources.keys() - sources:
            del state.sources[name]
        with contextlib.suppress(AttributeError):
            del app.scrubber  # it knows the secrets of the folders that were allowed before
        intake, held = intake_of(app), HeldRecords(app.corpus)
        self._followers = []
        for each in formats(tool_output=app.config.capture.tool_output):
            if each.name not in sources:
                continue
            since = grants.since(each.name, (), now)
            if each.name not in state.sources or state.sources[each.name].since < since:
                state.sources[each.name] = State(since)  # what was said before is not taken in
            self._followers.append(
                Follower(
                    each,
                    intake,
                    app.user_id,
                    held,
                    state.sources[each.name],
                    idle_s=app.config.capture.idle_close_s,
                    since=partial(grants.since, each.name, now_s=now),
                    stopping=self._stop.is_set,
                )
            )
        state.save()
        names = sorted(follower.format.name for follower in self._followers)
        self._say("watching", f"watching {', '.join(names) or 'no source'}", sources=names)

    def _roots(self) -> frozenset[Path]:
        """The folders to watch; of a database its folder, for its log lies beside it."""
        roots = {root for follower in self._followers for root in follower.format.roots()}
        return frozenset(root if root.is_dir() else root.parent for root in roots)

    def _changes(self, roots: frozenset[Path]) -> Iterator[set[Path]]:
        """Yield what changed, at least every ASK_S; without the file system's help, all of it."""
        if roots:
            import watchfiles

            try:
                for changes in watchfiles.watch(
                    *roots,
                    watch_filter=None,
                    debounce=SETTLE_MS,
                    step=STEP_MS,
                    rust_timeout=int(ASK_S * 1000),
                    yield_on_timeout=True,
                    stop_event=self._stop,
                    raise_interrupt=False,
                    ignore_permission_denied=True,
                ):
                    yield {_transcript(Path(path)) for _, path in changes}
                return
            except (OSError, RuntimeError) as problem:  # no more watches, or a root that went
                self._say_once(
                    f"the file system gives no more watches ({type(problem).__name__}): sources "
                    f"are looked at every {POLL_S:.0f} s; `sysctl fs.inotify.max_user_watches`"
                )
        waited = 0.0
        while not self._stop.wait(ASK_S):
            waited += ASK_S
            yield self._everything() if waited >= POLL_S else set()
            waited = waited if waited < POLL_S else 0.0

    def _everything(self) -> set[Path]:
        return {path for each in self._followers for path in each.look()}

    # ---- taking in -------------------------------------------------------------------------------

    def _look(self, changed: set[Path] | None) -> None:
        """Take in what changed and close what is idle; None looks at every file."""
        for follower in self._followers:
            roots = [root.parent if root.is_file() else root for root in follower.format.roots()]
            mine = changed and {path for path in changed if any(map(path.is_relative_to, roots))}
            if changed is not None and not mine:
                continue
            total = _Total()
            try:
                for path in follower.look(mine):
                    if self._stop.is_set():
                        break
                    total.add(follower.bring(path))
                    self._unsaved_since = self._unsaved_since or time.monotonic()
            finally:
                self._count(follower, total)

    def _count(self, follower: Follower, total: _Total) -> None:
        from .capture.sources.source import ParseCounts

        counts, follower.counts = follower.counts, ParseCounts()
        if not (total.records or counts.lines or counts.left_out):
            return
        more = SourceCounts(
            sessions=total.sessions,
            records=total.records,
            last=self._app.clock.now_s() if total.records else 0.0,
            malformed=counts.malformed,
            dropped=total.dropped,
            left_out=dict(counts.left_out),
            unknown=dict(counts.unknown),
            untrainable=total.untrainable,
        )
        try:
            self._tally.add_source(follower.format.name, more)
        except OSError as problem:
            log.debug("counts not kept reason=%s", problem.strerror)
        if total.records:
            name, records = follower.format.name, counted(total.records, "record")
            begun = f"{counted(total.sessions, 'new session')}, " if total.sessions else ""
            self._say(
                "captured",
                f"{name}: {begun}{records}",
                source=name,
                sessions=total.sessions,
                records=total.records,
            )

    def _save(self, every_s: float = 0.0) -> None:
        """Save how far files were read, if that has changed and it is time."""
        if self._state is None or self._unsaved_since is None:
            return
        if time.monotonic() - self._unsaved_since < every_s:
            return
        try:
            self._state.save()
            self._unsaved_since = None
        except OSError as problem:
            self._say_once(f"watch.json cannot be written: {problem.strerror}")

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)
            with contextlib.suppress(OSError):  # the event file's disk may be the full one
                self._say("waiting", text)

    def _say(self, event: str, text: str, **data: object) -> None:
        self._tell(Told(event, text, data))


class _Total:
    """What one look at a source took in."""

    def __init__(self) -> None:
        self.sessions = self.records = 0
        self.dropped: Counter[str] = Counter()
        self.untrainable: Counter[str] = Counter()

    def add(self, result: ImportResult) -> None:
        self.sessions += result.added
        self.records += result.records
        self.dropped.update(result.dropped)
        self.untrainable.update(result.untrainable)


def _transcript(path: Path) -> Path:
    """The database that a write-ahead log belongs to; else the file itself."""
    name = path.name.removesuffix("-wal").removesuffix("-shm").removesuffix("-journal")
    return path.with_name(name) if name else path


def _place(problem: Exception) -> str:
    """Where it was raised; its message is left out, for it might quote a text."""
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def _lower_priority() -> None:
    """Give way to the owner's own work; on Linux a thread has a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
