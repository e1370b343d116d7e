"""What the pages need of the endpoint that serves them, so that they can be tested without one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from node.api.config import ApiConfig
from node.api.counts import Counts


async def _nothing() -> Mapping[str, Any]:
    return {}


def _no_token(request: Request) -> str:
    return ""


def _any_token(request: Request, given: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Hub:
    """The running endpoint, as far as pages show it or have to ask it.

    url: where it is reached, such as http://127.0.0.1:4022. look: how the back end does. secret:
    the token that clients send. form_token: the word that a form of this browser's session carries;
    form_fits: whether the word that came with a form is the one.
    """

    config: ApiConfig = field(default_factory=ApiConfig)
    counts: Counts = field(default_factory=Counts)
    url: Callable[[], str] = lambda: ""
    look: Callable[[], Awaitable[Mapping[str, Any]]] = _nothing
    secret: Callable[[], str] = lambda: ""
    form_token: Callable[[Request], str] = _no_token
    form_fits: Callable[[Request, str], bool] = _any_token
