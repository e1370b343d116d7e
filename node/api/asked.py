"""What a client asks for, whatever its shape, and how its JSON is read and checked.

A refusal names the field and what would be right. What is not known is not refused: it goes to the
back end as it came, if that is a server, and is left out otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .errors import ApiError, quoted

STOPS_MAX = 4
STOP_CHARS_MAX = 1024
MESSAGES_MAX = 10_000
TOKENS_MAX = 1_000_000
NAME_CHARS_MAX = 200  # of a model
_ROLES = {
    "system": "system",
    "developer": "system",  # its later name; templates of local models know the first
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One completion that a client wants."""

    model: str  # groove/auto, groove/chassis, groove/LEAF
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    prompt: str | None = field(default=None, repr=False)
    tokens_max: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    stream: bool = False
    stream_usage: bool = False
    conversation: str | None = field(default=None, repr=False)
    client: str = ""
    no_capture: bool = False
    feedback: str = ""  # what the owner made of the answer before, in the same talk

    @property
    def first_ask(self) -> str:
        """The words of the first message of a person: what is routed by."""
        if self.prompt is not None:
            return self.prompt
        return next((m.get("content") or "" for m in self.messages if m["role"] == "user"), "")


class Peek(msgspec.Struct):
    """As much of a body as says where it goes. The rest is skipped, not decoded."""

    model: Any = None


_peek = msgspec.json.Decoder(Peek)
_whole = msgspec.json.Decoder(dict[str, Any])


def model_of(body: bytes) -> str:
    """Which model a body asks for."""
    model = _decoded(_peek, body).model
    if not isinstance(model, str) or not model:
        message = "model is required: a string, such as 'groove/auto'"
        raise ApiError(400, message, param="model")
    if len(model) > NAME_CHARS_MAX:
        message = f"model must have at most {NAME_CHARS_MAX} characters"
        raise ApiError(400, message, param="model")
    return model


def fields_of(body: bytes) -> dict[str, Any]:
    """All fields of a body, as plain data. What is null counts as absent."""
    return {name: value for name, value in _decoded(_whole, body).items() if value is not None}


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as problem:
        where = "" if isinstance(problem, UnicodeError) else f": {problem}"
        raise ApiError(400, f"the body must be a JSON object in UTF-8{where}") from None


def number(
    fields: dict[str, Any], name: str, low: float, high: float, *, whole: bool = False
) -> Any:
    """Take a number out of `fields`; None if it is absent."""
    value = fields.pop(name, None)
    if value is None:
        return None
    kind = "an integer" if whole else "a number"
    right = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not right:
        raise ApiError(400, f"{name} must be {kind}, not {quoted(value)}", param=name)
    if not low <= value <= high:
        message = f"{name} must be {kind} from {low:g} to {high:g}, not {quoted(value)}"
        raise ApiError(400, message, param=name)
    return value


def truth(fields: dict[str, Any], name: str) -> bool:
    value = fields.pop(name, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false, not {quoted(value)}", param=name)
    return value


def stops(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    """Take a string or a list of strings out of `fields`. Empty ones stop nothing."""
    value = fields.pop(name, None)
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ApiError(400, f"{name} must be a string or a list of strings", param=name)
    given = tuple(dict.fromkeys(each for each in found if each))
    if len(given) > STOPS_MAX or any(len(each) > STOP_CHARS_MAX for each in given):
        message = f"{name} may hold {STOPS_MAX} strings of up to {STOP_CHARS_MAX} characters"
        raise ApiError(400, message, param=name)
    return given


def joined(content: Any, param: str) -> str:
    """The text of a message's content: a string, or parts of which all must be text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        message = f"{param} must be a string or a list of parts, not {quoted(content)}"
        raise ApiError(400, message, param=param)
    texts = []
    for n, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) else None
        match part:
            case {"type": "text" | "input_text" | "output_text"} if isinstance(text, str):
                texts.append(text)
            case {"type": "refusal", "refusal": str() as refusal}:
                texts.append(refusal)
            case {"type": str() as kind} if kind not in ("text", "input_text", "output_text"):
                message = f"{param}[{n}] is {quoted(kind)}: groove/... models read text alone"
                raise ApiError(400, message, param=f"{param}[{n}]", code="unsupported_content")
            case _:
                message = f"{param}[{n}] must be a part such as {{'type': 'text', 'text': '...'}}"
                raise ApiError(400, message, param=f"{param}[{n}]")
    return "\n".join(texts)


def messages(fields: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Take OpenAI's messages out of `fields`, with each content as one string."""
    given = fields.pop("messages", None)
    if not isinstance(given, list) or not given:
        message = "messages is required: a list of at least one message"
        raise ApiError(400, message, param="messages")
    if len(given) > MESSAGES_MAX:
        message = f"messages may hold {MESSAGES_MAX}, not {len(given)}"
        raise ApiError(400, message, param="messages")
    return tuple(_message(each, f"messages[{n}]") for n, each in enumerate(given))


def _message(given: Any, param: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ApiError(400, f"{param} must be an object, not {quoted(given)}", param=param)
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        message = f"{param}.role must be one of {', '.join(_ROLES)}, not {quoted(role)}"
        raise ApiError(400, message, param=f"{param}.role")
    read: dict[str, Any] = {"role": _ROLES[role]}
    content = given.get("content")
    if content is not None:
        read["content"] = joined(content, f"{param}.content")
    elif role != "assistant":
        raise ApiError(400, f"{param}.content is required", param=f"{param}.content")
    for name in ("name", "tool_call_id"):
        if isinstance(given.get(name), str):
            read[name] = given[name]
    if given.get("tool_calls") is not None:
        read["tool_calls"] = _calls(given["tool_calls"], f"{param}.tool_calls")
    if "content" not in read and "tool_calls" not in read:
        read["content"] = ""
    return read


def _calls(given: Any, param: str) -> list[dict[str, Any]]:
    for each in given if isinstance(given, list) else [None]:
        match each:
            case {"function": {"name": str(), "arguments": str()}}:
                pass
            case _:
                raise ApiError(400, f"{param} must be a list of calls of functions", param=param)
    return list(given)


def without_tools(given: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The same talk for a back end that knows no tools: what they said is told by the user."""
    plain = []
    for message in given:
        role = "user" if message["role"] == "tool" else message["role"]
        content = message.get("content") or ""
        if not content and message.get("tool_calls"):
            names = ", ".join(call["function"]["name"] for call in message["tool_calls"])
            content = f"(used {names})"
        plain.append({"role": role, "content": content})
    return tuple(plain)
