"""What a right answer is, as data say it: read from a plain object, and found in a text.

Apart from `answers`, because capture reads checks too, and should load no more than this.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from ..ports import Check, CheckKind

CHARS_MAX = 20_000  # of all texts of a check
TESTS_MAX, OPTIONS_MAX = 32, 26
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")
_FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_SAID = re.compile(r"(?:answer|option|choice)(?:\s+is)?\W{0,4}([A-Za-z])\b(?!')", re.IGNORECASE)
_LETTER = re.compile(r"^\W{0,3}([A-Za-z])(?:[).:\]]|\W*$)")


def parse_check(data: object) -> Check | None:
    """Read a check as data carry it; None for what is none, or cannot be checked.

    `kind` is one of `CheckKind`, or "python" for tests. `answer` is a text or a number; a choice
    may have `options`, tests have `tests` and may have a `setup`.
    """
    if not isinstance(data, Mapping):
        return None
    kind = {"python": "tests"}.get(str(data.get("kind")), str(data.get("kind")))
    answer, setup = data.get("answer", ""), data.get("setup", "")
    tests, options = _texts(data.get("tests"), TESTS_MAX), _texts(data.get("options"), OPTIONS_MAX)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if kind not in list(CheckKind) or not isinstance(answer, str) or not isinstance(setup, str):
        return None
    if sum(map(len, (answer, setup, *tests, *options))) > CHARS_MAX:
        return None
    check = Check(CheckKind(kind), answer, options, tests, setup)
    return check if _complete(check) else None


def _texts(data: object, count_max: int) -> tuple[str, ...]:
    texts = data if isinstance(data, list | tuple) else []
    whole = len(texts) <= count_max and all(isinstance(text, str) for text in texts)
    return tuple(texts) if whole else ()


def _complete(check: Check) -> bool:
    match check.kind:
        case CheckKind.NUMBER:
            return last_number(check.answer) is not None
        case CheckKind.TESTS:
            return bool(check.tests)
        case CheckKind.CHOICE:
            return letter_of(check, check.answer) is not None
        case _:
            return bool(check.answer.strip())


def last_number(text: str) -> Decimal | None:
    """The last number of a text; a hyphen between two numbers is no sign."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-"))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def folded(text: str) -> str:
    """A text, or the fenced part of it, without what does not make it another answer."""
    inner = unicodedata.normalize("NFKC", code_in(text))
    return _SPACE.sub(" ", inner).strip(" `\"'").rstrip(" .;")


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def contains(text: str, part: str) -> bool:
    """True if the words of a part stand in a text, one after the other."""
    words, wanted = _words(text), _words(part)
    if not wanted:  # signs alone
        return part.strip() in text
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


def letter_of(check: Check, text: str) -> str | None:
    """The letter of the option that a text names; an "A" that begins a sentence is a word."""
    said = _LETTER.search(text.strip()) or _SAID.search(text)
    if said:
        letter = said[1].upper()
        if not check.options or ord(letter) - ord("A") < len(check.options):
            return letter
    named = [at for at, option in enumerate(check.options) if contains(text, option)]
    return chr(ord("A") + named[0]) if len(named) == 1 else None


def code_in(answer: str) -> str:
    """The first fenced part of an answer, or else all of it."""
    fenced = _FENCED.search(answer)
    return fenced[1] if fenced else answer
