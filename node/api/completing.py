"""One request from its model's name to its last byte: who answers, what is said, what is recorded.

The rules of failing open stand here. Trouble with a leaf means that the chassis answers, and the
answer says so; trouble with the recorder never shows; trouble with the back end is an error that
names its cause. Every one of them is counted.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from node.clock import Clock, SystemClock

from .asked import Asked, without_tools
from .choosing import UnknownModelError
from .config import ApiConfig
from .counts import Counts
from .errors import ApiError, no_such_model
from .ports import AdapterError, Ask, Backend, BackendError, Piece, Usage
from .recording import Exchange

if TYPE_CHECKING:
    from .choosing import Choice, Chooser
    from .recording import Recorder

log = logging.getLogger(__name__)

PREFIX = "groove/"
TEXT_CHARS_MAX = 4 << 20  # of one answer: a back end in a loop must not fill the memory
_NEEDS_SERVER = ("tools", "tool_choice", "response_format", "functions", "function_call")


class Answer:
    """What is being said. Iterating gives the pieces as they come; the texts are kept."""

    def __init__(self, choice: Choice, backend: str, created: int, ignored: list[str]) -> None:
        self.id = secrets.token_hex(12)
        self.choice = choice
        self.created = created
        self.texts: list[str] = []
        self.deltas: list[Mapping[str, Any]] = []
        self.finish: str | None = None
        self.usage: Usage | None = None
        self.problem: BackendError | None = None  # what broke it
        self._backend = backend
        self._ignored = ignored
        self._chars = 0
        self._pieces: AsyncIterator[Piece] | None = None
        self._first: Piece | None = None

    @property
    def groove(self) -> dict[str, Any]:
        """Who answers and why, as the client sees it."""
        choice = self.choice
        facts: dict[str, Any] = {
            "exchange": self.id,
            "leaf": choice.name,
            "served_by": choice.served_by,
            "level": choice.level,
            "confidence": round(choice.confidence, 4),
            "gate": round(choice.gate, 4),
            "fallback": choice.fallback,
            "backend": self._backend,
        }
        if self._ignored:
            facts["ignored"] = self._ignored
        return facts

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same for who reads headers; what is not ASCII in a name is percent-encoded."""
        choice = self.choice
        found = {
            "x-groove-leaf": choice.name,
            "x-groove-confidence": f"{choice.confidence:.4f}",
            "x-groove-level": str(choice.level),
            "x-groove-fallback": choice.fallback,
            "x-groove-backend": self._backend,
            "x-groove-exchange": self.id,
            "x-request-id": self.id,
            "request-id": self.id,
        }
        return [
            (name.encode(), quote(value, safe=" /:@+,;=()").encode())
            for name, value in found.items()
            if value
        ]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def error(self) -> ApiError:
        """What broke the answer, for the client."""
        assert self.problem is not None
        return _told(self.problem)

    def start(self, first: Piece | None, pieces: AsyncIterator[Piece]) -> None:
        self._first = first
        self._pieces = pieces

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Piece:
        """The next piece. An answer that breaks ends here too: `problem` says of what.

        It is not raised: a back end may hold a nursery around this, which would wrap it.
        """
        first, self._first = self._first, None
        if first is not None:
            return self._kept(first)
        if self.finish is not None or self.problem is not None:
            raise StopAsyncIteration
        assert self._pieces is not None
        try:
            return self._kept(await anext(self._pieces))
        except StopAsyncIteration:
            self.finish = "stop"
        except Exception as problem:  # a back end's bug is told as one
            self.problem = _known(problem)
        raise StopAsyncIteration

    def _kept(self, piece: Piece) -> Piece:
        if piece.text:
            self._chars += len(piece.text)
            if self._chars > TEXT_CHARS_MAX:
                raise BackendError("too_long", f"the answer passed {TEXT_CHARS_MAX:,} characters")
            self.texts.append(piece.text)
        if piece.delta:
            self.deltas.append(piece.delta)
        self.finish = piece.finish or self.finish
        self.usage = piece.usage or self.usage
        return piece


class Completing:
    """Answers for groove/... models. Safe to use from many tasks."""

    def __init__(
        self,
        chooser: Chooser,
        backend: Backend,
        recorder: Recorder,
        counts: Counts,
        config: ApiConfig,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._chooser = chooser
        self._backend = backend
        self._recorder = recorder
        self._counts = counts
        self._config = config
        self._clock = clock or SystemClock()

    @property
    def counts(self) -> Counts:
        return self._counts

    def models(self) -> list[dict[str, Any]]:
        """The rows of /v1/models for what this node answers with."""
        return self._chooser.models()

    @asynccontextmanager
    async def begin(self, asked: Asked) -> AsyncIterator[Answer]:
        """Have an answer begun: its first piece is there, or was not to be had.

        Leaving the context ends it, finished or not, and records what became of it. Raises
        ApiError if there is no answer; what breaks later is raised by iterating.
        """
        ask, ignored = self._ask(asked)
        choice = await self._choice(asked)
        created = int(self._clock.now_s())
        answer = Answer(choice, self._backend.name, created, ignored)
        self._counts.streams += 1
        outcome = "error"
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack, ask, answer)
                self._counts.answered[_kind(answer.choice)] += 1
                yield answer
        except Exception:
            raise
        except BaseException:  # cancelled, bare or in a group: the client has hung up
            outcome = "aborted"
            raise
        finally:
            self._counts.streams -= 1
            if answer.finish is not None:  # who hangs up after the last byte has aborted nothing
                outcome = "ok"
            if outcome == "aborted":
                self._counts.aborted += 1
            if answer.problem is not None:
                self._counts.failures[answer.problem.kind] += 1
            self._record(asked, answer, outcome)

    def _ask(self, asked: Asked) -> tuple[Ask, list[str]]:
        """What the back end is asked, but for the leaf; and what it must leave out."""
        can = self._backend.capabilities
        if asked.prompt is not None and not can.raw_prompts:
            message = f"the back end {self._backend.name!r} answers chats alone: ask /v1/chat/..."
            raise ApiError(400, message, kind="unsupported", code="unsupported", param="prompt")
        extra, ignored, messages = dict(asked.extra), [], asked.messages
        if not can.tools:
            ignored = [name for name in _NEEDS_SERVER if name in extra]
            for name in ignored:
                self._refuse_needed(name, extra.pop(name))
            messages = without_tools(messages)
        ask = Ask(
            messages=messages,
            prompt=asked.prompt,
            tokens_max=asked.tokens_max or self._config.tokens_max,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            stop=asked.stop,
            extra=extra,
        )
        return ask, ignored

    def _refuse_needed(self, name: str, value: Any) -> None:
        """An answer that is not what it must be is worse than none."""
        match name, value:
            case "tool_choice", str() as choice:
                needed = choice not in ("auto", "none")
            case "tool_choice", _:
                needed = True
            case "response_format", {"type": "text"}:
                needed = False
            case "response_format", _:
                needed = True
            case _:
                needed = False
        if needed:
            message = (
                f"the back end {self._backend.name!r} cannot be held to {name}: "
                "leave it out, or use a llama.cpp or vLLM server as [api] backend"
            )
            raise ApiError(400, message, kind="unsupported", code="unsupported", param=name)

    async def _choice(self, asked: Asked) -> Choice:
        name = asked.model.removeprefix(PREFIX)
        if name == "auto":
            return await self._chooser.auto(asked.first_ask, asked.conversation)
        try:
            return self._chooser.named(name)
        except UnknownModelError as problem:
            raise no_such_model(str(problem)) from None

    async def _open(self, stack: AsyncExitStack, ask: Ask, answer: Answer) -> None:
        """Have the first piece: of the leaf, or of the chassis if the leaf cannot be put on."""
        problem = await self._begun(stack, ask, answer)
        if isinstance(problem, AdapterError) and answer.choice.adapter is not None:
            log.warning("leaf not put on leaf=%s cause=%s", answer.choice.leaf, problem.kind)
            answer.choice = self._chooser.without(answer.choice, "adapter")
            problem = await self._begun(stack, ask, answer)
        if problem is not None:
            raise _told(problem)

    async def _begun(self, stack: AsyncExitStack, ask: Ask, answer: Answer) -> BackendError | None:
        """Begin an answer and wait for its first piece. Returns what kept it from coming."""
        whole = _dressed(ask, answer.choice)
        async with AsyncExitStack() as attempt:
            try:
                pieces = aiter(await attempt.enter_async_context(self._backend.answer(whole)))
                if isinstance(pieces, AsyncGenerator):
                    attempt.push_async_callback(pieces.aclose)  # here, and not when memory is swept
                answer.start(await anext(pieces, None), pieces)
            except Exception as problem:
                return _known(problem)
            stack.push_async_exit(attempt.pop_all())
        return None

    def _record(self, asked: Asked, answer: Answer, outcome: str) -> None:
        """Tell the recorder what became of it. Its trouble is not the client's."""
        if not self._config.capture:
            return
        messages = asked.messages
        if asked.prompt is not None:
            messages = ({"role": "user", "content": asked.prompt},)
        with self.quietly():
            exchange = Exchange(
                id=answer.id,
                model=asked.model,
                provider="groove",
                messages=messages,
                choice=answer.choice,
                client=asked.client,
                conversation=asked.conversation,
                no_capture=asked.no_capture,
                feedback=asked.feedback,
            )
            self._recorder.begin(exchange)
            self._recorder.finished(exchange, answer.text, outcome, answer.usage)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Around what is done for the owner's corpus, and must never cost an answer."""
        try:
            yield
        except Exception as problem:  # capture's promise: never to hurt the caller
            self._counts.failures["recorder"] += 1
            log.error("exchange not recorded problem=%s", type(problem).__name__)


def _known(problem: Exception) -> BackendError:
    """What a back end raised, even out of a nursery of its own or by a mistake of ours."""
    while isinstance(problem, ExceptionGroup):
        problem = problem.exceptions[0]
    if isinstance(problem, BackendError):
        return problem
    # Its text may quote what was asked.
    log.error("answer failed problem=%s", type(problem).__name__, stack_info=True)
    return BackendError("unexpected", "the back end failed; the node's log says where", 500)


def _told(problem: BackendError) -> ApiError:
    return ApiError(problem.status, str(problem), kind=problem.kind, code=problem.kind)


def _kind(choice: Choice) -> str:
    if choice.adapter is not None:
        return "leaf"
    return "starter" if choice.system else "chassis"


def _dressed(ask: Ask, choice: Choice) -> Ask:
    """The ask with the leaf's adapter, or with the words that a starter stands for."""
    messages = ask.messages
    if choice.system and messages:
        head, *rest = messages
        if head["role"] == "system":  # the client's words come last: they are the more binding
            own = f"{choice.system}\n\n{head.get('content') or ''}".rstrip()
            messages = ({**head, "content": own}, *rest)
        else:
            messages = ({"role": "system", "content": choice.system}, *messages)
    return replace(ask, messages=messages, adapter=choice.adapter)
