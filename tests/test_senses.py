"""What a node can tell of the machine that it runs on, and what it does where it cannot."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import process_table, senses
from node.config import NightConfig
from node.process_table import Row, at_work, cpu_s, descendants
from node.senses import MachineSenses, UnansweredError, ask

NOW = 1_800_000_000.0
BUS = {
    "org.freedesktop.login1": f"b true\nt {int((NOW - 900) * 1e6)}\n",
    "org.freedesktop.NetworkManager": "u 4\n",
    "net.hadess.PowerProfiles": 's "balanced"\n',
}


class Machine:
    """Answers of the commands that senses ask; a missing one is not installed."""

    def __init__(self, **answers: str) -> None:
        self.bus = dict(BUS)
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str]) -> str:
        self.asked.append(command[0])
        if command[0] == "busctl":
            if command[4] in self.bus:
                return self.bus[command[4]]
        elif command[0] in self.answers:
            return self.answers[command[0]]
        raise UnansweredError("not here")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look at the load does not wait."""
    monkeypatch.setattr(senses, "FIRST_S", 0.0)


def sensing(tmp_path: Path, machine: Machine, system: str = "linux", **more: Any) -> MachineSenses:
    given: dict[str, Any] = {"terminals": list, "wall_s": lambda: NOW, **more}
    return MachineSenses(tmp_path, NightConfig(), ask=machine, system=system, **given)


# ---- idleness ------------------------------------------------------------------------------------


def test_the_session_manager_says_since_when_nobody_touched_the_machine(tmp_path: Path) -> None:
    found = sensing(tmp_path, Machine())
    assert found.read().idle_s == 900.0
    assert "idle" not in found.unknown


def test_a_session_in_use_is_no_idleness(tmp_path: Path) -> None:
    machine = Machine()
    machine.bus["org.freedesktop.login1"] = "b false\nt 1799999999000000\n"
    assert sensing(tmp_path, machine).read().idle_s == 0.0


@pytest.mark.parametrize(
    "said", [None, "", "b false\nt 0\n", "b true\nt 0\n", "t\nb\n", "b true\n"]
)
def test_a_desktop_that_tells_nothing_is_judged_by_its_terminals_and_it_is_said(
    tmp_path: Path, said: str | None
) -> None:
    machine = Machine()
    del machine.bus["org.freedesktop.login1"]
    if said is not None:
        machine.bus["org.freedesktop.login1"] = said
    terminals = [tmp_path / "pts0", tmp_path / "pts1", tmp_path / "gone"]
    for path, at in zip(terminals[:2], (NOW - 3600, NOW - 60), strict=True):
        path.touch()
        os.utime(path, (at, NOW))
    found = sensing(tmp_path, machine, terminals=lambda: terminals)
    assert found.read().idle_s == pytest.approx(60.0)
    assert "by load and by terminals" in found.unknown["idle"]


def test_without_terminals_load_alone_judges(tmp_path: Path) -> None:
    machine = Machine()
    machine.bus.clear()
    found = sensing(tmp_path, machine)
    assert found.read().idle_s is None
    assert found.unknown["idle"].endswith("by load alone")


def test_a_mac_is_asked_for_its_last_input_and_its_power_mode(tmp_path: Path) -> None:
    machine = Machine(
        ioreg='  | "HIDIdleTime" = 125000000000\n', pmset=" lowpowermode         1\n sleep 1\n"
    )
    seen = sensing(tmp_path, machine, "darwin").read()
    assert (seen.idle_s, seen.low_power) == (125.0, True)
    assert "busctl" not in machine.asked


# ---- power, network, disk ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "metered"),
    [("u 1", True), ("u 2", False), ("u 3", True), ("u 4", False), ("u 0", None)],
)
def test_the_network_manager_says_whether_it_is_metered(
    tmp_path: Path, said: str, metered: bool | None
) -> None:
    machine = Machine()
    machine.bus["org.freedesktop.NetworkManager"] = said + "\n"
    found = sensing(tmp_path, machine)
    assert found.read().metered is metered
    assert ("metered" in found.unknown) is (metered is None)


def test_the_power_profile_says_whether_to_save_power(tmp_path: Path) -> None:
    machine = Machine()
    assert sensing(tmp_path, machine).read().low_power is False
    machine.bus["net.hadess.PowerProfiles"] = 's "power-saver"\n'
    assert sensing(tmp_path, machine).read().low_power is True


@pytest.mark.parametrize(
    ("battery", "expected"),
    [
        (None, (False, None)),  # a desktop
        (SimpleNamespace(percent=62, power_plugged=False), (True, 0.62)),
        (SimpleNamespace(percent=62, power_plugged=True), (False, 0.62)),
        (SimpleNamespace(percent=62, power_plugged=None), (None, 0.62)),
    ],
)
def test_a_battery_is_told_from_mains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, battery: Any, expected: tuple[Any, Any]
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    seen = sensing(tmp_path, Machine()).read()
    assert (seen.on_battery, seen.battery) == expected


def test_what_fails_is_not_known_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise OSError("a driver that is half there")

    monkeypatch.setattr(psutil, "sensors_battery", broken, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", broken, raising=False)
    machine = Machine()
    machine.bus.clear()
    found = sensing(tmp_path / "no such folder", machine)
    seen = found.read()
    known = (seen.on_battery, seen.temperature_c, seen.metered, seen.low_power, seen.idle_s)
    assert known == (None,) * 5 and seen.disk_free_bytes is None
    assert set(found.unknown) >= {"power", "temperature", "metered", "low power", "disk", "idle"}


def test_the_hottest_core_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heats = {"coretemp": [SimpleNamespace(current=51.0), SimpleNamespace(current=84.0)]}
    heats["nvme"] = [SimpleNamespace(current=99.0)]
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: heats, raising=False)
    assert sensing(tmp_path, Machine()).read().temperature_c == 84.0


def test_what_changes_slowly_is_not_asked_again_within_a_minute(tmp_path: Path) -> None:
    machine, now = Machine(), [0.0]
    found = sensing(tmp_path, machine, seconds=lambda: now[0])
    found.read()
    asked = len(machine.asked)
    found.read()
    assert len(machine.asked) == asked
    now[0] += senses.IDLE_S
    found.read()
    assert len(machine.asked) == asked + 1  # idleness alone
    now[0] += senses.SLOWLY_S
    found.read()
    assert len(machine.asked) == 2 * asked + 1


def test_a_command_is_asked_through_the_path_and_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in (("busctl", "echo 'u 1'"), ("slow", "exec sleep 60"), ("fails", "exit 3")):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(senses, "COMMAND_S", 0.2)
    assert ask(["busctl", "get-property"]) == "u 1\n"
    for command in ("slow", "fails", "no such command"):
        with pytest.raises(UnansweredError):
            ask([command])
    assert MachineSenses(tmp_path, NightConfig(), system="linux").read().metered is True


# ---- what computes -------------------------------------------------------------------------------

OURS = {10: Row(1, "groove", 5.0, 2.0), 11: Row(10, "python", 3.0), 12: Row(11, "python", 1.0)}
OTHERS = {1: Row(0, "systemd", 9.0), 20: Row(1, "llama-server", 7.0), 21: Row(1, "python3", 4.0)}


def test_all_that_a_process_started_is_its_own_work() -> None:
    table = OURS | OTHERS
    assert descendants(table, 10) == [10, 11, 12]
    assert cpu_s(table, [10, 11, 12]) == 11.0
    assert descendants(table, 99) == []


@given(st.dictionaries(st.integers(0, 30), st.integers(0, 30), max_size=30), st.integers(0, 30))
def test_a_table_of_processes_of_any_shape_is_followed_to_its_end(
    parents: dict[int, int], root: int
) -> None:
    """A table is read while processes end and begin: it may name parents that never were."""
    table = {pid: Row(parent, "", 0.0) for pid, parent in parents.items() if parent < pid}
    found = descendants(table, root)
    assert len(found) == len(set(found)) and set(found) <= set(table)


def moved(pid: int, seconds: float) -> dict[int, Row]:
    row = OTHERS[pid]
    return OTHERS | {pid: Row(row.parent, row.name, row.cpu_s + seconds)}


NAMES = NightConfig().model_servers


def no_arguments(pid: int) -> list[str]:
    raise AssertionError("only busy interpreters are asked")


def test_a_model_server_is_at_work_only_while_it_computes() -> None:
    assert at_work(OTHERS, moved(20, 0.2), NAMES, 0.1, no_arguments) == "llama-server"
    assert at_work(OTHERS, moved(20, 0.05), NAMES, 0.1, no_arguments) == ""
    assert at_work(OTHERS, OTHERS, NAMES, 0.1, no_arguments) == ""


def test_an_empty_name_among_the_model_servers_hides_no_other() -> None:
    assert at_work(OTHERS, moved(20, 0.2), ("", *NAMES), 0.1, no_arguments) == "llama-server"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["python3", "/opt/bin/vllm", "serve"], "vllm"),
        (["python3", "-m", "vllm.entrypoints.openai"], "vllm"),
        (["python3", "koboldcpp.py"], "koboldcpp"),
        (["python3", "train.py", "--out", "x", "vllm"], ""),
        ([], ""),
    ],
)
def test_a_server_in_an_interpreter_is_known_by_its_program(
    arguments: list[str], name: str
) -> None:
    assert at_work(OTHERS, moved(21, 1.0), NAMES, 0.1, lambda pid: arguments) == name


def test_a_process_that_took_over_a_number_is_counted_from_its_own_start() -> None:
    fresh = OTHERS | {20: Row(1, "ollama", 0.5)}  # less than the one before it had
    assert at_work(OTHERS, fresh, NAMES, 0.1, no_arguments) == "ollama"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_table_of_processes_is_read_whatever_a_process_calls_itself(tmp_path: Path) -> None:
    zeros = "0 " * 30
    for pid, name, parent in ((7, b"a) S 99 (b", 3), (8, b"\xff\xfe", 7)):
        (tmp_path / str(pid)).mkdir()
        head = f" S {parent} 1 1 0 -1 0 0 0 0 0 200 100 50 25 {zeros}\n".encode()
        (tmp_path / str(pid) / "stat").write_bytes(str(pid).encode() + b" (" + name + b")" + head)
    (tmp_path / "9").mkdir()  # it has ended since
    (tmp_path / "self").mkdir()
    table = process_table.rows(tmp_path)
    tick = os.sysconf("SC_CLK_TCK")
    assert table[7] == Row(3, "a) S 99 (b", 300 / tick, 75 / tick)
    assert set(table) == {7, 8} and table[8].parent == 7


def test_the_table_holds_this_process_and_its_children() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in descendants(process_table.rows(), os.getpid())
    finally:
        child.communicate(b"\n")


def computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, float, float]]
) -> Callable[[], Any]:
    """Senses of a machine of so many seconds busy, of all, and of its own, at each look."""
    looks = iter(steps)
    now: list[tuple[float, float, float]] = []

    def rows() -> dict[int, Row]:
        now[:] = [next(looks)]
        return {os.getpid(): Row(1, "groove", now[0][2])}

    monkeypatch.setattr(process_table, "total_s", lambda: now[0][:2])
    found = sensing(tmp_path, Machine(), rows=rows)
    return lambda: (found.read().load, found.own_cpu_s)


def test_the_load_is_what_others_take_of_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [(0, 0, 0), (30.0, 100.0, 10.0), (90.0, 200.0, 70.0), (91.0, 300.0, 90.0)]
    look = computing(tmp_path, monkeypatch, steps)
    assert look() == (0.2, 10.0)  # 30 s of 100, 10 of them ours
    assert look() == (0.0, 70.0)
    assert look() == (0.0, 90.0)  # times are rounded: never below nothing


def test_two_looks_at_the_same_tick_tell_no_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = computing(tmp_path, monkeypatch, [(5.0, 10.0, 1.0)] * 2)
    assert look()[0] is None
