"""Takes what identifies or unlocks out of a text before the text is written anywhere.

Thirteen kinds, ten placeholders: see `Label`. Rules over the text as it stands and as it reads once
its disguises are off, and the owner's own values if they are known, say what must go; the union of
it is replaced, again and again until nothing is found, so that scrubbing twice changes nothing.
Whatever goes wrong is a ScrubError and the caller drops the record: a text is kept scrubbed or not
at all. Names of people and postal addresses are not found.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from .rules.engine import findings
from .rules.scan import Label, Span, replaced

__all__ = [
    "SCRUB_RULES_VERSION",
    "Finding",
    "KnownValues",
    "Label",
    "PIIScrubber",
    "ScrubError",
]

SCRUB_RULES_VERSION: Final = "2"  # rises with every change of what is found
ROUNDS_MAX: Final = 8  # of 100,000 texts made of disguises and pieces of keys, two need five
BUDGET_S: Final = 5.0  # of the thread's CPU time for a text, however short
BUDGET_S_PER_MB: Final = 10.0  # and for each megabyte; the slowest hostile text needs a tenth
DEPTH_MAX: Final = 32  # of metadata
NODES_MAX: Final = 20_000
KEY_CHARS_MAX: Final = 64  # of a key, read with each of its values: what its end says

_T = TypeVar("_T")
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")


class ScrubError(Exception):
    """The text could not be scrubbed and must not be kept. Holds nothing of the text."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters `start` to `end` of a text, and why they must go; never the characters."""

    start: int
    end: int
    label: Label
    reason: str


class KnownValues(Protocol):
    """The owner's own secrets, wherever they occur."""

    def spans(self, text: bytes) -> Iterable[tuple[int, int]]:
        """Yield where one of them stands, in bytes of the text."""
        ...


class PIIScrubber:
    """Replaces personal data and secrets by placeholders, and counts them. Safe from any thread."""

    rules_version: Final = SCRUB_RULES_VERSION

    def __init__(
        self,
        known: KnownValues | None = None,
        *,
        timer: Callable[[], float] = time.thread_time,
    ) -> None:
        """known: values to take out besides what the rules find. timer: seconds, monotonic."""
        self.replaced: Counter[Label] = Counter()  # a figure for the owner, not an exact account
        self._known = known
        self._timer = timer

    def scrub(self, text: str) -> str:
        """Return `text` with placeholders; `scrub(scrub(x)) == scrub(x)`.

        A text that is a JSON object or array stays one. Raises ScrubError if the text cannot be
        made clean, or not within its budget of time. Linear in the length of the text.
        """
        return self._guarded(lambda: self._scrubbed(text, None))

    def scrub_value(self, value: Any) -> Any:
        """Scrub JSON-like data: the keys and values of dicts and lists, to any depth up to 32.

        Raises ScrubError for types that JSON has not, for deeper or for larger data, and for data
        that are not clean within the budget of their size.
        """
        return self._guarded(lambda: self._walked(value))

    def find(self, text: str) -> list[Finding]:
        """What `scrub` would replace first, in order, without overlaps; counts nothing.

        Raises ScrubError as `scrub` does.
        """
        data = _encoded(text)
        spans = self._guarded(lambda: self._spans(data, self._ticker(len(data))))
        return list(_in_characters(data, spans))

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except ScrubError:
            raise
        except Exception as problem:  # the rules must never let a text through by failing
            raise ScrubError(f"the rules failed: {type(problem).__name__}") from None

    def _walked(self, value: Any) -> Any:
        tick = self._ticker(_size(value))
        return _Tree(lambda text: self._scrubbed(text, tick)).walk(value, 0)

    def _scrubbed(self, text: str, tick: Callable[[], None] | None) -> str:
        """tick: of the data that the text is part of; a text alone has a budget of its own."""
        data = _encoded(text)
        tick = tick or self._ticker(len(data))
        clean = self._fixpoint(data, tick).decode()
        if len(clean) != len(text) and _is_json(text) and not _is_json(clean):
            # A number became a bare placeholder, or a span began in one string, ended in another.
            value = _Tree(lambda part: self._fixed(part, tick)).walk(json.loads(text), 0)
            clean = self._fixed(json.dumps(value, ensure_ascii=False), tick)
        return clean

    def _fixed(self, text: str, tick: Callable[[], None]) -> str:
        return self._fixpoint(_encoded(text), tick).decode()

    def _fixpoint(self, data: bytes, tick: Callable[[], None]) -> bytes:
        for _ in range(ROUNDS_MAX):
            spans = self._spans(data, tick)
            if not spans:
                return data
            self.replaced.update(span.label for span in spans)
            data = replaced(data, spans)
        if self._spans(data, tick):
            raise ScrubError(f"still not clean after {ROUNDS_MAX} rounds")
        return data

    def _spans(self, data: bytes, tick: Callable[[], None]) -> list[Span]:
        return findings(data, tick, self._known_spans)

    def _known_spans(self, data: bytes) -> Iterator[Span]:
        if self._known is not None:
            for start, end in self._known.spans(data):
                yield Span(start, end, Label.API_KEY, "known value")

    def _ticker(self, size_bytes: int) -> Callable[[], None]:
        """A function that raises ScrubError once the budget for a text of this size is spent."""
        timer = self._timer
        deadline = timer() + BUDGET_S + BUDGET_S_PER_MB * size_bytes / 1e6

        def tick() -> None:
            if timer() > deadline:
                raise ScrubError("the time for a text of this size is spent")

        return tick


class _Tree:
    """One walk over metadata, with its budget."""

    def __init__(self, scrub: Callable[[str], str]) -> None:
        self._scrub = scrub
        self._nodes = 0

    def walk(self, value: Any, depth: int, key: str = "") -> Any:
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            raise ScrubError(f"data deeper than {DEPTH_MAX} or larger than {NODES_MAX} values")
        match value:
            case None | bool():
                return value
            case str():
                return self._text(value, key)
            case int() | float():
                return self._number(value, key)
            case dict():
                return self._dict(value, depth)
            case list() | tuple():
                return [self.walk(item, depth + 1, key) for item in value]
            case _:
                raise ScrubError(f"data of type {type(value).__name__}, expected what JSON has")

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        met: Counter[str] = Counter()
        for key, item in value.items():
            clean = name = self._scrub(str(key))
            while clean in out:  # two keys that became one placeholder are still two entries
                met[name] += 1
                clean = f"{name}#{met[name] + 1}"
            out[clean] = self.walk(item, depth + 1, name[-KEY_CHARS_MAX:])
        return out

    def _text(self, value: str, key: str) -> str:
        """Scrub with the key before it, for "api_key" says what its value is."""
        if key and value:
            quote = "" if '"' in value or "\n" in value else '"'
            head = f"{key}: {quote}"
            together = self._scrub(head + value + quote)
            if together.startswith(head) and together.endswith(quote):
                value = together[len(head) : len(together) - len(quote)]
        return self._scrub(value)

    def _number(self, value: int | float, key: str) -> int | float | str:
        """A card number is one also as an integer."""
        whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
        shown = str(int(value)) if whole else str(value)
        clean = self._text(shown, key)
        return value if clean == shown else clean


def _size(value: Any) -> int:
    """The characters of JSON-like data, roughly; what is too large to walk is refused later."""
    waiting, size = [value], 0
    for _ in range(NODES_MAX):
        if not waiting:
            break
        match waiting.pop():
            case str() as text:
                size += len(text)
            case dict() as members:
                size += sum(len(key) for key in members if isinstance(key, str))
                waiting += members.values()
            case list() | tuple() as items:
                waiting += items
            case _:
                size += 8
    return size


def _encoded(text: str) -> bytes:
    """RE2 and the disk want UTF-8, which has no lone surrogates; Python's str may hold them."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.translate(_SURROGATES).encode()


def _is_json(text: str) -> bool:
    """True if the text is a JSON object or array."""
    inner = text.strip()
    if inner[:1] + inner[-1:] not in ("{}", "[]"):
        return False
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _in_characters(data: bytes, spans: list[Span]) -> Iterator[Finding]:
    """Spans in bytes as findings in characters."""
    at = characters = 0
    for span in spans:
        start = characters + len(data[at : span.start].decode(errors="ignore"))
        at = span.end
        while at < len(data) and data[at] & 0xC0 == 0x80:
            at += 1
        characters = start + len(data[span.start : at].decode(errors="ignore"))
        yield Finding(start, characters, span.label, span.reason)
