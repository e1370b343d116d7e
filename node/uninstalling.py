"""Taking the node away: what lies of it on this machine, its removal, and the proof of it.

The order makes a removal that was killed one that can be run again: the service goes first, so that
nothing comes back by itself; then what is remembered outside the home, the home, and last the
cache. While the home goes, a marker in it says so: a folder without keys would else be nobody's.
What was given to peers is out of reach, and said before anything is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import config, footprint, keyfiles, service_manager
from .api import listening
from .errors import OwnerError
from .footprint import Names
from .home import USER_ID_FILE, cache_path, home_path, remembered_path, state_path, sync_dir
from .service import ServiceError, State, state_of

if TYPE_CHECKING:
    from .app import App

MARKER = "uninstall.pending"
KEYS = "keys"
_COMPLETIONS = (
    "~/.local/share/bash-completion/completions/groove-node",
    "~/.zfunc/_groove-node",
    "~/.config/fish/completions/groove-node.fish",
)
_ID = re.compile(r"[0-9a-f]{32}\n?")
_AGAIN = "Run `groove-node uninstall` again, or remove the rest by hand."
_BUSY = {"run": "a node runs here", "round": "a round is running"}


class UninstallError(OwnerError):
    """The node cannot be taken away, or not all of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something of the node on this machine."""

    what: str  # service, state, home, cache, socket, completion
    path: Path
    names: Names | None = None  # of a folder that others may share: what in it is the node's
    spare: tuple[str, ...] = ()  # names in it that stay

    @property
    def folder(self) -> Path:
        """Where it lies, if a link leads to it."""
        return Path(os.path.realpath(self.path))

    def files(self) -> Iterator[tuple[Path, int]]:
        """What would go, with its size; links are not followed."""
        for top in self.tops():
            for path in (top, *_beneath(top)):
                with suppress(FileNotFoundError):
                    about = path.lstat()
                    if not stat.S_ISDIR(about.st_mode):
                        yield path, about.st_size

    def tops(self) -> list[Path]:
        """The files and folders that go as they are."""
        if not _lies(self.path):
            return []
        if self.names is None:
            return [self.path]
        spare = {self.folder / name for name in self.spare}
        found = footprint.ours(self.folder, self.names) if self.folder.is_dir() else ()
        return [x for x in found if spare.isdisjoint((x, x.parent))]

    def strangers(self) -> list[Path]:
        """What lies in it, is not the node's, and stays."""
        if self.names is None or not self.folder.is_dir():
            return []
        return list(footprint.strangers(self.folder, self.names))


@dataclass(frozen=True, slots=True)
class Plan:
    """What an uninstall comes to."""

    home: Path
    parts: tuple[Part, ...]
    exported: bool  # a copy of the keys was made at some time
    keeps_keys: bool

    def measured(self) -> list[tuple[Part, int, int]]:
        """Each part that is there, its files and its bytes."""
        found = []
        for part in self.parts:
            sizes = [size for _, size in part.files()]
            if part.tops():
                found.append((part, len(sizes), sum(sizes)))
        return found

    @property
    def strangers(self) -> list[Path]:
        """What lies beside, in the home or the cache, and stays."""
        return [path for part in self.parts for path in part.strangers()]

    @property
    def loses_keys(self) -> bool:
        return (self.home / KEYS).is_dir() and not self.keeps_keys


def plan(*, keep_keys: bool = False, keep_cache: bool = False) -> Plan:
    """Look what there is. Changes nothing; raises UninstallError for a home that is none."""
    home = home_path()
    parts = [Part("service", path) for path in _service_files()]
    parts += [Part("state", path) for path in _remembered(home, keep_keys)]
    parts += [Part("socket", path) for path in _sockets(home)]
    if _lies(home):
        _check_is_home(home)
        parts.append(Part("home", home, footprint.HOME, (KEYS,) if keep_keys else ()))
    if not keep_cache and cache_path().is_dir():
        parts.append(Part("cache", cache_path(), footprint.CACHE))
    for given in _COMPLETIONS:
        path = Path(given).expanduser()
        if path.is_file() and b"_groove" in path.read_bytes()[:4096]:
            parts.append(Part("completion", path))
    exported = (home / KEYS / keyfiles.BACKUP).exists()
    return Plan(home, tuple(parts), exported, keep_keys)


def published(app: App) -> list[str]:
    """Names of own leaves that peers have been shown and that were not retracted."""
    from . import orders

    shown = app.shown()
    if not shown:
        return []
    gone = orders.retracted(app)
    names = {leaf.id: leaf.name for leaf in app.forests.forest()}
    return [] if "" in gone else sorted(names.get(x, str(x)) for x in shown if x not in gone)


def carry_out(planned: Plan) -> list[str]:
    """Remove it all; returns what was removed. Raises OwnerError if something is left.

    Killed at any point, it can be run again, with a plan made anew.
    """
    targets = _led_to(planned)
    done = _without_service()
    try:
        with ExitStack() as locks:
            if _lies(planned.home):
                _hold(planned.home, locks)
                (planned.home / MARKER).touch(mode=0o600)
            for part in planned.parts:
                if part.what != "service" and part.tops():
                    _without(part)
                    done.append(str(part.path))
        with suppress(OSError):
            state_path().rmdir()  # if no other home remembers anything
    except OSError as problem:
        raise UninstallError(
            f"it could not all be removed: {problem}",
            unchanged="What was removed until then is gone; the rest is as it was.",
            next_step=_AGAIN,
        ) from None
    left = [path for part in planned.parts for path in part.tops()]
    if left:
        more = f", and {len(left) - 1} more" if left[1:] else ""
        raise UninstallError(
            f"{left[0]} is still there{more}",
            unchanged="The rest is removed.",
            next_step=_AGAIN,
        )
    if targets:
        raise UninstallError(
            f"what links led to is still there: {', '.join(map(str, targets))}",
            unchanged="The rest is removed, the links too.",
            next_step="Remove it yourself, if nobody else needs it.",
        )
    return done


def _led_to(planned: Plan) -> list[Path]:
    """Where links lead that go: what is there outlives them, the keys perhaps."""
    found = set()
    for part in planned.parts:
        if part.names is None:
            continue
        links = [x for top in part.tops() for x in (top, *_beneath(top)) if x.is_symlink()]
        targets = (Path(os.path.realpath(link)) for link in links)
        found |= {x for x in targets if x.exists() and not x.is_relative_to(part.folder)}
    return sorted(found)


def _check_is_home(home: Path) -> None:
    """Refuse a folder that GROOVE_HOME names by mistake: what is in it would be gone."""
    real = Path(os.path.realpath(home))
    if Path.home().resolve().is_relative_to(real):
        raise UninstallError(
            f"{home} holds your own home folder, and is not removed",
            unchanged="Nothing was removed.",
            next_step="Set GROOVE_HOME to the folder that `groove-node init` made.",
        )
    if (home / MARKER).is_file() or _has_id(home) or _has_keys(home) or not any(home.iterdir()):
        return
    raise UninstallError(
        f"{home} is no home of a node: it has neither keys nor an id of one",
        unchanged="Nothing was removed.",
        next_step="Set GROOVE_HOME to where your home is, or remove the folder yourself.",
    )


def _has_id(home: Path) -> bool:
    try:
        return bool(_ID.fullmatch((home / USER_ID_FILE).read_text("ascii")))
    except (OSError, ValueError):
        return False


def _has_keys(home: Path) -> bool:
    from gossip.wire import KeyDoc, WireError, decode

    try:
        return isinstance(decode((home / KEYS / keyfiles.DOC).read_bytes(), KeyDoc), KeyDoc)
    except (OSError, WireError):
        return False


def _remembered(home: Path, keep_keys: bool) -> list[Path]:
    """What GROOVE_STATE holds of this home. Kept keys keep what is known of their epoch."""
    kinds = [(home, "deletion"), (home / "consent.db", "consent")]
    if not keep_keys:
        kinds.append((home, "keys"))
    files = [remembered_path(*kind) for kind in kinds]
    return [path for file in files for path in (file, file.with_suffix(".lock")) if _lies(path)]


def _sockets(home: Path) -> list[Path]:
    """A socket file outside the home, which a node that was killed has left."""
    try:
        listen = config.load(home).api.listen
        place = listening.parse(listen, home) if listen else None
    except OwnerError:
        return []
    if not isinstance(place, listening.Unix) or place.path.is_relative_to(home):
        return []
    with suppress(OSError):
        if stat.S_ISSOCK(place.path.lstat().st_mode):
            return [place.path]
    return []


# The service


def _service_files() -> list[Path]:
    try:
        return service_manager.of_this_machine().traces()
    except ServiceError:
        return []  # a machine without a manager that is known


def _without_service() -> list[str]:
    """Stop and remove the service. Raises ServiceError, with nothing removed, for another's."""
    try:
        manager = service_manager.of_this_machine()
    except ServiceError:
        return []
    if state_of(manager.service.path) is State.ABSENT and not manager.traces():
        return []
    return service_manager.remove(manager)


def _hold(home: Path, locks: ExitStack) -> None:
    """Take every lock of the home, so that nothing works in it. Raises UninstallError."""
    for path in footprint.ours(Path(os.path.realpath(home)), footprint.HOME):
        if path.suffix != ".lock" or not stat.S_ISREG(path.lstat().st_mode):
            continue  # no lock of ours: a pipe would keep us waiting
        file = locks.enter_context(path.open("rb"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UninstallError(
                _BUSY.get(path.stem, f"another command works here ({path.name})"),
                unchanged="The home was left as it is.",
                next_step="End it (Ctrl-C where it runs; `groove-node status` names its process), "
                "then run `groove-node uninstall` again.",
            ) from None


# Files


def _without(part: Part) -> None:
    """Remove a part; of a home the marker last, so that what a kill leaves is known again."""
    # The keys first: whoever opens the home now finds none, and begins nothing in it.
    for top in sorted(part.tops(), key=lambda x: (KEYS not in (x.name, x.parent.name), x)):
        if top.name != MARKER:
            _remove(top)
    if part.names is None:
        return
    if part.what == "home":
        (part.folder / MARKER).unlink(missing_ok=True)
    sync_dir(part.folder)
    if any(part.folder.iterdir()):
        return  # what stays
    try:
        part.folder.rmdir()
    except OSError as problem:
        if problem.errno == errno.EBUSY:
            return  # a disk of its own, empty now
        raise
    if part.path.is_symlink():
        part.path.unlink()


def _beneath(top: Path) -> Iterator[Path]:
    """All that lies in a folder; nothing of a link or a file."""
    if top.is_symlink():
        return
    for folder, folders, files in os.walk(top):
        yield from (Path(folder, name) for name in (*folders, *files))


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; what went meanwhile is gone all the same."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lies(path: Path) -> bool:
    return path.is_symlink() or path.exists()
