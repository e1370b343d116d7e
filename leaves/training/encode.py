"""Sessions as token ids: the one place where a prompt and its completion become numbers.

Uses the `tokenizers` library alone, so the parent process can count tokens without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from ..ports import Example
from .chassis import ChassisError
from .preprocess import plain, render

ROWS_MAX = 1024  # tokens computed on at once: bounds memory; products are efficient from 384 on
TOKENS_MAX = 512  # of one session in an evaluation


@dataclass(frozen=True, slots=True)
class Encoded:
    """One session. tokens[prompt:] are the completion and the end mark, which alone are learned."""

    tokens: tuple[int, ...]
    prompt: int

    @property
    def completion(self) -> int:
        return len(self.tokens) - self.prompt


class Encoder:
    """Encodes with a chassis' own tokenizer."""

    def __init__(self, chassis: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(chassis / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.end = self._end_token(chassis)

    def _end_token(self, chassis: Path) -> int:
        config = json.loads((chassis / "config.json").read_text())
        end = config.get("eos_token_id")
        if isinstance(end, list):
            end = end[0]
        if end is None:
            raise ChassisError(f"{chassis}/config.json names no eos_token_id")
        return int(end)

    def prompt(self, prompt: str, *, tokens_max: int) -> tuple[int, ...]:
        """The rendered prompt; of a long one the beginning and the end are kept."""
        ids = self._tokenizer.encode(render(prompt), add_special_tokens=False).ids
        if len(ids) > tokens_max:
            half = tokens_max // 2
            ids = ids[:half] + ids[len(ids) - (tokens_max - half) :]
        return tuple(ids)

    def encode(self, example: Example, *, tokens_max: int) -> Encoded:
        """A session of at most `tokens_max`, its prompt at most half; a cut one has no end mark.

        It has a token of a prompt and one of a completion at least, for the end mark is one.
        """
        if tokens_max < 2:
            raise ValueError(f"tokens_max must be at least 2, not {tokens_max}")
        prompt = self.prompt(example.prompt, tokens_max=tokens_max // 2)
        body = self._tokenizer.encode(plain(example.completion), add_special_tokens=False).ids
        tokens = (*prompt, *body, self.end)[:tokens_max]
        return Encoded(tokens, len(prompt))

    def encode_all(self, examples: Iterable[Example], *, tokens_max: int) -> list[Encoded]:
        return [self.encode(example, tokens_max=tokens_max) for example in examples]

    def text(self, tokens: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def chunks(sessions: Sequence[Encoded]) -> Iterator[list[int]]:
    """Indices of the sessions, alike in length together, at most ROWS_MAX tokens at a time."""
    chunk: list[int] = []
    rows = 0
    for index in sorted(range(len(sessions)), key=lambda each: len(sessions[each].tokens)):
        length = len(sessions[index].tokens)
        if chunk and rows + length > ROWS_MAX:
            yield chunk
            chunk, rows = [], 0
        chunk.append(index)
        rows += length
    if chunk:
        yield chunk
