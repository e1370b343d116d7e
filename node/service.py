"""The file by which this machine's service manager runs the node: what is in it, and whose it is.

A systemd user unit on Linux, a launchd agent on macOS; one for each home. It is written when the
owner asks for it and never by itself; a file that the owner wrote or changed is neither overwritten
nor removed, which a checksum in the file's head tells.
"""

from __future__ import annotations

import hashlib
import os
import plistlib
import re
import stat
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from .errors import OwnerError
from .home import DEFAULT_HOME, cache_path, home_path, state_path, sync_dir, write_atomic

WATCHDOG_S: Final = 120  # the loop never computes, so this long a silence is a hang
STOP_S: Final = 30  # a node closes in under five seconds; its children resume what they were at
STEPS_SINCE: Final = 254  # the systemd that waits longer after each failure
_MARK: Final = "written by `groove-node service install`; sha256 of the other lines "
_SIGNED: Final = re.compile(re.escape(_MARK) + "([0-9a-f]{64})")
_FILE_BYTES_MAX: Final = 64 << 10


class ServiceError(OwnerError):
    """The service cannot be set up, or taken down."""


class State(StrEnum):
    """Whose file lies where ours belongs."""

    ABSENT = "absent"
    OURS = "as written"
    EDITED = "edited since"
    FOREIGN = "not ours"


@dataclass(frozen=True, slots=True)
class Place:
    """What a service needs to know: which Python, and where this home's folders are."""

    python: str
    home: Path
    cache: Path
    state: Path

    @classmethod
    def here(cls) -> Place:
        return cls(sys.executable, home_path(), cache_path(), state_path())

    @property
    def command(self) -> tuple[str, ...]:
        return (self.python, "-m", "node.cli", "run")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "GROOVE_HOME": str(self.home),
            "GROOVE_CACHE": str(self.cache),
            "GROOVE_STATE": str(self.state),
            # Or a file node.py in the folder that it starts in would be run instead of the node.
            "PYTHONSAFEPATH": "1",
        }

    @property
    def name(self) -> str:
        """groove-node for the default home; another home has a service of its own."""
        if self.home == Path(DEFAULT_HOME).expanduser().absolute():
            return "groove-node"
        return "groove-node-" + hashlib.sha256(os.fsencode(self.home)).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Service:
    """A file for the service manager, and where it belongs."""

    name: str  # as the manager calls it
    path: Path
    text: str


def systemd(place: Place, version: int) -> Service:
    """The user unit. version: of the systemd that will read it."""
    name = f"{place.name}.service"
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(config).expanduser() / "systemd" / "user" / name
    return Service(name, path, _signed(_unit(place, version), "# {}\n"))


def launchd(place: Place) -> Service:
    """The agent's property list."""
    label = f"io.github.{place.name}"
    path = Path("~/Library/LaunchAgents").expanduser() / f"{label}.plist"
    return Service(label, path, _signed(_plist(place, label), "<!-- {} -->\n"))


def _unit(place: Place, version: int) -> str:
    command = _command(place)
    environment = "\n".join(
        f"Environment={_quoted(f'{name}={value}')}" for name, value in place.environment.items()
    )
    back_off = "RestartSteps=6\nRestartMaxDelaySec=10min\n" if version >= STEPS_SINCE else ""
    # A private /tmp would hide a folder of the node that lies there.
    shared = any(
        folder.is_relative_to(there)
        for folder in (place.home, place.cache, place.state, Path(place.python))
        for there in ("/tmp", "/var/tmp")
    )
    return f"""\
[Unit]
Description=groove-node: learns from your own AI work, and shares peer to peer
StartLimitIntervalSec=1h
StartLimitBurst=12

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{environment}
UMask=0077
LimitCORE=0

# It answers, or it is started again; what the owner has to mend (exit 2) is not tried again.
WatchdogSec={WATCHDOG_S}
TimeoutStartSec=3min
TimeoutStopSec={STOP_S}
KillMode=mixed
Restart=on-failure
RestartSec=10
{back_off}RestartPreventExitStatus=2

# Whatever the owner does comes first. The limits leave a training the room that it takes (about
# 4 GB); where there is less memory the kernel ends the training, which resumes, and not the node.
Nice=10
CPUWeight=20
IOSchedulingClass=best-effort
IOSchedulingPriority=7
IOWeight=20
MemoryHigh=60%
MemoryMax=75%
OOMPolicy=continue
TasksMax=512

# What a node never needs. /sys and /proc are shut to a user anyway, and where a container does not
# let them be mounted anew, ProtectKernelTunables would keep the service from starting.
NoNewPrivileges=yes
ProtectSystem=full
PrivateTmp={"no" if shared else "yes"}
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


def _command(place: Place) -> str:
    words = [_quoted(word).replace("$", "$$") for word in place.command]
    if "$" in place.python:
        # systemd takes the program's path literally, and has variables in what it is told of its
        # own name, by which Python finds its environment: so both are given.
        words.insert(0, _quoted("@" + place.python))
    return " ".join(words)


def _plist(place: Place, label: str) -> str:
    for word in (*place.command, *place.environment.values()):
        _check_printable(word)
    return plistlib.dumps(
        {
            "Label": label,
            "ProgramArguments": list(place.command),
            "EnvironmentVariables": place.environment,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 30,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            "ExitTimeOut": STOP_S,
            "SoftResourceLimits": {"Core": 0, "NumberOfFiles": 4096},
            "StandardErrorPath": str(place.home / "service.log"),
            "WorkingDirectory": str(place.home),
        },
        sort_keys=False,
    ).decode()


def _quoted(word: str) -> str:
    """A word of a unit file as it is meant: spaces, quotes and % have a meaning there."""
    _check_printable(word)
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _check_printable(word: str) -> None:
    if not word.isprintable():
        raise ServiceError(
            f"{word!r} holds a character that no service file can",
            unchanged="Nothing was written.",
            next_step="Give the home, or the virtual environment, another name.",
        )


# Whose it is --------------------------------------------------------------------------------------


def _signed(text: str, comment: str) -> str:
    """Put the mark in: at the head, or below that of an XML file."""
    mark = comment.format(_MARK + hashlib.sha256(text.encode()).hexdigest())
    head, sep, rest = text.partition("\n") if text.startswith("<?xml") else ("", "", text)
    return head + sep + mark + rest


def state_of(path: Path) -> State:
    """Whose file lies there. A link is never ours: its end may be anywhere."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # to open a pipe would wait for its writer
            return State.FOREIGN
        with path.open("rb") as file:
            lines = file.read(_FILE_BYTES_MAX).decode("utf-8", "replace").splitlines(keepends=True)
    except FileNotFoundError:
        return State.ABSENT
    for number, line in enumerate(lines[:3]):
        if found := _SIGNED.search(line):
            rest = "".join(lines[:number] + lines[number + 1 :])
            same = hashlib.sha256(rest.encode()).hexdigest() == found[1]
            return State.OURS if same else State.EDITED
    return State.FOREIGN


def install(service: Service) -> bool:
    """Write the file; False if it was there, word for word. Raises ServiceError for another's."""
    state = state_of(service.path)
    if state in (State.EDITED, State.FOREIGN):
        whose = "you changed it" if state is State.EDITED else "it was not written by this command"
        raise ServiceError(
            f"{service.path}: {whose}",
            unchanged="The file was left as it is.",
            next_step="Move it aside first. Changes of your own belong into a drop-in: "
            f"`systemctl --user edit {service.name}`.",
        )
    if state is State.OURS and service.path.read_text(encoding="utf-8") == service.text:
        return False
    service.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(service.path, service.text.encode(), 0o644)  # no secret is in it
    return True


def uninstall(service: Service) -> bool:
    """Remove the file; False if there was none. Raises ServiceError for another's."""
    state = state_of(service.path)
    if state is State.ABSENT:
        return False
    if state is not State.OURS:
        raise ServiceError(
            f"{service.path} is {state}: it may hold what you want to keep",
            unchanged="The file was left as it is.",
            next_step=f"Look at it, then remove it yourself: rm {service.path}",
        )
    service.path.unlink()
    sync_dir(service.path.parent)
    return True
