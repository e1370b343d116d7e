"""What went wrong with a request, in the words and with the statuses that clients look for.

The packages of OpenAI and Anthropic choose the class of their exception by the status alone, and
people read the message: it says what was wrong and what would be right, and quotes no prompt.
"""

from __future__ import annotations

from typing import Any

import msgspec

QUOTED_CHARS_MAX = 100  # of what a client sent, in a message to that client

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that is not answered, or not to its end.

    kind: counted under this word. param: which field of the request, as OpenAI names it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "malformed",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param


def quoted(value: object) -> str:
    """Of what a client sent, as much as helps it to find the place."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"  # its repr would be made whole, on the loop
    text = repr(value[: QUOTED_CHARS_MAX + 1] if isinstance(value, str) else value)
    return text if len(text) <= QUOTED_CHARS_MAX else text[: QUOTED_CHARS_MAX - 1] + "…"


def no_such_model(message: str) -> ApiError:
    return ApiError(404, message, kind="model_not_found", code="model_not_found", param="model")


def openai_error(error: ApiError) -> dict[str, Any]:
    """{"error": {...}}, as OpenAI's clients expect it."""
    otherwise = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": error.message,
            "type": _OPENAI_TYPES.get(error.status, otherwise),
            "param": error.param,
            "code": error.code or (error.kind if error.status >= 500 else None),
        }
    }


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """{"type": "error", "error": {...}}, as Anthropic's clients expect it."""
    message = error.message
    if error.param is not None and not message.startswith(error.param):
        message = f"{error.param}: {message}"
    return {
        "type": "error",
        "error": {"type": _ANTHROPIC_TYPES.get(error.status, "api_error"), "message": message},
    }


def encoded(value: object) -> bytes:
    """As JSON. The names and numbers of what we made ourselves; never raises on text."""
    return msgspec.json.encode(value)
