"""What `doctor` tries of the machine and of the endpoint, each at what is wrong with it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.records import save_high
from node import crash, doctor_api, doctor_machine
from node.api import token
from node.app import App
from node.finding import Finding
from node.governor import Senses
from node.overview import RUN_FILE

NOW_S = 1_800_000_000.0


class Stopped:
    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s


class Says:
    """An encoder that gives the vectors it is told."""

    enc8, name, dimensions = bytes(8), "says", 3

    def __init__(self, *vectors: list[float]) -> None:
        self._vectors = [np.array(each, dtype=np.float32) for each in vectors]

    def encode_one(self, text: str) -> Any:
        return self._vectors.pop(0)

    encode: Callable[..., Any]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GROOVE_API_LISTEN", f"127.0.0.1:{free_port()}")
    app = App(home, Stopped(NOW_S))
    app.identity  # noqa: B018 - a home has keys
    for path in home.rglob("*"):
        os.utime(path, (NOW_S, NOW_S))
    os.utime(home, (NOW_S, NOW_S))
    return app


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(app: App, api: dict[str, Any]) -> Iterator[None]:
    told = {"pid": os.getpid(), "addresses": [], "peers": [], "api": api}
    (app.home / RUN_FILE).write_text(json.dumps(told))
    with (app.home / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def endpoint(app: App) -> dict[str, Finding]:
    return {found.check: found for found in doctor_api.endpoint(app)}


@pytest.mark.parametrize(
    ("vectors", "wrong"),
    [
        (([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), ""),
        (([2.0, 0.0, 0.0], [0.0, 1.0, 0.0]), "length 2.000"),
        (([float("nan"), 0.0, 0.0], [0.0, 1.0, 0.0]), "length nan"),
        (([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]), "encoded alike"),
    ],
)
def test_an_encoder_is_believed_only_after_it_has_encoded(
    vectors: tuple[list[float], ...], wrong: str
) -> None:
    told = doctor_machine.tried(Says(*vectors))
    assert told == "" if not wrong else wrong in told


def test_a_clock_behind_a_file_of_the_home_is_bad(app: App) -> None:
    (app.home / "mesh.db").touch()
    os.utime(app.home / "mesh.db", (NOW_S, NOW_S))
    assert doctor_machine.clock(app).verdict == "ok"
    later = NOW_S + 3 * 86_400
    (app.home / "events.jsonl").touch()
    os.utime(app.home / "events.jsonl", (later, later))
    found = doctor_machine.clock(app)
    assert found.verdict == "bad" and "3 days behind" in found.text and found.advice


def test_a_clock_behind_what_peers_have_signed_is_bad(app: App) -> None:
    app.mesh_store.write(save_high(int(NOW_S) // 3600 + 30).puts, (), durable=False)
    for path in app.home.iterdir():
        os.utime(path, (NOW_S, NOW_S))
    found = doctor_machine.clock(app)
    assert found.verdict == "bad" and "hours behind the hour that peers vouch for" in found.text


@pytest.mark.parametrize(
    ("on_battery", "battery", "line"),
    [
        (False, 0.5, "on mains"),
        (True, 0.4, "on battery, 40% left"),
        (True, None, "on battery"),
        (None, None, "no battery is known"),
    ],
)
def test_the_power_is_told_in_words(
    on_battery: bool | None, battery: float | None, line: str
) -> None:
    assert doctor_machine.power_line(senses(on_battery, battery)) == line


def senses(on_battery: bool | None, battery: float | None) -> Senses:
    return Senses(
        idle_s=None,
        on_battery=on_battery,
        battery=battery,
        load=0.0,
        metered=None,
        low_power=None,
        disk_free_bytes=1,
        temperature_c=None,
        model_server=None,
    )


def test_reports_of_faults_are_named_until_they_are_removed(app: App) -> None:
    assert list(doctor_machine.crashes(app)) == []
    path = crash.report(ValueError(), app.home, "run", app.clock)
    (found,) = doctor_machine.crashes(app)
    assert found.verdict == "note" and str(path) in found.text


def test_without_a_node_the_port_is_tried(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoint(app)["endpoint"].verdict == "ok"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("GROOVE_API_LISTEN", f"127.0.0.1:{taken.getsockname()[1]}")
        found = endpoint(app)["endpoint"]
    assert found.verdict == "note" and "taken by another program" in found.text


def test_a_place_that_others_can_reach_is_bad(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROOVE_API_LISTEN", "0.0.0.0:4022")
    assert endpoint(app)["endpoint"].verdict == "bad"


def test_no_endpoint_is_wanted_and_that_is_no_finding(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_API_LISTEN", "")
    assert list(endpoint(app)) == ["endpoint"]


def test_of_a_running_node_its_own_word_is_told(app: App) -> None:
    stands = {"ready": False, "why": "its child has died three times", "running": False}
    api = {"url": "http://127.0.0.1:4022", "backend": stands}
    with running(app, api):
        found = endpoint(app)
    assert found["endpoint"].text.endswith("http://127.0.0.1:4022")
    assert found["back end"].verdict == "bad" and "died three times" in found["back end"].text
    with running(app, {"url": "", "trouble": "port 4022 is taken", "backend": {}}):
        found = endpoint(app)
    assert "port 4022 is taken" in found["endpoint"].text and found["endpoint"].advice


def test_a_token_that_others_can_read_is_bad_and_is_not_shown(app: App) -> None:
    assert endpoint(app)["token"].verdict == "ok"
    secret = token.read_or_make(app.home)
    assert endpoint(app)["token"].verdict == "ok"
    (app.home / token.FILE).chmod(0o644)
    found = endpoint(app)["token"]
    assert found.verdict == "bad" and "chmod 600" in found.advice
    assert secret not in found.text + found.advice
    (app.home / token.FILE).chmod(0o600)
    (app.home / token.FILE).write_text("groove_short")
    assert "holds no token" in endpoint(app)["token"].text


def test_a_server_that_is_not_there_is_named_with_its_address(app: App) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    (app.home / "groove.toml").write_text(f'[api]\nbackend = "llamacpp"\nbackend_url = "{url}"\n')
    found = endpoint(App(app.home, app.clock))["back end"]
    assert found.verdict == "bad" and url in found.text and "backend_url" in found.advice
