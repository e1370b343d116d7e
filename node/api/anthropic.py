"""Anthropic's shape: /v1/messages. Read into OpenAI's form, which all back ends take.

A talk with tools is carried over both ways, so that a coding agent of Anthropic's works with a
llama.cpp or vLLM server behind groove/auto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import sse
from .asgi import body_of, respond
from .asked import MESSAGES_MAX, TOKENS_MAX, Asked, joined, model_of, number, stops, truth
from .completing import PREFIX, Answer, Completing
from .endpoint import Endpoint
from .errors import ApiError, anthropic_error, encoded, no_such_model, quoted
from .openai import for_servers, joined_deltas
from .ports import Piece
from .relay import Relay

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_EMPTY: dict[str, Any] = {}  # a tool's input, which comes in pieces
_SILENT = (
    "thinking",
    "redacted_thinking",
)  # another model's thoughts: not this one's to go on from
_LEFT_OUT = (
    *("metadata", "service_tier", "thinking", "betas", "container", "mcp_servers"),
    *("context_management", "output_config", "output_format", "inference_geo", "speed"),
    *("cache_control", "diagnostics", "user_profile_id", "workspace_id"),
)


def routes(completing: Completing, relay: Relay) -> list[Route]:
    """The paths of Anthropic's clients, each named for the counts."""
    messages = Endpoint(completing, Messages(), relay, relay.anthropic)
    counted = CountTokens(completing, relay)
    return [
        Route("/v1/messages/count_tokens", counted, name="count_tokens"),
        Route("/v1/messages", messages, name="messages"),
    ]


class Messages:
    """/v1/messages."""

    def read(self, fields: dict[str, Any], about: Mapping[str, Any]) -> Asked:
        fields.pop("model", None)
        tokens_max = number(fields, "max_tokens", 1, TOKENS_MAX, whole=True)
        if tokens_max is None:
            raise ApiError(400, "max_tokens: Field required", param="max_tokens")
        read = {
            "tokens_max": tokens_max,
            "temperature": number(fields, "temperature", 0, 1),
            "top_p": number(fields, "top_p", 0, 1),
            "stop": stops(fields, "stop_sequences"),
            "stream": truth(fields, "stream"),
            "messages": (
                *_system(fields.pop("system", None)),
                *_talk(fields.pop("messages", None)),
            ),
        }
        for name in _LEFT_OUT:
            fields.pop(name, None)
        if "tools" in fields:
            fields["tools"] = _tools(fields["tools"])
        if "tool_choice" in fields:
            fields["tool_choice"] = _tool_choice(fields["tool_choice"])
        return Asked(extra=for_servers(fields), **about, **read)

    def whole(self, answer: Answer, asked: Asked) -> bytes:
        content: list[dict[str, Any]] = []
        calls = joined_deltas(answer.deltas).get("tool_calls", [])
        if answer.text or not calls:
            content.append({"type": "text", "text": answer.text})
        for call in calls:
            function = call["function"]
            used = {"id": call["id"], "name": function["name"]}
            content.append({"type": "tool_use", **used, "input": _input(function["arguments"])})
        reason, stop = _ended(answer)
        body = _message(answer, asked, content) | {
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": _usage(answer),
            "groove": answer.groove,
        }
        return encoded(body)

    def stream(self, answer: Answer, asked: Asked) -> MessageStream:
        return MessageStream(answer, asked)

    def error(self, error: ApiError) -> bytes:
        return encoded(anthropic_error(error))


class MessageStream:
    """The events of one answer: each block of content has a beginning and an end."""

    def __init__(self, answer: Answer, asked: Asked) -> None:
        self._answer = answer
        self._asked = asked
        self._blocks = 0  # begun so far
        self._open = ""  # what the open block is: text, or a tool call's index; empty: none is
        self._delta = b""

    def opening(self) -> bytes:
        message = _message(self._answer, self._asked, []) | {
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},  # known at the end
            "groove": self._answer.groove,
        }
        return _event({"type": "message_start", "message": message})

    def piece(self, piece: Piece) -> bytes:
        found = b""
        if piece.text:
            found += self._begin("text", {"type": "text", "text": ""})
            found += self._delta + encoded(piece.text) + b"}}\n\n"
        for call in piece.delta.get("tool_calls") or ():
            found += self._call(call)
        return found

    def _begin(self, what: str, block: dict[str, Any]) -> bytes:
        """Begin a block, if it is not the one that is open."""
        if self._open == what:
            return b""
        ended = self._end()
        index = self._blocks
        self._open, self._blocks = what, index + 1
        # Made once: each piece adds its text alone.
        self._delta = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"text_delta","text":' % index
        )
        begun = {"type": "content_block_start", "index": index, "content_block": block}
        return ended + _event(begun)

    def _end(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event({"type": "content_block_stop", "index": self._blocks - 1})

    def _call(self, call: Mapping[str, Any]) -> bytes:
        function = call.get("function") or {}
        what = f"call {call.get('index') or 0}"
        name = function.get("name") or ""
        used: dict[str, Any] = {
            "type": "tool_use",
            "id": call.get("id") or "",
            "name": name,
            "input": {},
        }
        found = self._begin(what, used)
        if arguments := function.get("arguments"):
            delta = {"type": "input_json_delta", "partial_json": arguments}
            index = self._blocks - 1
            found += _event({"type": "content_block_delta", "index": index, "delta": delta})
        return found

    def closing(self) -> bytes:
        begun = b"" if self._blocks else self._begin("text", {"type": "text", "text": ""})
        reason, stop = _ended(self._answer)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        usage, groove = _usage(self._answer), self._answer.groove
        last = {"type": "message_delta", "delta": delta, "usage": usage, "groove": groove}
        return begun + self._end() + _event(last) + _event({"type": "message_stop"})

    def broken(self, error: ApiError) -> bytes:
        return _event(anthropic_error(error))


def _event(payload: dict[str, Any]) -> bytes:
    return sse.event(payload["type"].encode(), encoded(payload))


def _message(answer: Answer, asked: Asked, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": content,
    }


def _ended(answer: Answer) -> tuple[str, str | None]:
    """Why the answer ended, and which stop sequence it met."""
    last = answer.deltas[-1] if answer.deltas else {}
    met = last.get("stop_sequence")
    if isinstance(met, str) and answer.finish == "stop":
        return "stop_sequence", met
    return _REASONS.get(answer.finish or "", "end_turn"), None


def _usage(answer: Answer) -> dict[str, int]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens if usage else 0,
        "output_tokens": usage.completion_tokens if usage else 0,
    }


def _input(arguments: str) -> Any:
    """A tool's arguments as the object that Anthropic's clients expect."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except msgspec.MsgspecError:
        return {"arguments": arguments}


def _system(given: Any) -> tuple[dict[str, Any], ...]:
    text = "" if given is None else joined(given, "system")
    return ({"role": "system", "content": text},) if text else ()


def _talk(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise ApiError(400, "messages: at least one message is required", param="messages")
    if len(given) > MESSAGES_MAX:
        message = f"messages may hold {MESSAGES_MAX}, not {len(given)}"
        raise ApiError(400, message, param="messages")
    return [message for n, each in enumerate(given) for message in _turn(each, f"messages[{n}]")]


def _turn(given: Any, param: str) -> list[dict[str, Any]]:
    """One of Anthropic's messages as one or more of OpenAI's: results of tools stand alone."""
    match given:
        case {"role": "user" | "assistant" | "system" as role, "content": str() as text}:
            return [{"role": role, "content": text}]
        case {"role": "user" | "assistant" | "system" as role, "content": [*blocks]}:
            pass
        case _:
            message = f"{param} must have a role of user or assistant, and content"
            raise ApiError(400, message, param=param)
    results, calls, texts = [], [], []
    for n, block in enumerate(blocks):
        where = f"{param}.content[{n}]"
        match block:
            case {"type": "tool_result", "tool_use_id": str() as call}:
                text = joined(block.get("content") or "", where)
                results.append({"role": "tool", "tool_call_id": call, "content": text})
            case {"type": "tool_use", "id": str() as call, "name": str() as name}:
                arguments = encoded(block.get("input") or {}).decode()
                function = {"name": name, "arguments": arguments}
                calls.append({"id": call, "type": "function", "function": function})
            case {"type": str() as kind} if kind in _SILENT:
                continue
            case _:
                texts.append(joined([block], where))
    said: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if calls:
        said["tool_calls"] = calls
    return [*results, said] if texts or calls or not results else results


def _tools(given: Any) -> list[dict[str, Any]]:
    """OpenAI's form. Those that Anthropic's servers carry out are left out."""
    if not isinstance(given, list):
        raise ApiError(400, f"tools must be a list, not {quoted(given)}", param="tools")
    found = []
    for n, each in enumerate(given):
        if not isinstance(each, dict) or each.get("type") in (None, "custom"):
            found.append(_tool(each, n))
    return found


def _tool(given: Any, n: int) -> dict[str, Any]:
    match given:
        case {"name": str() as name}:
            function = {"name": name, "description": given.get("description") or ""}
            schema = given.get("input_schema") or {"type": "object", "properties": {}}
            return {"type": "function", "function": {**function, "parameters": schema}}
        case _:
            message = f"tools[{n}] must be an object with a name, not {quoted(given)}"
            raise ApiError(400, message, param=f"tools[{n}]")


def _tool_choice(given: Any) -> Any:
    match given:
        case {"type": "auto" | "none" as kind}:
            return kind
        case {"type": "any"}:
            return "required"
        case {"type": "tool", "name": str() as name}:
            return {"type": "function", "function": {"name": name}}
        case _:
            message = f"tool_choice.type must be auto, any, tool or none, not {quoted(given)}"
            raise ApiError(400, message, param="tool_choice")


class CountTokens:
    """/v1/messages/count_tokens: the upstream's to answer.

    No back end says how many tokens a text has without answering it, and a guess would be taken
    for a count.
    """

    def __init__(self, completing: Completing, relay: Relay) -> None:
        self._completing = completing
        self._relay = relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upstream = self._relay.anthropic()
        try:
            body = await body_of(receive)
            if model_of(body).startswith(PREFIX) or not upstream.url:
                raise no_such_model("tokens are counted for the models of [api] anthropic alone")
        except ApiError as error:
            self._completing.counts.failures[error.kind] += 1
            await respond(send, error.status, encoded(anthropic_error(error)))
            return
        await self._relay.pass_on(scope, receive, send, body, upstream)
