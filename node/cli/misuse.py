"""What the parser of the command line finds wrong, in the words of the rest of the node."""

from __future__ import annotations

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from node.errors import MisuseError

_NUMBERS = (int, float)


def misuse(problem: CycloptsError) -> MisuseError:
    """The owner's error that a parser's error comes to."""
    words = " ".join(("groove-node", *(problem.command_chain or ())))
    return MisuseError(
        _what(problem, words),
        unchanged="Nothing was done.",
        next_step=f"`{words} --help` shows what it takes.",
    )


def _what(problem: CycloptsError, words: str) -> str:
    name = problem.argument.name if problem.argument else ""
    match problem:
        case UnusedCliTokensError():
            return f"`{words}` does not take {' '.join(map(repr, problem.unused_tokens or ()))}"
        case MissingArgumentError() if name:
            what = "a value" if name.startswith("--") else f"its {name}"
            return f"`{words}{f' {name}' if name.startswith('--') else ''}` needs {what}"
        case RepeatArgumentError() if name or problem.token:
            return f"{problem.token.keyword or name} is given twice"
        case UnknownOptionError():
            option = problem.token.keyword or problem.token.value
            return f"`{words}` has no option {option}{_meant(problem)}"
        case UnknownCommandError():
            told = str(problem).partition(" Available commands")[0]
            return told.replace('Unknown command "', 'there is no command "')
        case CoercionError() if problem.token and problem.target_type in _NUMBERS:
            return f"{problem.token.keyword or name} takes a number, not {problem.token.value!r}"
    return str(problem)


def _meant(problem: CycloptsError) -> str:
    """Did you mean …? if the parser has a guess."""
    _, guessed, guess = str(problem).partition(" Did you mean ")
    return f"; did you mean {guess}" if guessed else ""
