"""One question answered without a running node: the endpoint's own parts, put together for it.

It is the same `Completing` that stands behind the endpoint, so that a leaf is chosen, put on and
fallen back from in one way alone. Nothing is captured here: the queue that a corpus is written
through is the running node's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from . import answering
from .api.asked import Asked
from .api.backends import open_backend
from .api.choosing import CHASSIS, Chooser
from .api.completing import Completing
from .api.counts import Counts
from .api.errors import ApiError
from .api.ports import Backend, Usage
from .api.serving import configured

if TYPE_CHECKING:
    from .answering import Question
    from .app import App

READY_S = 60.0  # for the table and the encoder to be read: one question is worth waiting for
Outcome = tuple[str, Mapping[str, Any], Mapping[str, int]]


class _Unrecorded:
    """Keeps nothing."""

    def begin(self, exchange: object) -> None:
        pass

    def finished(self, exchange: object, text: str, outcome: str, usage: Usage | None) -> None:
        pass


def run(
    app: App, question: Question, hear: Callable[[str], None], backend: Backend | None = None
) -> Outcome:
    """Answer, and return how it ended, who answered and what it took. Raises NoAnswerError."""
    try:
        return trio.run(_answered, app, question, hear, backend)
    except BaseExceptionGroup as group:  # of the nursery that the parts run in
        raise _first(group) from None


def _first(group: BaseException) -> BaseException:
    """Ctrl-C before everything else: whoever pressed it does not ask what else failed."""
    if not isinstance(group, BaseExceptionGroup):
        return group
    found = [_first(each) for each in group.exceptions]
    return next((each for each in found if isinstance(each, KeyboardInterrupt)), found[0])


async def _answered(
    app: App, question: Question, hear: Callable[[str], None], given: Backend | None
) -> Outcome:
    config, counts = configured(app), Counts()
    backend = given or open_backend(app, config)
    chooser = Chooser(app, config, counts)
    completing = Completing(chooser, backend, _Unrecorded(), counts, config)  # type: ignore[arg-type]
    asked = Asked(
        model=f"groove/{question.leaf}",
        messages=tuple(question.messages),
        tokens_max=question.tokens_max,
        temperature=question.temperature,
        seed=question.seed,
        stream=True,
        no_capture=True,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.run)
        if question.leaf != CHASSIS:
            nursery.start_soon(chooser.run)
            with trio.move_on_after(READY_S):  # later than that, the chassis answers
                await chooser.ready.wait()
        await trio.sleep(0)  # the back end's task has begun
        outcome = await _said(completing, asked, hear)
        nursery.cancel_scope.cancel()
    return outcome


async def _said(completing: Completing, asked: Asked, hear: Callable[[str], None]) -> Outcome:
    try:
        async with completing.begin(asked) as answer:
            async for piece in answer:
                hear(piece.text)
    except ApiError as problem:
        raise answering.NoAnswerError(
            problem.message,
            unchanged="Nothing was answered.",
            next_step="`groove-node doctor` looks at what answers; `groove-node tree` lists the "
            "leaves.",
        ) from None
    if answer.problem is not None:
        raise answering.broken(answer.error.message)
    usage = answer.usage
    told = (
        {}
        if usage is None
        else {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
    )
    return answer.finish or "stop", answer.groove, told
