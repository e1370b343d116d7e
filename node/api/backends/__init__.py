"""Back ends of the endpoint: the built-in one, and the servers of others.

builtin         the chassis and its leaves in a child of this node
llamacpp, vllm  servers that the owner runs; openai_server what they have in common
laid_out        adapters as files that such a server reads
probe           whether a back end really answers with the adapter that it was asked for
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from node.api.config import ApiConfig
    from node.api.ports import Backend
    from node.app import App


def open_backend(app: App, config: ApiConfig) -> Backend:
    """The one that [api] backend names; nothing of the others is imported."""
    match config.backend:
        case "builtin":
            from .builtin import BuiltIn

            return BuiltIn(app, config)
        case "llamacpp":
            from .llamacpp import LlamaCpp

            return LlamaCpp(app, config)
        case "vllm":
            from .vllm import Vllm

            return Vllm(app, config)
        case _:
            assert_never(config.backend)
