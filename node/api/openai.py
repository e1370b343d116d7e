"""OpenAI's shapes: /v1/chat/completions, /v1/completions, /v1/models.

Chunks are built of bytes made once and the text alone is encoded for each: a chunk costs
microseconds, so that fifty streams on a slow machine do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import sse
from .asgi import respond
from .asked import TOKENS_MAX, Asked, messages, number, stops, truth
from .completing import PREFIX, Answer, Completing
from .counts import Counts
from .endpoint import Endpoint
from .errors import ApiError, encoded, no_such_model, openai_error, quoted
from .ports import Piece, Usage
from .relay import Relay

_SEED_MAX = (1 << 63) - 1
_OURS = frozenset(("stop_sequence",))  # of a piece's delta: told to other shapes
# Said to OpenAI's own service, or of no meaning for one answer in text: read and left out.
_LEFT_OUT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "moderation"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    *("modalities", "audio", "top_logprobs", "prediction", "verbosity", "web_search_options"),
)
# A server would take these for what the back end says itself: which adapter, which slot, which ask.
_NOT_THEIRS = ("lora", "loras", "id_slot", "slot_id", "messages", "prompt", "input_prefix")


def routes(completing: Completing, relay: Relay) -> list[Route]:
    """The paths of OpenAI's clients, each named for the counts."""
    chat = Endpoint(completing, Chat(), relay, relay.openai)
    raw = Endpoint(completing, Raw(), relay, relay.openai)
    models = Models(completing, relay)
    return [
        Route("/v1/chat/completions", chat, name="chat"),
        Route("/v1/completions", raw, name="completions"),
        Route("/v1/models", models, name="models"),
        Route("/v1/models/{id:path}", OneModel(completing, models, relay), name="model"),
    ]


def _common(fields: dict[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """What both shapes have, taken out of `fields`."""
    fields.pop("model", None)
    if (n := number(fields, "n", 1, 1_000, whole=True)) not in (None, 1):
        raise ApiError(400, f"n must be 1 for groove/... models, not {n}", param="n")
    limit = number(fields, "max_tokens", 1, TOKENS_MAX, whole=True)
    newer = number(fields, "max_completion_tokens", 1, TOKENS_MAX, whole=True)
    read = {
        "tokens_max": newer or limit,
        "temperature": number(fields, "temperature", 0, 2),
        "top_p": number(fields, "top_p", 0, 1),
        "seed": number(fields, "seed", -_SEED_MAX, _SEED_MAX, whole=True),
        "stop": stops(fields, "stop"),
        "stream": truth(fields, "stream"),
        "stream_usage": _include_usage(fields.pop("stream_options", None)),
    }
    for name in ("logprobs", "echo"):
        if fields.pop(name, None) not in (None, False):
            raise ApiError(400, f"groove/... models do not give {name}", param=name)
    return {**about, **read}


def for_servers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of a body was not read and may reach a back end that is a server."""
    return {
        name: value
        for name, value in fields.items()
        if name not in _LEFT_OUT and name not in _NOT_THEIRS
    }


def _include_usage(given: Any) -> bool:
    if given is None:
        return False
    if not isinstance(given, dict):
        message = f"stream_options must be an object, not {quoted(given)}"
        raise ApiError(400, message, param="stream_options")
    return given.get("include_usage") is True


class Chat:
    """/v1/chat/completions."""

    def read(self, fields: dict[str, Any], about: Mapping[str, Any]) -> Asked:
        read = _common(fields, about)
        return Asked(messages=messages(fields), **read, extra=for_servers(fields))

    def whole(self, answer: Answer, asked: Asked) -> bytes:
        more = joined_deltas(answer.deltas)
        message = {"role": "assistant", "content": answer.text, **more}
        if "tool_calls" in more and not answer.text:
            message["content"] = None
        choice = {"index": 0, "message": message, "logprobs": None}
        return _whole(answer, asked, "chatcmpl-", "chat.completion", choice)

    def stream(self, answer: Answer, asked: Asked) -> ChatStream:
        return ChatStream(answer, asked)

    def error(self, error: ApiError) -> bytes:
        return encoded(openai_error(error))


class Raw:
    """/v1/completions."""

    def read(self, fields: dict[str, Any], about: Mapping[str, Any]) -> Asked:
        prompt = fields.pop("prompt", None)
        match prompt:
            case str() | [str()]:
                text = prompt if isinstance(prompt, str) else prompt[0]
            case _:
                message = "prompt must be one string for groove/... models"
                raise ApiError(400, message, param="prompt")
        for name, harmless in (("best_of", 1), ("suffix", "")):
            if fields.pop(name, None) not in (None, harmless):
                raise ApiError(400, f"groove/... models take no {name}", param=name)
        read = _common(fields, about)
        return Asked(prompt=text, **read, extra=for_servers(fields))

    def whole(self, answer: Answer, asked: Asked) -> bytes:
        choice = {"index": 0, "text": answer.text, "logprobs": None}
        return _whole(answer, asked, "cmpl-", "text_completion", choice)

    def stream(self, answer: Answer, asked: Asked) -> RawStream:
        return RawStream(answer, asked)

    def error(self, error: ApiError) -> bytes:
        return encoded(openai_error(error))


def _whole(
    answer: Answer, asked: Asked, prefix: str, kind: str, choice: Mapping[str, Any]
) -> bytes:
    body = {
        "id": prefix + answer.id,
        "object": kind,
        "created": answer.created,
        "model": asked.model,
        "choices": [{**choice, "finish_reason": answer.finish}],
        "groove": answer.groove,
    }
    if answer.usage is not None:
        body["usage"] = _usage(answer.usage)
    return encoded(body)


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class _Stream:
    """What chunks of both shapes have in common."""

    _prefix: str
    _kind: str

    def __init__(self, answer: Answer, asked: Asked) -> None:
        self._answer = answer
        self._asked = asked
        head = {
            "id": self._prefix + answer.id,
            "object": self._kind,
            "created": answer.created,
            "model": asked.model,
        }
        if asked.stream_usage:  # then it is in every chunk, and a number only in the last
            head["usage"] = None
        self._head = head
        self._open = b"data: " + encoded(head)[:-1]

    def _chunk(self, choices: bytes, groove: bool = False) -> bytes:
        more = b',"groove":' + encoded(self._answer.groove) if groove else b""
        return self._open + b',"choices":' + choices + more + b"}\n\n"

    def _end(self) -> bytes:
        if not self._asked.stream_usage:
            return sse.DONE
        usage = self._answer.usage or Usage(0, 0)
        last = {
            **self._head,
            "choices": [],
            "usage": _usage(usage),
            "groove": self._answer.groove,
        }
        return sse.data(encoded(last)) + sse.DONE

    def broken(self, error: ApiError) -> bytes:
        return sse.data(encoded(openai_error(error)))


class ChatStream(_Stream):
    _prefix = "chatcmpl-"
    _kind = "chat.completion.chunk"

    def opening(self) -> bytes:
        delta = b'[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]'
        return self._chunk(delta, groove=True)

    def piece(self, piece: Piece) -> bytes:
        if piece.delta:
            more = {name: value for name, value in piece.delta.items() if name not in _OURS}
            if piece.text:
                more["content"] = piece.text
            if not more:
                return b""
            delta = encoded(more)
        elif piece.text:
            delta = b'{"content":' + encoded(piece.text) + b"}"
        else:
            return b""
        return self._chunk(b'[{"index":0,"delta":' + delta + b',"finish_reason":null}]')

    def closing(self) -> bytes:
        finish = encoded(self._answer.finish)
        end = b'[{"index":0,"delta":{},"finish_reason":' + finish + b"}]"
        return self._chunk(end, groove=True) + self._end()


class RawStream(_Stream):
    _prefix = "cmpl-"
    _kind = "text_completion"

    def opening(self) -> bytes:
        empty = b'[{"index":0,"text":"","logprobs":null,"finish_reason":null}]'
        return self._chunk(empty, groove=True)

    def piece(self, piece: Piece) -> bytes:
        if not piece.text:
            return b""
        text = b'[{"index":0,"text":' + encoded(piece.text)
        return self._chunk(text + b',"logprobs":null,"finish_reason":null}]')

    def closing(self) -> bytes:
        finish = encoded(self._answer.finish)
        end = b'[{"index":0,"text":"","logprobs":null,"finish_reason":' + finish + b"}]"
        return self._chunk(end, groove=True) + self._end()


def joined_deltas(deltas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a server said beside the text, as one message: tool calls joined by their index."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for name, value in delta.items():
            if name in _OURS or name in ("role", "content") or value is None:
                continue
            if name == "tool_calls":
                _join_calls(calls, value)
            elif isinstance(value, str) and isinstance(message.get(name), str):
                message[name] += value
            else:
                message[name] = value
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


def _join_calls(calls: dict[int, dict[str, Any]], given: Iterable[Mapping[str, Any]]) -> None:
    for part in given:
        index = int(part.get("index") or 0)
        call = calls.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


class Models:
    """/v1/models: what this node answers as, then what its upstream has.

    A row has the names of both OpenAI's and Anthropic's form, and so has the list: each client
    reads its own.
    """

    def __init__(self, completing: Completing, relay: Relay) -> None:
        self._completing = completing
        self._relay = relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await _not_read(scope, send, self._completing.counts):
            return
        rows = [*self.own(), *await self._relay.models()]
        ends = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"]} if rows else {}
        listed = {"object": "list", "data": rows, "has_more": False, **ends}
        await respond(send, 200, encoded(listed))

    def own(self) -> list[dict[str, Any]]:
        return [
            {
                "object": "model",
                "created": 0,
                "owned_by": "groove",
                "type": "model",
                "display_name": row["id"],
                "created_at": "1970-01-01T00:00:00Z",
                **row,
            }
            for row in self._completing.models()
        ]


class OneModel:
    """/v1/models/{id}."""

    def __init__(self, completing: Completing, models: Models, relay: Relay) -> None:
        self._completing = completing
        self._models = models
        self._relay = relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counts = self._completing.counts
        if await _not_read(scope, send, counts):
            return
        name = scope["path_params"]["id"]
        row = next((row for row in self._models.own() if row["id"] == name), None)
        upstream = self._relay.openai()
        if row is not None:
            await respond(send, 200, encoded(row))
        elif upstream.url and not name.startswith(PREFIX):
            await self._relay.pass_on(scope, receive, send, b"", upstream)
        else:
            missing = no_such_model(f"there is no model {quoted(name)}: GET /v1/models lists all")
            counts.failures[missing.kind] += 1
            await respond(send, 404, encoded(openai_error(missing)))


async def _not_read(scope: Scope, send: Send, counts: Counts) -> bool:
    """Refuse what is neither GET nor HEAD."""
    if scope["method"] in ("GET", "HEAD"):
        return False
    error = ApiError(405, f"{scope['path']} takes GET alone", kind="method")
    counts.failures[error.kind] += 1
    await respond(send, 405, encoded(openai_error(error)), [(b"allow", b"GET, HEAD")])
    return True
