"""systemd and launchd as the node asks them: through their own commands, with a word for each no.

Where a manager does not answer (in a container, over a bare ssh) nothing is guessed: the owner is
told what to type where it does.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from . import service
from .service import Place, Service, ServiceError, State

COMMAND_S = 90.0  # longer than a node is given to start or to stop
VERSION_UNKNOWN = 0


class Manager(Protocol):
    """A service manager with one service of this home."""

    service: Service

    def answers(self) -> bool:
        """True if it can be asked for this user's services."""
        ...

    def starts(self) -> tuple[Sequence[str], ...]:
        """What to type to have the node run now and at each login."""
        ...

    def stops(self) -> tuple[Sequence[str], ...]:
        """What to type to have it run no more, until it is asked for."""
        ...

    def forgets(self) -> tuple[Sequence[str], ...]:
        """What to type before the file goes, so that nothing of it stays behind."""
        ...

    def reloads(self) -> tuple[Sequence[str], ...]:
        """What to type once the file is gone."""
        ...

    def standing(self) -> dict[str, Any]:
        """Whether it is enabled and runs, in the manager's words."""
        ...

    def traces(self) -> list[Path]:
        """What is left of the service on disk."""
        ...

    def advice(self) -> str:
        """What the owner may want to know besides."""
        ...


class Systemd:
    """The user's systemd."""

    def __init__(self, place: Place) -> None:
        self.service = service.systemd(place, _version())

    def answers(self) -> bool:
        return _quiet("systemctl", "--user", "show-environment")[0] == 0

    def starts(self) -> tuple[Sequence[str], ...]:
        return (
            ("systemctl", "--user", "daemon-reload"),
            ("systemctl", "--user", "enable", "--now", self.service.name),
        )

    def stops(self) -> tuple[Sequence[str], ...]:
        return (("systemctl", "--user", "stop", self.service.name),)

    def forgets(self) -> tuple[Sequence[str], ...]:
        return (("systemctl", "--user", "disable", "--now", self.service.name),)

    def reloads(self) -> tuple[Sequence[str], ...]:
        return (("systemctl", "--user", "daemon-reload"),)

    def standing(self) -> dict[str, Any]:
        enabled = _quiet("systemctl", "--user", "is-enabled", self.service.name)[1]
        if not self.service.path.exists():
            enabled = "no"  # what systemctl says of a unit that is not there is a sentence
        active = _quiet("systemctl", "--user", "is-active", self.service.name)[1]
        lingers = Path("/var/lib/systemd/linger", getpass.getuser()).exists()
        return {"enabled": enabled, "active": active, "lingers": lingers}

    def traces(self) -> list[Path]:
        folder, name = self.service.path.parent, self.service.name
        wanted = [folder / "default.target.wants" / name, *folder.glob(f"*.wants/{name}")]
        return sorted(
            {path for path in (self.service.path, *wanted) if path.is_symlink() or path.exists()}
        )

    def advice(self) -> str:
        if Path("/var/lib/systemd/linger", getpass.getuser()).exists():
            return ""
        return (
            "It runs while you are logged in. To have it run from boot on: "
            f"`loginctl enable-linger {getpass.getuser()}`."
        )


class Launchd:
    """The user's launchd."""

    def __init__(self, place: Place) -> None:
        self.service = service.launchd(place)
        self._domain = f"gui/{os.getuid()}"

    def answers(self) -> bool:
        return _quiet("launchctl", "print", self._domain)[0] == 0

    def starts(self) -> tuple[Sequence[str], ...]:
        return (
            ("launchctl", "enable", f"{self._domain}/{self.service.name}"),
            ("launchctl", "bootstrap", self._domain, str(self.service.path)),
        )

    def stops(self) -> tuple[Sequence[str], ...]:
        return (("launchctl", "bootout", f"{self._domain}/{self.service.name}"),)

    forgets = stops

    def reloads(self) -> tuple[Sequence[str], ...]:
        return ()

    def standing(self) -> dict[str, Any]:
        code, told = _quiet("launchctl", "print", f"{self._domain}/{self.service.name}")
        state = re.search(r"^\s*state = (.+)$", told, re.MULTILINE)
        active = state[1] if code == 0 and state else "inactive"
        return {"enabled": "enabled" if code == 0 else "disabled", "active": active}

    def traces(self) -> list[Path]:
        return [self.service.path] if self.service.path.exists() else []

    def advice(self) -> str:
        return "It runs while you are logged in."


def of_this_machine(place: Place | None = None) -> Manager:
    """Raises ServiceError where neither is known."""
    place = place or Place.here()
    match sys.platform:
        case "linux":
            return Systemd(place)
        case "darwin":
            return Launchd(place)
    raise ServiceError(
        f"no service manager of {sys.platform} is known",
        unchanged="Nothing was written.",
        next_step="`groove-node run` runs the node in the foreground.",
    )


def check_starts(place: Place) -> None:
    """Raise ServiceError unless the service would find the program, from anywhere."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    bare |= place.environment
    done = subprocess.run(
        [*place.command[:-1], "--version"],
        env=bare,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode:
        raise ServiceError(
            f"{place.python} does not find groove-node when it is started from elsewhere",
            unchanged="Nothing was written.",
            next_step="Install it there: `pip install .`, or `pip install -e .` in its folder.",
        )


def start(manager: Manager) -> None:
    """Have the node run, now and at each login. Raises ServiceError."""
    _carry_out(manager, manager.starts(), "the node was not started")


def stop(manager: Manager) -> None:
    """Have it run no more until the next login, or `start`. Raises ServiceError."""
    _carry_out(manager, manager.stops(), "the node was not stopped")


def remove(manager: Manager) -> list[str]:
    """Take the service away and return what was removed; nothing of it is left. Raises
    ServiceError, with the file as it was, if it is not ours alone or the manager does not let go.
    """
    before = manager.traces()
    if service.state_of(manager.service.path) in (State.EDITED, State.FOREIGN):
        service.uninstall(manager.service)  # says why not
    answers = manager.answers()
    if answers and before:
        for command in manager.forgets():
            _quiet(*command)  # a service that was never started is forgotten already
    service.uninstall(manager.service)
    for path in manager.traces():
        path.unlink()  # a link of an enabled unit, which a manager that does not answer leaves
    if answers:
        for command in manager.reloads():
            _quiet(*command)
        active = manager.standing()["active"]
        if active not in ("inactive", "unknown", "failed", ""):
            raise ServiceError(
                f"{manager.service.name} is still {active}",
                unchanged="Its file is removed.",
                next_step=" && ".join(" ".join(each) for each in manager.stops()),
            )
    if left := manager.traces():
        raise ServiceError(f"{left[0]} could not be removed", next_step=f"rm {left[0]}")
    return [str(path) for path in before]


def _carry_out(manager: Manager, commands: Sequence[Sequence[str]], failed: str) -> None:
    typed = " && ".join(" ".join(command) for command in commands)
    if not manager.answers():
        raise ServiceError(
            f"{commands[0][0]} does not answer for this user: {failed}",
            unchanged="The service file is as it was.",
            next_step=f"Where you are logged in, type: {typed}\n"
            "or run the node in the foreground: groove-node run",
        )
    for command in commands:
        code, told = _quiet(*command)
        if code:
            raise ServiceError(
                f"`{' '.join(command)}` failed: {told or f'exit code {code}'}",
                unchanged=f"So {failed}.",
                next_step="`groove-node service status` and `groove-node logs` tell more.",
            )


def _version() -> int:
    found = re.match(r"systemd (\d+)", _quiet("systemctl", "--version")[1])
    return int(found[1]) if found else VERSION_UNKNOWN


def _quiet(*command: str) -> tuple[int, str]:
    """A command's exit code, and what it said; 127 where there is no such command."""
    if shutil.which(command[0]) is None:
        return 127, f"{command[0]} is not installed"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no answer in {COMMAND_S:.0f} s"
    return done.returncode, (done.stdout.strip() or done.stderr.strip())
