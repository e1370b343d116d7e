"""The service file: what stands in it, whose it is, and that the managers' own tools take it."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import service, service_manager
from node.app import App
from node.service import Place, ServiceError, State, state_of

ROOT = Path(__file__).parent.parent
HANGS_S = 120.0
PLACE = Place("/opt/venv/bin/python", Path("/home/ann/.groove"), Path("/c"), Path("/s"))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A home with keys, and a user whose files lie in the test's folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    App(home).identity  # noqa: B018 - a home has keys
    return Place(sys.executable, home, tmp_path / "cache", tmp_path / "state")


def values(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


# ---- what stands in it ---------------------------------------------------------------------------


def test_the_unit_names_the_python_and_the_folders_of_this_home() -> None:
    unit = service.systemd(PLACE, 252).text
    assert values(unit, "ExecStart") == ['"/opt/venv/bin/python" "-m" "node.cli" "run"']
    told = values(unit, "Environment")
    assert {'"GROOVE_HOME=/home/ann/.groove"', '"GROOVE_CACHE=/c"', '"GROOVE_STATE=/s"'} <= {*told}


def test_the_unit_tells_systemd_to_watch_to_wait_and_to_leave_the_owner_the_machine() -> None:
    unit = service.systemd(PLACE, 252).text
    for line in (
        *("Type=notify", "WatchdogSec=120", "Restart=on-failure", "KillMode=mixed"),
        *("TimeoutStopSec=30", "UMask=0077", "NoNewPrivileges=yes", "ProtectSystem=full"),
        *("Nice=10", "OOMPolicy=continue", "MemoryHigh=60%", "MemoryMax=75%", "LimitCORE=0"),
    ):
        assert line in unit.splitlines(), line


@pytest.mark.parametrize(("version", "grows"), [(0, False), (253, False), (254, True)])
def test_a_systemd_that_can_waits_longer_after_each_failure(version: int, grows: bool) -> None:
    assert bool(values(service.systemd(PLACE, version).text, "RestartSteps")) == grows


@pytest.mark.parametrize(
    ("home", "private"), [("/home/ann/.groove", "yes"), ("/tmp/groove", "no"), ("/tmpx", "yes")]
)
def test_a_home_under_tmp_is_not_hidden_by_a_private_one(home: str, private: str) -> None:
    place = Place(PLACE.python, Path(home), PLACE.cache, PLACE.state)
    assert values(service.systemd(place, 252).text, "PrivateTmp") == [private]


def test_a_folder_with_characters_that_a_unit_gives_a_meaning_is_written_as_it_is_meant() -> None:
    place = Place("/p/$x y", Path('/a b%n"c\\d$e'), PLACE.cache, PLACE.state)
    unit = service.systemd(place, 252).text
    assert values(unit, "ExecStart")[0].startswith('"@/p/$x y" "/p/$$x y" ')
    assert '"GROOVE_HOME=/a b%%n\\"c\\\\d$e"' in values(unit, "Environment")


@given(st.text(min_size=1, max_size=30))
def test_no_name_of_a_folder_adds_a_line_to_the_unit(name: str) -> None:
    place = Place(PLACE.python, Path("/" + name), PLACE.cache, PLACE.state)
    lines = len(service.systemd(PLACE, 252).text.split("\n"))
    try:
        unit = service.systemd(place, 252).text
    except ServiceError:
        return
    assert len(unit.split("\n")) == lines and len(unit.splitlines()) == lines - 1


@pytest.mark.parametrize("name", ["a\nb", "a\x07b", "a\udcffb", "a\u2028b"])
@pytest.mark.parametrize("make", [lambda place: service.systemd(place, 252), service.launchd])
def test_a_name_that_no_service_file_can_hold_is_refused(
    make: Callable[[Place], service.Service], name: str
) -> None:
    for place in (
        Place(PLACE.python, Path("/" + name), PLACE.cache, PLACE.state),
        Place("/" + name, PLACE.home, PLACE.cache, PLACE.state),
    ):
        with pytest.raises(ServiceError, match="no service file can"):
            make(place)


def test_each_home_has_a_service_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    other = Place(PLACE.python, Path("/srv/other"), PLACE.cache, PLACE.state)
    assert service.systemd(PLACE, 252).name == "groove-node.service"
    assert service.systemd(other, 252).name.startswith("groove-node-")
    assert service.launchd(PLACE).name != service.launchd(other).name


def test_the_agent_is_a_property_list_with_the_same_in_launchds_words() -> None:
    agent = plistlib.loads(service.launchd(PLACE).text.encode())
    assert agent["ProgramArguments"] == ["/opt/venv/bin/python", "-m", "node.cli", "run"]
    assert agent["EnvironmentVariables"]["GROOVE_HOME"] == "/home/ann/.groove"
    assert agent["KeepAlive"] == {"SuccessfulExit": False} and agent["ThrottleInterval"] == 30
    assert agent["ProcessType"] == "Background" and agent["LowPriorityIO"] is True
    assert agent["Umask"] == 0o077


@pytest.mark.parametrize("folder", ["venv", "a$x ${y} b%n"])
def test_systemd_finds_nothing_wrong_with_the_unit(
    place: Place, tmp_path: Path, folder: str
) -> None:
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    place = Place(str(python), place.home, place.cache, place.state)
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    manager = service_manager.Systemd(place)  # for the systemd that is here
    unit = tmp_path / manager.service.name
    unit.write_text(manager.service.text)
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        [tool, "verify", "--user", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# ---- whose it is ---------------------------------------------------------------------------------


@pytest.fixture(params=["systemd", "launchd"])
def planned(request: pytest.FixtureRequest, place: Place) -> service.Service:
    return service.systemd(place, 252) if request.param == "systemd" else service.launchd(place)


def test_a_second_installation_changes_nothing(planned: service.Service) -> None:
    assert state_of(planned.path) is State.ABSENT
    assert service.install(planned) and state_of(planned.path) is State.OURS
    before = planned.path.stat()
    assert not service.install(planned)
    assert planned.path.stat() == before and stat.S_IMODE(before.st_mode) == 0o644


def test_a_file_of_ours_is_brought_up_to_date(planned: service.Service, place: Place) -> None:
    moved = Place("/elsewhere/python", place.home, place.cache, place.state)
    make = service.launchd if planned.path.suffix == ".plist" else service.systemd
    older = make(moved) if make is service.launchd else service.systemd(moved, 252)
    service.install(older)
    assert service.install(planned) and planned.path.read_text() == planned.text


@pytest.mark.parametrize("what", ["another's", "edited", "a link"])
def test_a_file_that_is_not_ours_alone_is_neither_overwritten_nor_removed(
    planned: service.Service, tmp_path: Path, what: str
) -> None:
    service.install(planned)
    if what == "another's":
        planned.path.write_text("[Service]\nExecStart=/bin/true\n")
    elif what == "edited":
        planned.path.write_text(planned.text.replace("10", "5"))
    else:
        planned.path.rename(tmp_path / "end")
        planned.path.symlink_to(tmp_path / "end")
    before = planned.path.read_text()
    with pytest.raises(ServiceError):
        service.install(planned)
    with pytest.raises(ServiceError):
        service.uninstall(planned)
    assert planned.path.read_text() == before


def test_a_pipe_or_a_folder_in_its_place_is_not_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert state_of(tmp_path / "pipe") is state_of(tmp_path / "folder") is State.FOREIGN


@given(st.binary(max_size=400))
def test_whatever_lies_there_is_not_taken_for_ours(blob: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "groove-node.service"
        path.write_bytes(blob)
        assert state_of(path) is State.FOREIGN


# ---- the commands --------------------------------------------------------------------------------

SYSTEMCTL = """#!/bin/sh
# As systemctl answers: --version; for the user a state in a folder, and what it was asked.
state="{state}"
echo "$@" >> "$state/asked"
[ "$1" = --version ] && echo "systemd 252 (252.1)" && exit 0
shift
case "$1" in
show-environment) exit {answers} ;;
enable) ln -sf "{unit}" "{wants}"; echo active > "$state/active" ;;
disable) rm -f "{wants}"; rm -f "$state/active" ;;
stop) rm -f "$state/active" ;;
is-active) cat "$state/active" 2>/dev/null || {{ echo inactive; exit 3; }} ;;
is-enabled) [ -e "{wants}" ] && echo enabled || echo disabled ;;
esac
"""


@pytest.fixture
def groove(place: Place, tmp_path: Path) -> Run:
    """The command, beside a systemctl that answers, or with `deaf` one that does not."""

    def run(*arguments: str, deaf: bool = False) -> subprocess.CompletedProcess[str]:
        tools, state = tmp_path / "tools", tmp_path / "systemd"
        for folder in (tools, state):
            folder.mkdir(exist_ok=True)
        unit = service.systemd(place, 252)
        wants = unit.path.parent / "default.target.wants" / unit.name
        wants.parent.mkdir(parents=True, exist_ok=True)
        script = SYSTEMCTL.format(state=state, unit=unit.path, wants=wants, answers=int(deaf))
        (tools / "systemctl").write_text(script)
        (tools / "systemctl").chmod(0o755)
        return subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments],
            env={
                **os.environ,
                **place.environment,
                "PYTHONSAFEPATH": "",
                "PATH": f"{tools}:{os.environ['PATH']}",
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )

    return run


linux = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


@linux
def test_show_writes_nothing_and_install_writes_what_it_shows(groove: Run, place: Place) -> None:
    unit = service.systemd(place, 252)
    shown = groove("service", "show")
    assert shown.stdout == unit.text and not unit.path.exists()
    told = groove("service", "install")
    assert told.returncode == 0, told.stderr
    assert unit.path.read_text() == unit.text
    assert "Nothing was started" in told.stdout and "enable-linger" in told.stdout


@linux
def test_the_service_is_started_stopped_and_removed_without_a_trace(
    groove: Run, place: Place, tmp_path: Path
) -> None:
    assert "service install" in groove("up").stderr
    assert groove("service", "install", "--start").returncode == 0
    told = json.loads(groove("service", "status", "--json").stdout)
    assert (told["file"], told["enabled"], told["active"]) == ("as written", "enabled", "active")
    assert groove("down").returncode == 0
    assert json.loads(groove("service", "status", "--json").stdout)["active"] == "inactive"
    removed = json.loads(groove("service", "uninstall", "--json").stdout)["removed"]
    assert len(removed) == 2  # the unit, and the link that enables it
    config = tmp_path / "config"
    assert not [path for path in config.rglob("*") if path.is_symlink() or path.is_file()]
    asked = (tmp_path / "systemd" / "asked").read_text()
    assert "disable --now" in asked and asked.count("daemon-reload") >= 2
    assert groove("service", "uninstall").stdout == "there was nothing to remove\n"
    assert (place.home / "keys" / "root.key").exists()


@linux
def test_where_systemd_does_not_answer_the_owner_is_told_what_to_type(
    groove: Run, place: Place, tmp_path: Path
) -> None:
    done = groove("service", "install", "--start", deaf=True)
    assert done.returncode == 1
    assert "systemctl --user daemon-reload && systemctl --user enable --now groove" in done.stderr
    assert service.systemd(place, 252).path.exists()
    assert groove("service", "uninstall", deaf=True).returncode == 0
    assert not service.systemd(place, 252).path.exists()


def test_a_python_that_does_not_find_the_node_from_elsewhere_is_refused(
    place: Place, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ServiceError, match="does not find groove-node"):
        service_manager.check_starts(Place(str(python), place.home, place.cache, place.state))


# ---- the log -------------------------------------------------------------------------------------


def test_the_last_lines_of_the_log_are_printed(groove: Run, place: Place) -> None:
    assert "no node has logged here" in groove("logs").stderr
    (place.home / "node.log").write_text("".join(f"line {n}\n" for n in range(90_000)))
    assert groove("logs", "-n", "2").stdout == "line 89998\nline 89999\n"
    assert len(groove("logs").stdout.splitlines()) == 50


def test_a_log_is_followed_when_it_begins_anew(place: Place) -> None:
    log = place.home / "node.log"
    log.write_text("one\n")
    child = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "logs", "-f"],
        env={**os.environ, **place.environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "one\n"
        with log.open("a") as more:
            more.write("two\n")
        assert child.stdout.readline() == "two\n"
        log.rename(log.with_name("node.log.1"))
        log.write_text("three\n")
        assert child.stdout.readline() == "three\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
