"""One answer for the owner's terminal: from the running node's endpoint, or made in this process.

The endpoint has the chassis in memory already, so it is asked first. Without one, or where it has
just ended, the same parts are put together here for one question: the table chooses, the back end
of groove.toml answers, and the first token waits for the chassis to load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from . import entering, overview
from .errors import OwnerError

if TYPE_CHECKING:
    import httpx

    from .app import App

AUTO = "auto"
CONNECT_S = 5.0
SILENT_S = 600.0  # of a node that is computing: the first answer waits for the chassis to load
LINE_BYTES_MAX = 8 << 20  # of one event; what is longer is nobody's answer
ERROR_BYTES_MAX = 64 << 10
NODE, HERE = "the running node", "this process"
Heard = Callable[[str], None]


class NoAnswerError(OwnerError):
    """There is no answer, or not all of it."""


class _NotThereError(Exception):
    """The endpoint that the run file names does not answer: its node has just ended."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. What is None is left to whoever answers."""

    text: str = field(repr=False)
    leaf: str = AUTO  # a leaf's name or id; auto: routed; chassis: the bare one
    system: str = field(default="", repr=False)
    tokens_max: int | None = None
    temperature: float | None = None
    seed: int | None = None
    capture: bool = True

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]


@dataclass(frozen=True, slots=True)
class Said:
    """What was answered, by whom, and why by them."""

    text: str = field(repr=False)
    finish: str
    where: str  # NODE or HERE
    groove: Mapping[str, Any]  # as in every answer of the endpoint: leaf, confidence, fallback, ...
    usage: Mapping[str, int]
    first_s: float  # to the first text
    took_s: float


def answer(
    app: App,
    question: Question,
    heard: Heard,
    *,
    here: bool = False,
    seconds: Callable[[], float] = time.monotonic,
) -> Said:
    """Have a question answered; `heard` gets the text as it comes.

    here: in this process, whoever runs. Raises OwnerError if there is no answer or no whole one.
    """
    url = "" if here else endpoint_of(app)
    listening = _Listening(heard, seconds)
    if url:
        try:
            return listening.said(NODE, *_from_endpoint(app, url, question, listening))
        except _NotThereError:
            pass
    from . import answering_here

    return listening.said(HERE, *answering_here.run(app, question, listening.hear))


def endpoint_of(app: App) -> str:
    """Where the running node's endpoint listens: a URL or unix:PATH; empty if there is none."""
    node = overview.running(app)
    url = str(node.get("api", {}).get("url") or "") if node else ""
    return url if node and url and entering.listens(node, url) else ""


class _Listening:
    """Passes text on and keeps it, and when it came."""

    def __init__(self, heard: Heard, seconds: Callable[[], float]) -> None:
        self._heard = heard
        self._seconds = seconds
        self._parts: list[str] = []
        self._begun_s = seconds()
        self._first_s = 0.0

    def hear(self, text: str) -> None:
        if not text:
            return
        if not self._parts:
            self._first_s = self._seconds() - self._begun_s
        self._parts.append(text)
        self._heard(text)

    def said(
        self, where: str, finish: str, groove: Mapping[str, Any], usage: Mapping[str, int]
    ) -> Said:
        took_s = self._seconds() - self._begun_s
        text = "".join(self._parts)
        return Said(text, finish, where, groove, usage, self._first_s, took_s)


# From the endpoint


def _from_endpoint(
    app: App, url: str, question: Question, listening: _Listening
) -> tuple[str, Mapping[str, Any], Mapping[str, int]]:
    import httpx

    body = {
        "model": f"groove/{question.leaf}",
        "messages": question.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": question.tokens_max,
        "temperature": question.temperature,
        "seed": question.seed,
    }
    told = {name: value for name, value in body.items() if value is not None}
    not_kept = {} if question.capture else {"x-groove-no-capture": "1"}
    try:
        with (
            _client(app, url) as client,
            client.stream("POST", "/v1/chat/completions", json=told, headers=not_kept) as response,
        ):
            if response.status_code != 200:
                raise _refusal(response)
            return _read(_events(response), listening)
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise _NotThereError from None
    except httpx.HTTPError as problem:
        raise NoAnswerError(
            f"the node's endpoint at {url} broke off: {type(problem).__name__}",
            unchanged="What is above is as much as was said.",
            next_step="`groove-node logs` says why; `groove-node ask --here` asks without it.",
        ) from None


@contextmanager
def _client(app: App, url: str) -> Iterator[httpx.Client]:
    import httpx

    from .api import token

    path = url.removeprefix("unix:")
    over_socket = path != url
    headers = {"user-agent": "groove-node-ask"}
    if not over_socket:
        headers["authorization"] = f"Bearer {token.read_or_make(app.home)}"
    # A proxy of the environment is no way to this machine's own loopback.
    transport = httpx.HTTPTransport(uds=path if over_socket else None)
    with httpx.Client(
        base_url="http://localhost" if over_socket else url,
        transport=transport,
        headers=headers,
        timeout=httpx.Timeout(SILENT_S, connect=CONNECT_S),
        trust_env=False,
    ) as client:
        yield client


def _refusal(response: httpx.Response) -> NoAnswerError:
    """What the endpoint said instead of an answer."""
    blob = b""
    for chunk in response.iter_bytes():
        blob += chunk
        if len(blob) > ERROR_BYTES_MAX:
            break
    try:
        what = str(msgspec.json.decode(blob)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        what = f"the node's endpoint answered with status {response.status_code}"
    steps = {
        404: "`groove-node tree` lists the leaves.",
        401: "`groove-node dashboard --new-token` writes a token that the node takes.",
    }
    return NoAnswerError(
        what,
        unchanged="Nothing was answered.",
        next_step=steps.get(response.status_code, "`groove-node logs` may say more."),
    )


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, each as soon as it is there."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise NoAnswerError(f"the endpoint sent an event of over {LINE_BYTES_MAX:,} bytes")
        for line in lines:
            name, _, value = line.partition(b":")
            value = value.strip()
            if name == b"data" and value and value != b"[DONE]":
                yield msgspec.json.decode(value, type=dict[str, Any])


def _read(
    events: Iterator[dict[str, Any]], listening: _Listening
) -> tuple[str, Mapping[str, Any], Mapping[str, int]]:
    finish, groove, usage = "", dict[str, Any](), dict[str, int]()
    for event in events:
        if error := event.get("error"):
            raise broken(str(error.get("message", "no reason was given")))
        groove = event.get("groove") or groove
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            listening.hear(choice.get("delta", {}).get("content") or "")
            finish = choice.get("finish_reason") or finish
    if not finish:
        raise broken("the node ended the answer in the middle")
    return finish, groove, usage


def broken(why: str) -> NoAnswerError:
    """An answer that was begun and has no end."""
    return NoAnswerError(
        f"the answer broke off: {why}",
        unchanged="What is above is as much as was said.",
        next_step="Ask again; `groove-node doctor` looks at what answers.",
    )
