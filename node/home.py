"""Where the owner's files live, and the two promises about them: private, and never half-written.

GROOVE_HOME (default ~/.groove) holds what cannot be made again: keys, consent, the corpus. The
cache holds what can: converted models. Nothing else in the node decides on a path or a mode.
"""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import OwnerError

DEFAULT_HOME = "~/.groove"
USER_ID_FILE = "user_id"
FLAG_FILE = "consent.flag"  # there while something may be captured: all that the gate looks at
USER_ID_CHARS_MAX = 128
PRIVATE_FILE, PRIVATE_DIR = 0o600, 0o700


class WideOpenError(OwnerError):
    """A private file or folder can be read or changed by others."""

    exit_code = 2


class HomeError(OwnerError):
    """The home cannot be used."""


def home_path() -> Path:
    """Where the home is, without making it."""
    return Path(os.environ.get("GROOVE_HOME") or DEFAULT_HOME).expanduser().absolute()


def groove_home() -> Path:
    """The home, made with mode 0700 if it is missing. Raises HomeError if that fails."""
    return private_dir(home_path())


def groove_cache() -> Path:
    """The cache folder, made with mode 0700 if it is missing."""
    return private_dir(cache_path())


def cache_path() -> Path:
    """Where what can be made again is kept: GROOVE_CACHE or the platform's. It is not made here."""
    configured = os.environ.get("GROOVE_CACHE")
    if configured:
        return Path(configured).expanduser().absolute()
    import platformdirs  # 20 ms that the capture gate must not pay

    return Path(platformdirs.user_cache_dir("groove-node"))


def state_path() -> Path:
    """Where to keep what must not go back when the home is restored: GROOVE_STATE, or the
    platform's folder. It is not made here."""
    configured = os.environ.get("GROOVE_STATE")
    if configured:
        return Path(configured).expanduser().absolute()
    import platformdirs  # 20 ms that the capture gate must not pay

    return Path(platformdirs.user_state_dir("groove-node"))


def remembered_path(place: Path, kind: str) -> Path:
    """The file in GROOVE_STATE that remembers one kind of thing of a home, or of a store in it."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(place))).hexdigest()[:32]
    return state_path() / f"{kind}-{name}.json"


def owner_path(path: str | Path) -> Path:
    """Resolve a path; one under the specification's ~/.groove follows GROOVE_HOME."""
    parts = Path(path).parts
    if parts[:2] == Path(DEFAULT_HOME).parts:
        return groove_home().joinpath(*parts[2:])
    return Path(path).expanduser().absolute()


def check_private(path: Path) -> None:
    """Raise WideOpenError unless `path` is this user's and closed to everybody else."""
    found = path.stat()
    folder = stat.S_ISDIR(found.st_mode)
    want = PRIVATE_DIR if folder else PRIVATE_FILE
    mode = stat.S_IMODE(found.st_mode)
    unchanged = "Nothing was read or changed."
    if found.st_uid != os.geteuid():
        raise WideOpenError(
            f"{path} belongs to user {found.st_uid}, expected {os.geteuid()} (this user)",
            unchanged=unchanged,
            next_step=f"chown {os.geteuid()} {path}",
        )
    if mode & 0o077:
        raise WideOpenError(
            f"{path} has mode {mode:04o}, expected {want:04o}: other users can reach it",
            unchanged=unchanged,
            next_step=f"chmod {want:o} {path}",
        )


def write_atomic(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace a file so that a crash at any point leaves the old bytes or the new, whole."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as out:
            os.fchmod(out.fileno(), mode)  # the umask may have taken bits away
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def sync_dir(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def get_or_create_user_id(home: Path) -> str:
    """Return the install's random id, tied to nothing and nobody; drawn at the first call."""
    path = home / USER_ID_FILE
    if not path.exists():
        fresh = home / f".{USER_ID_FILE}.{uuid.uuid4().hex}.tmp"
        write_atomic(fresh, uuid.uuid4().hex.encode() + b"\n")
        try:
            os.link(fresh, path)  # fails if another process was first: then its id stands
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        sync_dir(home)
    user_id = path.read_text(encoding="utf-8", errors="replace").strip()
    if not user_id.isprintable() or " " in user_id or not 0 < len(user_id) <= USER_ID_CHARS_MAX:
        raise HomeError(
            f"{path} holds {len(user_id)} characters that are no id, expected 32 hex digits",
            unchanged="Nothing was captured or changed.",
            next_step=f"Restore {path} from a backup, or remove it to begin under a new id.",
        )
    return user_id


def dated(paths: Iterable[Path]) -> Iterator[tuple[float, Path]]:
    """Yield when each file was last changed, and its path; those that are gone are left out."""
    for path in paths:
        try:
            yield path.stat().st_mtime, path
        except OSError:
            continue  # deleted since it was listed


def private_dir(folder: Path) -> Path:
    """Return the folder, made with mode 0700 if it is missing."""
    try:
        folder.mkdir(mode=PRIVATE_DIR, parents=True, exist_ok=True)
    except OSError as problem:
        raise HomeError(
            f"{folder} cannot be made: {problem.strerror}",
            unchanged="Nothing was started.",
            next_step="Give a folder of your own in GROOVE_HOME or GROOVE_CACHE.",
        ) from None
    return folder
