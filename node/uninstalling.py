"""Taking the node away: what lies of it on this machine, its removal, and the proof of it.

The order makes a removal that was killed one that can be run again: the service goes first, so that
nothing comes back by itself; then what is remembered outside the home, the home, and last the
cache. While the home goes, a marker in it says so: a folder without keys would else be nobody's.
What was given to peers is out of reach, and said before anything is removed.
"""

from __future__ import annotations

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

from . import config, keyfiles, service_manager
from .api import listening
from .errors import OwnerError
from .home import USER_ID_FILE, cache_path, home_path, remembered_path, state_path, sync_dir
from .service import ServiceError, State, state_of

if TYPE_CHECKING:
    from .app import App

MARKER = "uninstall.pending"
KEYS = "keys"
# A cache that GROOVE_CACHE names may hold what others put there.
_CACHED = re.compile(
    r"chassis|canaries|kingfisher|probes|encoder-hashes\.json|(chassis|encoder)[\w-]*\.lock"
    r"|encoder-[0-9a-f]{16}|[0-9a-f]{32}\.vscdb|\.(chassis|encoder)[\w.-]*\.tmp"
)
_PROBE = re.compile(r"[0-9a-f]{32}\.probe")
_COMPLETIONS = (
    "~/.local/share/bash-completion/completions/groove-node",
    "~/.zfunc/_groove-node",
    "~/.config/fish/completions/groove-node.fish",
)
_BUSY = {"run": "a node runs here", "round": "a round is running"}


class UninstallError(OwnerError):
    """The node cannot be taken away, or not all of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something of the node on this machine."""

    what: str  # service, state, home, cache, socket, completion
    path: Path
    spare: tuple[str, ...] = ()  # names in it that stay
    only: tuple[str, ...] = ()  # if given, the names in it that go

    def files(self) -> Iterator[tuple[Path, int]]:
        """What would go, with its size; links are not followed."""
        for name in self.tops():
            top = Path(os.path.realpath(name)) if self.what == "home" else name
            if top.is_symlink() or not top.is_dir():
                yield top, top.lstat().st_size
                continue
            for folder, _, inside in os.walk(top):
                for each in inside:
                    path = Path(folder, each)
                    with suppress(FileNotFoundError):
                        yield path, path.lstat().st_size

    def tops(self) -> list[Path]:
        """The files and folders that go as they are."""
        if not _lies(self.path):
            return []
        if not self.spare and not self.only:
            return [self.path]
        inside = [x for x in sorted(self.path.iterdir()) if x.name not in self.spare]
        return [x for x in inside if not self.only or x.name in self.only]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an uninstall comes to."""

    home: Path
    parts: tuple[Part, ...]
    strangers: tuple[Path, ...]  # in the cache, and not the node's: they stay
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
        parts.append(Part("home", home, (KEYS,) if keep_keys and (home / KEYS).is_dir() else ()))
    cache, strangers = cache_path(), []
    if not keep_cache and cache.is_dir():
        inside = list(cache.iterdir())
        ours = [x for x in inside if _is_of_cache(x)]
        strangers = sorted({*inside} - {*ours})
        only = tuple(sorted(x.name for x in ours)) or ("",)  # "": of a cache of strangers alone
        parts.append(Part("cache", cache, only=only if strangers else ()))
    for given in _COMPLETIONS:
        path = Path(given).expanduser()
        if path.is_file() and b"_groove" in path.read_bytes()[:4096]:
            parts.append(Part("completion", path))
    exported = (home / KEYS / keyfiles.BACKUP).exists()
    return Plan(home, tuple(parts), tuple(strangers), exported, keep_keys)


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
    with ExitStack() as locks:
        if _lies(planned.home):
            _hold(planned.home, locks)
            (planned.home / MARKER).touch(mode=0o600)
        for part in planned.parts:
            if part.what == "service" or not part.tops():
                continue
            if part.what == "home":
                _empty_home(part)
            else:
                for top in part.tops():
                    _remove(top)
            done.append(str(part.path))
    with suppress(OSError):
        state_path().rmdir()  # if no other home remembers anything
    if targets:
        raise UninstallError(
            f"what {targets[0]} holds is still there: a link led to it"
            + (f", and to {len(targets) - 1} more" if targets[1:] else ""),
            unchanged="The rest is removed, the links too.",
            next_step="Remove it yourself, if nobody else needs it.",
        )
    if left := [str(path) for part in planned.parts for path in part.tops()]:
        raise UninstallError(
            f"{left[0]} is still there" + (f", and {len(left) - 1} more" if left[1:] else ""),
            unchanged="The rest is removed.",
            next_step="Run `groove-node uninstall` again, or remove it by hand.",
        )
    return done


def _led_to(planned: Plan) -> list[Path]:
    """Where links in the home lead: what is there outlives them, the keys perhaps."""
    found = []
    for part in planned.parts:
        if part.what != "home" or not _lies(part.path):
            continue
        real = Path(os.path.realpath(part.path))
        links = [x for x in sorted(real.iterdir()) if x.is_symlink() and x.name not in part.spare]
        targets = [Path(os.path.realpath(link)) for link in links]
        found += [x for x in targets if x.exists() and not x.is_relative_to(real)]
    return found


def _check_is_home(home: Path) -> None:
    """Refuse a folder that GROOVE_HOME names by mistake: what is in it would be gone."""
    real = Path(os.path.realpath(home))
    if Path.home().resolve().is_relative_to(real):
        raise UninstallError(
            f"{home} holds your own home folder, and is not removed",
            unchanged="Nothing was removed.",
            next_step="Set GROOVE_HOME to the folder that `groove-node init` made.",
        )
    marks = (f"{KEYS}/{keyfiles.DOC}", f"{KEYS}/{keyfiles.ROOT}", USER_ID_FILE, MARKER)
    if any((home / mark).is_file() for mark in marks) or not any(home.iterdir()):
        return
    raise UninstallError(
        f"{home} is no home of a node: it has neither keys nor an id",
        unchanged="Nothing was removed.",
        next_step="Set GROOVE_HOME to where your home is, or remove the folder yourself.",
    )


def _is_of_cache(path: Path) -> bool:
    """Whether the node made it: others may keep things beside, and under names much like these."""
    if path.name == "probes":
        return path.is_dir() and all(_PROBE.fullmatch(x.name) for x in path.iterdir())
    return bool(_CACHED.fullmatch(path.name))


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
    for path in sorted(home.glob("*.lock")):
        if not stat.S_ISREG(path.lstat().st_mode):
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


def _empty_home(part: Part) -> None:
    """Remove what is in a home: the marker last, so that what a kill leaves is known again."""
    real = Path(os.path.realpath(part.path))
    spare = {*part.spare, MARKER}
    # The keys first: whoever opens the home now finds none, and begins nothing in it.
    for top in sorted(real.iterdir(), key=lambda x: (x.name != KEYS, x.name)):
        if top.name not in spare:
            _remove(top)
    (real / MARKER).unlink(missing_ok=True)
    sync_dir(real)
    if not part.spare:
        real.rmdir()
        if part.path.is_symlink():
            part.path.unlink()


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; what went meanwhile is gone all the same."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lies(path: Path) -> bool:
    return path.is_symlink() or path.exists()
