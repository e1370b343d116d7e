"""`groove-node ask`: one question, one answer, and who gave it."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from node import answering
from node.app import App
from node.errors import MisuseError
from node.terminal import Terminal, harmless

from .base import AsJson, command

STDIN = ("-", "/dev/stdin")  # the first is what is typed, the second what `main` makes of it
QUESTION_CHARS_MAX = 1 << 20


@command.command
def ask(
    question: Annotated[
        str | None, Parameter(help="What is asked; - or nothing reads standard input.")
    ] = None,
    /,
    *,
    leaf: Annotated[
        str, Parameter(help="This leaf (name or id), or chassis; auto chooses.")
    ] = answering.AUTO,
    system: Annotated[str, Parameter(help="A system prompt.")] = "",
    max_tokens: Annotated[int | None, Parameter(help="At most so many tokens.")] = None,
    temperature: Annotated[
        float | None, Parameter(help="0 gives the likeliest words each time.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="The same seed gives the same answer.")] = None,
    no_capture: Annotated[
        bool, Parameter(negative="", help="Keep nothing of it, whatever is allowed.")
    ] = False,
    here: Annotated[
        bool, Parameter(negative="", help="Answer in this process, though a node runs.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Answer a question with the leaf that serves it best. The answer alone is on stdout.

    The running node answers, if there is one with an endpoint; else this process loads the chassis
    for one question (some seconds), and then nothing is captured. On stderr stands who answered:
    the leaf, how sure the routing was, and what it fell back from.

        groove-node ask "how do I wait for two tasks?"
        git diff | groove-node ask --leaf code-review -
    """
    out = Terminal(json)
    out.starts_anew("the answer has no end")
    _check(max_tokens, temperature)
    told = answering.Question(
        _text(question), leaf, system, max_tokens, temperature, seed, capture=not no_capture
    )
    said = answering.answer(App.open(), told, _ignored if json else _written, here=here)
    if json:
        out.done(
            {
                "answer": said.text,
                "finish": said.finish,
                "answered_by": "node" if said.where == answering.NODE else "process",
                "groove": dict(said.groove),
                "usage": dict(said.usage),
                "first_s": round(said.first_s, 3),
                "took_s": round(said.took_s, 3),
            }
        )
        return
    if not said.text.endswith("\n"):
        _written("\n")
    out.note(who(said))


def who(said: answering.Said) -> str:
    """Who answered, in a line."""
    groove = said.groove
    leaf, served_by = groove.get("leaf", "chassis"), groove.get("served_by", "")
    parts = [f"answered by {served_by or leaf}"]
    if served_by and served_by != leaf:
        parts.append(f"in place of {leaf}")
    if groove.get("level"):
        sure = f"confidence {groove.get('confidence', 0.0):.2f}"
        parts.append(f"{sure}, gate {groove.get('gate', 0.0):.2f}, level {groove['level']}")
    if fallback := groove.get("fallback"):
        parts.append(f"fallback: {fallback}")
    tokens = said.usage.get("completion_tokens")
    made = f"{tokens:,} tokens in {said.took_s:.1f} s" if tokens else f"{said.took_s:.1f} s"
    parts.append(f"{made}, by {groove.get('backend', 'the back end')} in {said.where}")
    if said.finish == "length":
        parts.append("cut at the most tokens: --max-tokens gives more")
    return "; ".join(parts)


def _check(max_tokens: int | None, temperature: float | None) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise MisuseError(f"--max-tokens must be at least 1, not {max_tokens}")
    if temperature is not None and not 0 <= temperature <= 2:
        raise MisuseError(f"--temperature must be from 0 to 2, not {temperature:g}")


def _text(given: str | None) -> str:
    """The question: of the command line, or of standard input. Raises MisuseError."""
    if given is None and sys.stdin.isatty():
        raise MisuseError(
            "there is no question",
            unchanged="Nothing was asked.",
            next_step='Give one, as in `groove-node ask "what is a leaf?"`.',
        )
    if given is None or given in STDIN:
        given = sys.stdin.buffer.read(4 * QUESTION_CHARS_MAX + 1).decode("utf-8", "replace")
    if len(given) > QUESTION_CHARS_MAX:
        raise MisuseError(f"a question has at most {QUESTION_CHARS_MAX:,} characters")
    if not given.strip():
        raise MisuseError("the question is empty", unchanged="Nothing was asked.")
    return given.encode("utf-8", "replace").decode()  # an argument may hold bytes that are no text


def _written(text: str) -> None:
    """Write a part of an answer as it comes. A terminal gets no control characters of it."""
    if sys.stdout.isatty():
        text = harmless(text)
    sys.stdout.buffer.write(text.encode(errors="replace"))
    sys.stdout.buffer.flush()


def _ignored(text: str) -> None:
    """With --json the whole document comes at the end."""
