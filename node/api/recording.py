"""What becomes of an exchange: with consent it goes into a session, without it nothing is kept.

Nothing here waits, reads a disk or imports capture before the owner has consented: `finished` only
puts. Which conversation an exchange belongs to is found out on the capture side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .config import ApiConfig
from .counts import Counts
from .ports import Usage

if TYPE_CHECKING:
    from node.app import App

    from .choosing import Choice


@dataclass(frozen=True, slots=True)
class Exchange:
    """One ask and, with `Recorder.finished`, its answer. Never written or logged as it is."""

    id: str
    model: str
    provider: str  # groove for an own answer, else the shape in which it was passed on
    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    choice: Choice | None  # None: an upstream answers
    client: str
    conversation: str | None = field(repr=False)
    no_capture: bool


class Recorder:
    """One for a running node."""

    def __init__(self, app: App, config: ApiConfig, counts: Counts) -> None:
        self._app = app
        self._config = config
        self._counts = counts

    async def run(self) -> None:
        """Close what is idle, until cancelled."""

    def begin(self, exchange: Exchange) -> None:
        """An answer is being made."""

    def finished(self, exchange: Exchange, text: str, outcome: str, usage: Usage | None) -> None:
        """An answer is over: ok, aborted or error."""

    def feedback(self, exchange_id: str, signal: str, text: str | None = None) -> bool:
        """What the owner made of an answer; False if the exchange is not known."""
        return False
