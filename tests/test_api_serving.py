"""The endpoint of a running node: it starts, or says why not, and the node goes on either way."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from node.api.serving import LISTEN_VARIABLE, Api
from node.api.token import FILE, read
from node.app import App

pytestmark = pytest.mark.network
HANGS_S = 60.0


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(LISTEN_VARIABLE, "127.0.0.1:0")
    opened = App.open(create=True)
    assert opened.origin
    return opened


class Said:
    """What the node told, and a way to wait for it."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.heard = trio.Event()

    def __call__(self, event: str, text: str, **data: Any) -> None:
        assert event == "endpoint"
        self.data = {"text": text, **data}
        self.heard.set()


async def test_it_answers_who_shows_the_token_and_says_where_it_listens(app: App) -> None:
    said = Said()
    api = Api(app, said)
    with trio.fail_after(HANGS_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.run)
            await said.heard.wait()
            url = api.facts()["url"]
            assert said.data["url"] == url and url.startswith("http://127.0.0.1:")
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.get("/v1/models")).status_code == 401
                headers = {"authorization": f"Bearer {read(app.home)}"}
                listed = (await client.get("/v1/models", headers=headers)).json()
            assert {"groove/auto", "groove/chassis"} <= {row["id"] for row in listed["data"]}
            nursery.cancel_scope.cancel()
    assert api.facts()["url"] == ""


async def test_a_port_that_is_taken_is_told_with_what_to_do(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(LISTEN_VARIABLE, f"127.0.0.1:{port}")
        said = Said()
        api = Api(app, said)
        with trio.fail_after(HANGS_S):
            await api.run()
    assert str(port) in api.facts()["trouble"]
    assert "groove.toml" in said.data["next_step"]


async def test_a_token_that_others_can_read_opens_no_endpoint(app: App) -> None:
    (app.home / FILE).write_text("x" * 43 + "\n")
    (app.home / FILE).chmod(0o644)
    said = Said()
    api = Api(app, said)
    with trio.fail_after(HANGS_S):
        await api.run()
    assert FILE in api.facts()["trouble"]
    assert api.facts()["url"] == ""


async def test_no_endpoint_is_opened_where_none_is_wanted(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LISTEN_VARIABLE, "")
    said = Said()
    with trio.fail_after(HANGS_S):
        await Api(app, said).run()
    assert not said.heard.is_set() and not (app.home / FILE).exists()
