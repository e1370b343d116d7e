"""One thing that `doctor` has looked at: how it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """advice: what to do, empty if nothing is to be done."""

    check: str
    verdict: Literal["ok", "note", "bad"]
    text: str
    advice: str = ""

    def row(self) -> tuple[str, str, str]:
        return self.verdict, self.check, self.text + (f" -> {self.advice}" if self.advice else "")
