"""What the steps of a training leave in its folder, so that the next step can begin where they end.

A note holds ids of sessions, numbers and hashes, never a text. Each names the notes that it was
made from by their hashes: a step that was done on something else counts as not done.
"""

from __future__ import annotations

import hashlib
import logging
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .home import write_atomic

T = TypeVar("T")
log = logging.getLogger(__name__)


class Step(StrEnum):
    """The five steps of a training, in their order."""

    PREPROCESS = "preprocess"
    SFT = "sft"
    DPO = "dpo"
    EVALUATE = "evaluate"
    PACKAGE = "package"


class Notes:
    """The notes in one training's folder, made with mode 0700."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder

    def write(self, step: Step, made_from: str, what: object) -> str:
        """Keep what a step came to and return the note's seal."""
        document = {"made_from": made_from, "what": what}
        data = msgspec.json.encode(document, enc_hook=str, order="deterministic")
        write_atomic(self._path(step), data)
        return hashlib.sha256(data).hexdigest()

    def read(self, step: Step, made_from: str | None, kind: type[T]) -> T | None:
        """What a step came to; None if it was not done, or on other notes than `made_from`.

        made_from: a seal, or None if it does not matter.
        """
        try:
            document = msgspec.json.decode(self._path(step).read_bytes())
            if made_from is not None and document["made_from"] != made_from:
                return None
            return msgspec.convert(document["what"], kind, dec_hook=_from_text)
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, KeyError, TypeError) as problem:
            # Damaged, or of another version of this program: the step is done again.
            log.warning("note cannot be read step=%s why=%s", step, type(problem).__name__)
            return None

    def seal(self, step: Step) -> str:
        """What a later step names this one by; empty if it was not done."""
        try:
            return hashlib.sha256(self._path(step).read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def forget(self, *steps: Step) -> None:
        """Take back what later steps came to, for an earlier one is done again."""
        for step in steps:
            self._path(step).unlink(missing_ok=True)

    def _path(self, step: Step) -> Path:
        return self.folder / f"{step}.json"


def _from_text(kind: type, value: Any) -> Any:
    assert kind is Path, f"no {kind} is kept as text"
    return Path(value)
