"""Server-sent events: how a stream is framed. One event is one write, and none waits for the next.

Nothing here splits lines: what is framed is JSON of our own, which has no line ends in it.
"""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx, if somebody has one, waits for 4 KiB
)


def data(payload: bytes) -> bytes:
    """An event without a name, as OpenAI's clients read it."""
    return b"data: " + payload + b"\n\n"


def event(name: bytes, payload: bytes) -> bytes:
    """An event with a name, as Anthropic's clients read it."""
    return b"event: " + name + b"\ndata: " + payload + b"\n\n"


def events(stream: bytes) -> list[bytes]:
    """The data of all whole events in a stream that is at hand, in order, "[DONE]" left out."""
    found = []
    for block in stream.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [
            line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")
        ]
        if lines and lines != [b"[DONE]"]:
            found.append(b"\n".join(lines))
    return found
