"""What the endpoint needs from whatever generates text: a `Backend`, with what it can declared.

Every back end takes the same `Ask` and gives the same `Piece`s, so that a client cannot tell which
one answered but for the header that names it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from leaves.model import LeafId


@dataclass(frozen=True, slots=True)
class Adapter:
    """A leaf's adapter that an answer is to be made with."""

    leaf: LeafId
    name: str
    bundle: str  # its address in the node's bundle store: SHA-256, hex
    origin: str = ""  # hex; empty for an own leaf


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to be made.

    Either `messages` (a chat; the chassis' template is applied by the back end) or `prompt` (raw
    text to go on from) is given. messages: OpenAI's form, as plain data, `content` always a string
    or absent. What is None is left to the back end.
    """

    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    prompt: str | None = field(default=None, repr=False)
    adapter: Adapter | None = None  # None: the bare chassis
    tokens_max: int = 512
    temperature: float | None = None  # 0: the likeliest token each time
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()  # at most 4; never part of the answer
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)  # for servers: tools, ...


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer, given as soon as it exists. The last one has `finish`."""

    text: str = field(default="", repr=False)
    finish: str | None = None  # stop, length, tool_calls, content_filter
    usage: Usage | None = None  # with the last piece
    delta: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of a server: tool_calls...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a back end can do, so that nobody is promised more."""

    adapters: bool  # answers with leaves at all
    adapters_at_run_time: bool  # a new leaf needs no restart of the back end
    raw_prompts: bool  # /v1/completions
    tools: bool  # passes tools and tool calls on
    seed: bool  # the same seed gives the same text
    at_once: int  # answers made at the same time; more wait their turn


class BackendError(Exception):
    """No answer, or not all of it. Its text goes to the client: it names no prompt and no path.

    status: the HTTP status to answer with, if nothing was sent yet. kind: counted under this word.
    """

    def __init__(self, kind: str, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class AdapterError(BackendError):
    """This leaf cannot be put on: damaged, of another chassis, gone. The chassis still answers."""


class Backend(Protocol):
    """Generates text. Safe to ask from many tasks at once; it makes them wait as it must."""

    @property
    def name(self) -> str:
        """builtin, llamacpp or vllm."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def run(self) -> None:
        """Keep it going until cancelled: its processes, its connections."""
        ...

    def answer(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[Piece]]:
        """Begin an answer; leaving the context ends it, finished or not, and frees what it held.

        Entering raises AdapterError or BackendError before the first piece; iterating raises
        BackendError later. A piece is never held back for the next.
        """
        ...

    async def warm(self, adapter: Adapter) -> None:
        """Have an adapter at hand, so that the next answer need not wait. Raises as above."""
        ...

    async def look(self) -> Mapping[str, Any]:
        """How it does, for `status`, `doctor`: {"ready": bool, "why": str, ...}. Never raises."""
        ...
