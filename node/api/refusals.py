"""What a request that is not let in is answered: in the shape that its client can read."""

from __future__ import annotations

import html
from dataclasses import dataclass

import msgspec

HTML = b"text/html; charset=utf-8"
JSON = b"application/json"

_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>groove-node: {status}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"></head>
<body><main><h1>{title}</h1><p>{message}</p></main></body></html>
"""
_TITLES = {401: "This page is the owner's", 405: "Not done", 500: "Something went wrong here"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let in. cause: counted under this word. message: holds nothing of
    what was sent."""

    cause: str
    status: int
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


def body_of(refusal: Refusal, path: str) -> tuple[bytes, bytes]:
    """The content type and the body, as whoever asks for this path expects errors."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        kind = _ANTHROPIC_TYPES.get(refusal.status, _fault(refusal.status))
        error = {"type": kind, "message": refusal.message}
        return JSON, msgspec.json.encode({"type": "error", "error": error})
    if path == "/metrics" or path.startswith(("/v1/", "/api/", "/entry/")) or path == "/v1":
        kind = _OPENAI_TYPES.get(refusal.status, _fault(refusal.status))
        told = {"message": refusal.message, "type": kind, "param": None, "code": refusal.cause}
        return JSON, msgspec.json.encode({"error": told})
    page = _PAGE.format(
        status=refusal.status,
        title=html.escape(_TITLES.get(refusal.status, "Not let in")),
        message=html.escape(refusal.message),
    )
    return HTML, page.encode()


def _fault(status: int) -> str:
    return "invalid_request_error" if status < 500 else "api_error"
