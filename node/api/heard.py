"""What was passed on, as an exchange for the corpus: read after the last byte, in a thread.

On the way only bytes are copied, up to a bound, and nothing at all while capture is off. Long
bodies are not kept: half an answer would be learned as a whole one.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from starlette.types import Scope

from node import gate

from . import sse
from .asgi import about
from .asked import joined
from .counts import Counts
from .errors import ApiError
from .ports import Usage
from .recording import Exchange

if TYPE_CHECKING:
    from .recording import Recorder

log = logging.getLogger(__name__)

BYTES_MAX = 1 << 20  # of a request's body, and of an answer's
WAITING_MAX = 4096  # exchanges that were heard and are not read yet
WAITING_BYTES_MAX = 32 << 20  # of them together
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")


@dataclass(slots=True)
class Heard:
    """A copy of one exchange."""

    kind: str  # openai or anthropic
    client: str
    conversation: str | None
    feedback: str
    request: bytes = field(repr=False)
    answer: list[bytes] = field(default_factory=list, repr=False)
    size: int = 0  # of the answer
    status: int = 0
    outcome: str = ""

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size <= BYTES_MAX:
            self.answer.append(chunk)
        else:
            self.answer.clear()


class Hearing:
    """Copies, and hands what was copied to the recorder."""

    def __init__(self, recorder: Recorder, counts: Counts) -> None:
        self._recorder = recorder
        self._counts = counts
        self._waiting: deque[Heard] = deque()
        self._bytes = 0  # of what waits
        self._wake = trio.Event()

    def begin(self, scope: Scope, body: bytes, kind: str) -> Heard | None:
        """A copy to be filled; None if nothing is to be kept of this."""
        if gate.queue is None or scope["method"] != "POST" or scope["path"] not in _PATHS:
            return None
        told = about(scope)
        if told["no_capture"]:
            return None
        if len(body) > BYTES_MAX:
            self._counts.failures["too_long_to_record"] += 1
            return None
        return Heard(kind, told["client"], told["conversation"], told["feedback"], body)

    def end(self, heard: Heard, outcome: str) -> None:
        """Put it in the line, if there is room."""
        size = len(heard.request) + heard.size
        if heard.size > BYTES_MAX:
            self._counts.failures["too_long_to_record"] += 1
        elif len(self._waiting) >= WAITING_MAX or self._bytes + size > WAITING_BYTES_MAX:
            self._counts.failures["recorder_busy"] += 1
        else:
            heard.outcome = outcome
            self._bytes += size
            self._waiting.append(heard)
            self._wake.set()

    async def run(self) -> None:
        """Hand on what waits, all of it at one hop of the thread, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            for exchange, text, outcome, usage in await trio.to_thread.run_sync(self._read, batch):
                try:
                    self._recorder.begin(exchange)
                    self._recorder.finished(exchange, text, outcome, usage)
                except Exception as problem:  # capture's promise: never to hurt the caller
                    self._failed(problem)
            self._bytes -= sum(len(heard.request) + heard.size for heard in batch)

    def _read(self, batch: list[Heard]) -> list[tuple[Exchange, str, str, Usage | None]]:
        """In the thread. What is no exchange is left out."""
        found = []
        for heard in batch:
            try:
                exchange, text, usage = _read(heard)
            except Exception as problem:  # of any form that a client may send
                self._failed(problem)
            else:
                found.append((exchange, text, heard.outcome, usage))
        return found

    def _failed(self, problem: Exception) -> None:
        self._counts.failures["recorder"] += 1
        log.warning("exchange not recorded problem=%s", type(problem).__name__)


def _read(heard: Heard) -> tuple[Exchange, str, Usage | None]:
    """Raises on what is no exchange."""
    asked = msgspec.json.decode(heard.request, type=dict[str, Any])
    exchange = Exchange(
        id=secrets.token_hex(12),
        model=str(asked.get("model", "")),
        provider=heard.kind,
        messages=tuple(_messages(asked)),
        choice=None,
        client=heard.client,
        conversation=heard.conversation,
        no_capture=False,
        feedback=heard.feedback,
    )
    if heard.status >= 400 or heard.status == 0:
        return exchange, "", None
    raw = b"".join(heard.answer)
    try:
        parts = [msgspec.json.decode(raw)]
    except msgspec.MsgspecError:  # a stream, perhaps without its end
        parts = list(_decoded(sse.events(raw)))
    usage = _usage(parts)
    return exchange, "".join(text for part in parts for text in _texts(part)), usage


def _decoded(events: Iterable[bytes]) -> Iterable[Any]:
    for event in events:
        try:
            yield msgspec.json.decode(event)
        except msgspec.MsgspecError:
            continue  # cut by an abort


def _messages(asked: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The texts of the talk; what is not text is left out."""
    system = asked.get("system")
    if system is not None:
        yield {"role": "system", "content": _text(system)}
    prompt = asked.get("prompt")
    if isinstance(prompt, str):
        yield {"role": "user", "content": prompt}
    for message in asked.get("messages") or ():
        yield {"role": str(message["role"]), "content": _text(message.get("content"))}


def _text(content: Any) -> str:
    if isinstance(content, list):
        content = [part for part in content if isinstance(part, dict) and "text" in part]
    try:
        return joined(content, "content") if content else ""
    except ApiError:
        return ""


def _texts(part: Any) -> Iterable[str]:
    """The text in a whole answer or in an event of one, of either shape."""
    match part:
        case {"choices": [dict() as choice, *_]}:
            of = choice.get("message") or choice.get("delta") or {}
            text = choice.get("text") or of.get("content")
            if isinstance(text, str):
                yield text
        case {"type": "content_block_delta", "delta": {"text": str() as text}}:
            yield text
        case {"type": "message", "content": [*blocks]}:
            for block in blocks:
                match block:
                    case {"type": "text", "text": str() as text}:
                        yield text
        case _:
            pass


def _usage(parts: Iterable[Any]) -> Usage | None:
    asked = said = None
    for part in parts:
        if not isinstance(part, dict):
            continue
        nested = part.get("message")
        found = part.get("usage") or (nested.get("usage") if isinstance(nested, dict) else None)
        if isinstance(found, dict):
            asked = found.get("prompt_tokens", found.get("input_tokens", asked))
            said = found.get("completion_tokens", found.get("output_tokens", said))
    if isinstance(asked, int) and isinstance(said, int):
        return Usage(asked, said)
    return None
