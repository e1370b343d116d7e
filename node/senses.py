"""What the machine is asked, so that the governor can judge: power, idleness, load, network, disk.

Each question has an answer or none, a time limit, and words for `doctor` where there is no answer:
what is not known stops nothing. All of them are asked in a thread, the cheap ones each time, those
that start a child or change slowly once in a while.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from . import process_table
from .governor import Senses
from .process_table import Rows

if TYPE_CHECKING:
    from .config import NightConfig

COMMAND_S = 1.0  # for a child that answers one question
SLOWLY_S = 60.0  # between two looks at what changes seldom
IDLE_S = 0.7  # between two questions to the session manager: each starts a child
FIRST_S = 0.25  # the first look at the load measures it for so long

_LOGIN = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
_NETWORK = (
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
)
_POWER = ("net.hadess.PowerProfiles", "/net/hadess/PowerProfiles", "net.hadess.PowerProfiles")
_METERED = {"1": True, "2": False, "3": True, "4": False}  # yes, no, and two guesses
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")

Ask = Callable[[Sequence[str]], str]


class SensesPort(Protocol):
    """Looks at the machine. One call at a time."""

    def read(self) -> Senses:
        """Blocks for a moment; never raises for what it cannot tell."""
        ...

    @property
    def unknown(self) -> dict[str, str]:
        """What could not be told at the last look, by sense, and what is done without it."""
        ...

    @property
    def own_cpu_s(self) -> float:
        """What this process and all that it started have computed so far."""
        ...


class UnansweredError(Exception):
    """A command is not here, failed, or took too long."""


def ask(command: Sequence[str]) -> str:
    """Run a command that answers a question; raises UnansweredError."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_S,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise UnansweredError(type(problem).__name__) from None
    return done.stdout.decode(errors="replace")


class MachineSenses:
    """The senses of a real machine."""

    def __init__(
        self,
        home: Path,
        config: NightConfig,
        *,
        ask: Ask = ask,
        system: str = sys.platform,
        terminals: Callable[[], Sequence[Path]] | None = None,
        rows: Callable[[], Rows] = process_table.rows,
        seconds: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """wall_s: the clock that the session's manager and files are dated by."""
        self._home = home
        self._config = config
        self._ask = ask
        self._linux, self._mac = system == "linux", system == "darwin"
        self._terminals = terminals or _terminals
        self._rows = rows
        self._seconds = seconds
        self._wall_s = wall_s
        self._kept: dict[str, tuple[float, Any]] = {}
        self._before: tuple[float, float, Rows, float] | None = None
        self.unknown: dict[str, str] = {}
        self.own_cpu_s = 0.0

    def read(self) -> Senses:
        """Look at everything; what changes slowly is remembered for a minute."""
        on_battery, battery = self._slowly("power", self._power, 10.0) or (None, None)
        load, server = self._computing()
        return Senses(
            idle_s=self._idle(),
            on_battery=on_battery,
            battery=battery,
            load=load,
            metered=self._slowly("metered", self._metered),
            low_power=self._slowly("low power", self._low_power),
            disk_free_bytes=self._disk(),
            temperature_c=self._slowly("temperature", self._temperature, 10.0),
            model_server=server,
        )

    def _slowly(self, name: str, look: Callable[[], Any], every_s: float = SLOWLY_S) -> Any:
        now = self._seconds()
        at, value = self._kept.get(name, (-1e9, None))
        if now - at >= every_s:
            value = look()
            self._kept[name] = now, value
        return value

    def _says(self, sense: str, without: str = "") -> None:
        """Note that a sense is missing, or is there again."""
        if without:
            self.unknown[sense] = without
        else:
            self.unknown.pop(sense, None)

    # ---- idleness --------------------------------------------------------------------------------

    def _idle(self) -> float | None:
        """Seconds since somebody touched the machine."""
        idle_s: float | None = None
        if self._linux:
            since = self._slowly("login", self._idle_since, IDLE_S)
            idle_s = None if since is None else max(0.0, self._wall_s() - since)
            if since == 0.0:
                idle_s = 0.0
        elif self._mac:
            idle_s = self._slowly("input", self._input_idle, IDLE_S)
        if idle_s is not None:
            self._says("idle")
            return idle_s
        touched = []
        for path in self._terminals():
            with suppress(OSError):  # closed since it was listed
                touched.append(path.stat().st_atime)
        if touched:
            self._says("idle", "not known here: judged by load and by terminals")
            return max(0.0, self._wall_s() - max(touched))
        self._says("idle", "not known here: judged by load alone")
        return None

    def _idle_since(self) -> float | None:
        """Unix time since when all sessions are idle; 0 if one is in use; None if nobody says."""
        values = self._property(_LOGIN, "IdleHint", "IdleSinceHint")
        if len(values) != 2 or not values[1].isdigit():
            return None
        hint, since = values[0], int(values[1]) / 1e6
        if hint == "true" and since > 0:
            return since
        # A desktop that never tells of idleness leaves both as they were made.
        return 0.0 if hint == "false" and since > 0 else None

    def _input_idle(self) -> float | None:
        try:
            said = self._ask(["ioreg", "-c", "IOHIDSystem", "-d", "4"])
        except UnansweredError:
            return None
        for line in said.splitlines():
            _, found, value = line.partition('"HIDIdleTime" = ')
            if found and value.strip().isdigit():
                return int(value) / 1e9
        return None

    # ---- power -----------------------------------------------------------------------------------

    def _power(self) -> tuple[bool | None, float | None]:
        try:
            found = psutil.sensors_battery()
        except (AttributeError, OSError, RuntimeError, ValueError):  # a driver tells half of it
            self._says("power", "cannot be read: taken for mains")
            return None, None
        self._says("power")
        if found is None:
            return False, None  # no battery: a desktop, or a server
        plugged = found.power_plugged
        return (None if plugged is None else not plugged), found.percent / 100

    def _low_power(self) -> bool | None:
        if self._mac:
            try:
                said = self._ask(["pmset", "-g"])
            except UnansweredError:
                return None
            words = [line.split() for line in said.splitlines()]
            return any(each[:2] == ["lowpowermode", "1"] for each in words)
        if not self._linux:
            return None
        values = self._property(_POWER, "ActiveProfile")
        self._says("low power", "" if values else "not known here: taken for off")
        return values[0] == "power-saver" if values else None

    def _temperature(self) -> float | None:
        try:
            found = psutil.sensors_temperatures()
        except (AttributeError, OSError, RuntimeError, ValueError):  # not on every system
            found = {}
        heats = [each.current for name in _CPU_SENSORS for each in found.get(name, ())]
        self._says("temperature", "" if heats else "not known here: not judged")
        return max(heats) if heats else None

    # ---- network, disk ---------------------------------------------------------------------------

    def _metered(self) -> bool | None:
        if not self._linux:
            self._says("metered", "not known here: taken for not metered")
            return None
        values = self._property(_NETWORK, "Metered")
        metered = _METERED.get(values[0]) if values else None
        without = "not known here: taken for not metered"
        self._says("metered", without if metered is None else "")
        return metered

    def _disk(self) -> int | None:
        try:
            free = shutil.disk_usage(self._home).free
        except OSError:
            self._says("disk", "cannot be read: not judged")
            return None
        self._says("disk")
        return free

    # ---- what computes ---------------------------------------------------------------------------

    def _computing(self) -> tuple[float | None, str | None]:
        """The share of all cores that others take, and which model server is at work."""
        if self._before is None:
            self._before = self._counted()
            time.sleep(FIRST_S)
        at, busy_s, table, own_s = self._before
        self._before = now_at, now_busy_s, now_table, now_own_s = self._counted()
        whole_s = now_at - at
        if whole_s <= 0:
            return None, None
        # What ended between the two looks was ours and is not counted: never less than nothing.
        ours_s = max(0.0, now_own_s - own_s)
        self.own_cpu_s += ours_s
        load = min(1.0, max(0.0, now_busy_s - busy_s - ours_s) / whole_s)
        wall_s = whole_s / (os.cpu_count() or 1)
        own = set(process_table.descendants(now_table, os.getpid()))
        others = {pid: row for pid, row in now_table.items() if pid not in own}
        server = process_table.at_work(
            table,
            others,
            self._config.model_servers,
            self._config.server_cpu_min * wall_s,
            process_table.arguments_of,
        )
        return load, server

    def _counted(self) -> tuple[float, float, Rows, float]:
        table = self._rows()
        busy_s, whole_s = process_table.total_s()
        own = process_table.descendants(table, os.getpid())
        return whole_s, busy_s, table, process_table.cpu_s(table, own)

    def _property(self, owner: tuple[str, str, str], *names: str) -> list[str]:
        """Properties of an object on the system bus, without types; none if nobody answers."""
        command = ["busctl", "--system", "--timeout=1", "get-property", *owner, *names]
        try:
            lines = self._ask(command).splitlines()
        except UnansweredError:
            return []
        return [line.partition(" ")[2].strip().strip('"') for line in lines]


def _terminals() -> list[Path]:
    """The terminals that somebody may type at. Reading input dates them, output does not."""
    found = []
    for folder, pattern in (("/dev/pts", "[0-9]*"), ("/dev", "tty[0-9]*"), ("/dev", "ttys[0-9]*")):
        for path in Path(folder).glob(pattern):
            try:
                mode = path.stat()
            except OSError:
                continue
            # One that nobody has opened since the machine started belongs to root.
            if stat.S_ISCHR(mode.st_mode) and mode.st_uid == os.geteuid():
                found.append(path)
    return found
