"""Where the endpoint listens: an address of this machine's own, or a socket file of the owner's.

Anything that another machine could reach is refused, and so is a socket file in a folder that
others may enter: who can connect to it needs no token.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from node.errors import OwnerError
from node.home import PRIVATE_FILE, check_private, private_dir

SOCKET_FILE = "api.sock"
SOCKET_PATH_BYTES_MAX = 107  # of Linux; 103 on macOS, which says so itself
BACKLOG = 256
_TCP = re.compile(r"(127\.0\.0\.1|localhost|\[::1\]):([0-9]{1,5})")
_NEXT = (
    'Choose another in groove.toml, such as `listen = "127.0.0.1:4023"` under [api], or '
    '`listen = "unix"` for a socket file; `listen = ""` is no endpoint and no dashboard.'
)


class ListenBusyError(OwnerError):
    """Another program listens there."""


class ListenRefusedError(OwnerError):
    """There the endpoint does not listen, or cannot."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Tcp:
    host: str  # without brackets
    port: int  # 0: any that is free


@dataclass(frozen=True, slots=True)
class Unix:
    path: Path


def parse(listen: str, home: Path) -> Tcp | Unix:
    """What `listen` under [api] says. Raises ListenRefusedError."""
    if listen == "unix":
        return Unix(home / SOCKET_FILE)
    if listen.startswith("unix:") and listen != "unix:":
        return Unix(Path(listen.removeprefix("unix:")).expanduser().absolute())
    found = _TCP.fullmatch(listen)
    if not found or int(found[2]) > 65535:
        raise _refused(
            f"the endpoint cannot listen on {listen!r}: 127.0.0.1, localhost or [::1] with a port "
            "was expected, or unix:PATH"
        )
    host = {"localhost": "127.0.0.1", "[::1]": "::1"}.get(found[1], found[1])
    return Tcp(host, int(found[2]))


def bind(place: Tcp | Unix) -> socket.socket:
    """A socket that listens there. Raises ListenBusyError or ListenRefusedError."""
    match place:
        case Tcp(host, port):
            return _bind_tcp(host, port)
        case Unix(path):
            return _bind_unix(path)


def url_of(listening: socket.socket) -> str:
    """http://127.0.0.1:4022, or unix:/home/…/api.sock."""
    name = listening.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def unlink_own(listening: socket.socket, path: Path, inode: int) -> None:
    """Take the socket file away, unless it is another's by now."""
    listening.close()
    with suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as problem:
        made.close()
        if problem.errno == errno.EADDRINUSE:
            raise _busy(f"port {port} of {host} is taken by another program") from None
        why = problem.strerror or str(problem)
        raise _refused(f"the endpoint cannot listen on port {port} of {host}: {why}") from None
    return made


def _bind_unix(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise _refused(f"{path} is too long for a socket: at most {SOCKET_PATH_BYTES_MAX} bytes")
    try:
        check_private(private_dir(path.parent))
    except OwnerError as problem:
        raise ListenRefusedError(
            problem.what, unchanged="The endpoint was not started.", next_step=problem.next_step
        ) from None
    _make_room(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        path.chmod(PRIVATE_FILE)  # nobody else can be in the folder meanwhile
        made.listen(BACKLOG)
    except OSError as problem:
        made.close()
        if problem.errno == errno.EADDRINUSE:
            raise _busy(f"{path} is taken by another program") from None
        why = problem.strerror or str(problem)
        raise _refused(f"the endpoint cannot listen on {path}: {why}") from None
    return made


def _make_room(path: Path) -> None:
    """Take away what a killed process left; nothing that is alive, and no other kind of file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _refused(f"{path} is there already, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(1.0)
        try:
            asked.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as problem:
            raise _busy(f"{path} is taken by another program: {problem}") from None
        else:
            raise _busy(f"{path} is taken by another program")


def _busy(what: str) -> ListenBusyError:
    return ListenBusyError(what, unchanged="The endpoint was not started.", next_step=_NEXT)


def _refused(what: str) -> ListenRefusedError:
    return ListenRefusedError(what, unchanged="The endpoint was not started.", next_step=_NEXT)
