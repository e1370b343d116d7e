"""`groove-node ask`: the answer on stdout, who gave it on stderr, by a node or without one."""

from __future__ import annotations

import fcntl
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import support_api
import trio
from starlette.applications import Starlette

from leaves.model import LeafId
from node import answering_here
from node.api import openai, token
from node.api.choosing import Choice, Chooser, UnknownModelError, chassis
from node.api.completing import Completing
from node.api.config import ApiConfig
from node.api.counts import Counts
from node.api.guard import Guard
from node.api.ports import Adapter, AdapterError, Ask, BackendError, Piece, Usage
from node.api.recording import Exchange, Recorder
from node.api.relay import Relay
from node.app import App
from node.cli import main
from node.overview import RUN_FILE

SECRET = "my-dog-is-called-Zanzibar"
PIECES = (Piece("Use a "), Piece("nursery."), Piece("", "stop", Usage(7, 3)))
LEAF = Choice(
    Adapter(LeafId("ab" * 16), "async-python", "cd" * 32),
    "",
    "ab" * 16,
    "async-python",
    "async-python",
    0.62,
    0.31,
    3,
    "",
    None,
)


class Told(Chooser):
    """Chooses the same leaf each time."""

    async def run(self) -> None:
        self.ready.set()
        await trio.sleep_forever()

    async def auto(self, ask_text: str, conversation: str | None) -> Choice:
        return LEAF

    def named(self, name: str) -> Choice:
        if name == "chassis":
            return chassis()
        if name == LEAF.name:
            return LEAF
        raise UnknownModelError(f"there is no leaf {name!r} here")


class Kept(Recorder):
    """Keeps what it is told."""

    exchanges: list[Exchange]

    def begin(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GROOVE_HOME", str(home))
    app = App(home)
    app.identity  # noqa: B018 - a home has keys
    return app


@dataclass
class Running:
    """A node's endpoint, and what it was asked."""

    backend: support_api.ScriptedBackend
    exchanges: list[Exchange] = field(default_factory=list)


@contextmanager
def running(app: App, backend: support_api.ScriptedBackend, url: str = "") -> Iterator[Running]:
    config, counts = ApiConfig(), Counts()
    recorder = Kept(app, config, counts)
    recorder.exchanges = []
    relay = Relay(config, counts, recorder)
    completing = Completing(Told(app, config, counts), backend, recorder, counts, config)
    routes = Starlette(routes=openai.routes(completing, relay))

    held = token.Token(app.home, app.adapters.in_thread, lambda: 0.0)
    guarded = Late(lambda: Guard(routes, token=held, config=config, counts=counts))
    with support_api.served(guarded) as server, (app.home / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = {
            "pid": os.getpid(),
            "addresses": [],
            "peers": [],
            "api": {"url": url or server.url},
        }
        (app.home / RUN_FILE).write_text(json.dumps(told))
        yield Running(backend, recorder.exchanges)


class Late:
    """An ASGI app made in the loop that it works in."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._made:
            self._made.append(self._make())
        await self._made[0](scope, receive, send)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> support_api.ScriptedBackend:
    """No node runs; what answers in this process is scripted."""
    backend = support_api.ScriptedBackend(PIECES)
    monkeypatch.setattr(answering_here, "open_backend", lambda app, config: backend)
    monkeypatch.setattr(answering_here, "Chooser", Told)
    return backend


def asked(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["ask", *arguments])
    return ended.value.code


def test_the_running_node_answers_and_is_named(
    app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(app, support_api.ScriptedBackend(PIECES)) as node:
        assert asked("how do I wait for two tasks?", "--system", "be brief", "--seed", "7") == 0
    said = capsys.readouterr()
    assert said.out == "Use a nursery.\n"
    assert "async-python; confidence 0.62, gate 0.31, level 3" in said.err
    assert "3 tokens" in said.err and "in the running node" in said.err
    (ask,) = node.backend.asks
    assert [x["content"] for x in ask.messages] == ["be brief", "how do I wait for two tasks?"]
    assert ask.seed == 7 and ask.adapter == LEAF.adapter


def test_without_a_node_this_process_answers_and_says_so(
    app: App, without: support_api.ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked("how?", "--temperature", "0", "--max-tokens", "9") == 0
    said = capsys.readouterr()
    assert said.out == "Use a nursery.\n" and "in this process" in said.err
    (ask,) = without.asks
    assert ask.temperature == 0 and ask.tokens_max == 9 and without.open == 0


def test_a_node_that_has_just_ended_is_done_without(
    app: App, without: support_api.ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(app, support_api.ScriptedBackend(PIECES), url="http://127.0.0.1:9"):
        assert asked("how?") == 0
    assert "in this process" in capsys.readouterr().err


@pytest.mark.parametrize("question", [(), ("-",)])
def test_a_question_may_come_from_standard_input(
    app: App,
    without: support_api.ScriptedBackend,
    question: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüße\n".encode())))
    assert asked(*question) == 0
    assert without.asks[0].messages[-1]["content"] == "grüße\n"


def test_json_is_one_object_with_the_answer_and_who_gave_it(
    app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(app, support_api.ScriptedBackend(PIECES)):
        assert asked("how?", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] == "Use a nursery." and told["finish"] == "stop"
    assert told["answered_by"] == "node" and told["groove"]["leaf"] == "async-python"
    assert told["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("by_node", [True, False])
def test_a_leaf_that_cannot_be_put_on_is_named_with_what_answered_instead(
    app: App,
    without: support_api.ScriptedBackend,
    by_node: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raises = {"async-python": AdapterError("damaged", "its bundle is damaged")}
    if by_node:
        with running(app, support_api.ScriptedBackend(PIECES, raises)):
            assert asked("how?") == 0
    else:
        without.raises = raises
        assert asked("how?") == 0
    said = capsys.readouterr().err
    assert "answered by chassis; in place of async-python" in said and "fallback: adapter" in said


@pytest.mark.parametrize("by_node", [True, False])
def test_a_leaf_that_is_not_there_is_the_owners_error(
    app: App,
    without: support_api.ScriptedBackend,
    by_node: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if by_node:
        with running(app, support_api.ScriptedBackend(PIECES)):
            assert asked("how?", "--leaf", "nobody") == 1
    else:
        assert asked("how?", "--leaf", "nobody") == 1
    said = capsys.readouterr()
    assert "nobody" in said.err and said.err.startswith("error: ") and not said.out


@pytest.mark.parametrize("by_node", [True, False])
def test_an_answer_that_breaks_off_is_an_error_after_what_was_said(
    app: App,
    without: support_api.ScriptedBackend,
    by_node: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks = BackendError("died", "the back end has ended")
    if by_node:
        with running(app, support_api.ScriptedBackend(PIECES[:1], breaks=breaks)):
            assert asked("how?") == 1
    else:
        without.pieces, without.breaks = PIECES[:1], breaks
        assert asked("how?") == 1
    said = capsys.readouterr()
    assert said.out == "Use a "
    assert "broke off: the back end has ended" in said.err


def test_ctrl_c_ends_the_answer_and_frees_the_back_end(
    app: App, without: support_api.ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    async def pressed(n: int) -> None:
        if n == 1:
            raise KeyboardInterrupt

    without.gate = pressed
    assert asked("how?") == 130
    said = capsys.readouterr()
    assert said.out == "Use a " and "interrupted" in said.err and "Traceback" not in said.err
    assert without.open == 0


@pytest.mark.parametrize(("given", "kept"), [((), False), (("--no-capture",), True)])
def test_the_owner_may_have_a_question_kept_out_of_the_corpus(
    app: App, given: tuple[str, ...], kept: bool
) -> None:
    with running(app, support_api.ScriptedBackend(PIECES)) as node:
        assert asked("how?", *given) == 0
    (exchange,) = node.exchanges
    assert exchange.no_capture is kept


def test_a_token_that_the_node_does_not_take_is_told_and_not_shown(
    app: App, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(app, support_api.ScriptedBackend(PIECES)):
        monkeypatch.setattr(token, "read_or_make", lambda home: token.PREFIX + "x" * 43)
        assert asked("how?") == 1
    said = capsys.readouterr().err
    assert "--new-token" in said and "x" * 43 not in said


def test_no_question_and_no_text_are_misuse(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("  ") == 2
    assert "empty" in capsys.readouterr().err
    assert asked("how?", "--max-tokens", "0") == 2
    assert asked("how?", "--temperature", "9") == 2


@pytest.mark.parametrize("by_node", [True, False])
def test_no_file_of_the_home_has_a_word_of_what_was_asked(
    app: App, without: support_api.ScriptedBackend, by_node: bool
) -> None:
    problem = BackendError("died", "the back end has ended")
    if by_node:
        with running(app, support_api.ScriptedBackend((Piece(SECRET[:9]),), breaks=problem)):
            assert asked(SECRET, "--leaf", "chassis") == 1
    else:
        without.pieces, without.breaks = PIECES[:1], problem
        assert asked(SECRET) == 1
    files = [path for path in app.home.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert SECRET[:9].encode() not in path.read_bytes(), path


def test_a_question_is_shown_in_no_repr() -> None:
    from node.answering import Question

    assert SECRET not in repr(Question(SECRET, system=SECRET))
    assert SECRET not in repr(Ask(messages=({"role": "user", "content": SECRET},)))
