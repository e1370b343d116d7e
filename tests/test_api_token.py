"""The file with the token, and the link that `groove-node dashboard` prints."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from support_endpoint import endpoint, running

from node import entering, overview
from node.api import token
from node.app import App
from node.home import WideOpenError


class Steps:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


async def here(work: Callable[[], str]) -> str:
    return work()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_the_token_is_drawn_once_and_is_the_owners_alone(home: Path) -> None:
    first = token.read_or_make(home)
    assert token.read_or_make(home) == first
    assert len(first) == len(token.PREFIX) + 43
    assert stat.S_IMODE((home / token.FILE).stat().st_mode) == 0o600
    assert [each.name for each in home.iterdir()] == [token.FILE]
    assert token.drawn() != token.drawn()


def test_a_token_that_others_can_read_is_refused(home: Path) -> None:
    token.read_or_make(home)
    (home / token.FILE).chmod(0o640)
    with pytest.raises(WideOpenError):
        token.read(home)


@pytest.mark.parametrize("text", ["", "groove_", "x" * 50, "groove_" + "é" * 43])
def test_a_file_without_a_token_is_refused(home: Path, text: str) -> None:
    token.replace(home)
    (home / token.FILE).write_text(text)
    with pytest.raises(token.TokenError):
        token.read(home)


def test_a_new_token_is_met_at_its_first_use_and_voids_the_old(home: Path) -> None:
    now = Steps()

    async def main() -> None:
        held = token.Token(home, here, now)
        old = held.value
        assert await held.is_it(old)
        assert not await held.is_it("")
        new = token.replace(home)
        now.s += 2
        assert await held.is_it(new)
        assert not await held.is_it(old)
        assert held.generation == 1
        (home / token.FILE).unlink()
        now.s += 2
        assert not await held.is_it(token.drawn())
        assert await held.is_it(new), "what was read when all was well stands"

    trio.run(main)


def test_wrong_tokens_do_not_keep_the_disk_busy(home: Path) -> None:
    looks = 0

    async def counted(work: Callable[[], str]) -> str:
        nonlocal looks
        looks += 1
        return work()

    async def main() -> None:
        held = token.Token(home, counted, Steps())
        for _ in range(100):
            assert not await held.is_it(token.drawn())
            assert not await held.is_it("x")

    trio.run(main)
    assert looks == 1


def node_at(monkeypatch: pytest.MonkeyPatch, api: dict[str, Any] | None) -> None:
    told = None if api is None else {"pid": os.getpid(), "api": api}
    monkeypatch.setattr(overview, "running", lambda app: told)


def test_the_link_lets_a_browser_in_and_a_new_token_puts_all_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = endpoint(home, time.monotonic)
    with running(made):
        node_at(monkeypatch, {"url": made.url})
        app = App(home)
        link = entering.link(app)
        assert link.startswith(f"{made.url}/entry?code=")
        with httpx.Client() as browser:
            code = link.partition("code=")[2]
            assert browser.post(f"{made.url}/entry", data={"code": code}).status_code == 303
            assert "secret" in browser.get(made.url).text
            entering.new_token(app)
            assert entering.link(app).startswith(made.url)
            assert browser.get(made.url).status_code == 401


@pytest.mark.parametrize(
    ("api", "words"),
    [
        (None, "no node runs here"),
        ({}, "no endpoint"),
        ({"url": "", "trouble": "port 4022 is taken"}, "port 4022 is taken"),
        ({"url": "unix:/x/api.sock"}, "no browser opens"),
        ({"url": "http://127.0.0.1:1"}, "another program listens"),
    ],
)
def test_why_there_is_no_link_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, api: dict[str, Any] | None, words: str
) -> None:
    node_at(monkeypatch, api)
    with pytest.raises(entering.NoDashboardError) as none:
        entering.link(App(home))
    assert words in none.value.what
    assert none.value.next_step


def test_a_stranger_on_the_port_of_the_run_file_is_shown_no_token(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        url = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        assert entering.listens({"pid": os.getpid()}, url)
        assert not entering.listens({"pid": os.getppid()}, url)
        assert not entering.listens({"pid": 2**22 + 1}, url)
