"""vLLM's HTTP side as far as this node uses it: adapters loaded at run time, and streams.

Written from vLLM's documentation and source (`vllm/entrypoints/openai/models/serving.py`, version
0.11 and later), statuses and wordings alike. What an answer says is which model was asked.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BASE = "SmolLM2"


@dataclass
class FakeVllm:
    """One server. `speak` makes an answer's words from the model's name and the request."""

    runtime: bool = True  # VLLM_ALLOW_RUNTIME_LORA_UPDATING
    rank_max: int = 16
    speak: Callable[[str | None, dict[str, Any]], list[str]] | None = None
    loaded: dict[str, str] = field(default_factory=dict)  # name → folder
    log: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    ended_early: int = 0
    pause_s: float = 0.0

    def app(self) -> Starlette:
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
            Route("/v1/completions", self._answer, methods=["POST"]),
        ]
        if self.runtime:
            routes += [
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            ]
        return Starlette(routes=routes, exception_handlers={404: _not_found})

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _models(self, request: Request) -> Response:
        rows: list[dict[str, Any]] = [
            {"id": BASE, "object": "model", "root": "/models/base", "parent": None}
        ]
        rows += [
            {"id": name, "object": "model", "root": path, "parent": BASE}
            for name, path in self.loaded.items()
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def _load(self, request: Request) -> Response:
        said = await request.json()
        name, path = said.get("lora_name"), said.get("lora_path")
        if not name or not path:
            message = "Both 'lora_name' and 'lora_path' must be provided."
            return _error(400, "InvalidUserInput", message)
        if name in self.loaded:
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
            return _error(400, "InvalidUserInput", message)
        folder = Path(path)
        if not (folder / "adapter_config.json").is_file():
            message = f"Loading lora {name} failed: No adapter found for {path}"
            return _error(404, "NotFoundError", message)
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.rank_max:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.rank_max}."
            return _error(500, "InternalServerError", message)
        self.loaded[name] = path
        self.log.append(f"load {name}")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json()).get("lora_name")
        if name not in self.loaded:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        self.log.append(f"unload {name}")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _answer(self, request: Request) -> Response:
        said = await request.json()
        self.asked.append(said)
        model = said.get("model")
        if model != BASE and model not in self.loaded:
            return _error(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        words = self._words(self.loaded.get(model), said)
        return StreamingResponse(self._stream(said, words), media_type="text/event-stream")

    def _words(self, folder: str | None, said: dict[str, Any]) -> list[str]:
        if self.speak is not None:
            return self.speak(folder, said)
        return ["I ", "am ", said["model"]]

    async def _stream(self, said: dict[str, Any], words: list[str]) -> AsyncIterator[bytes]:
        chat = "messages" in said
        done = False
        try:
            for word in words[: said["max_tokens"]]:
                yield _chunk({"delta": {"content": word}} if chat else {"text": word}, None)
                await trio.sleep(self.pause_s)
            end: dict[str, Any] = {"stop_reason": said["stop"][0]} if said.get("stop") else {}
            last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            yield _chunk(last | end, "stop")
            if said.get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 9}
                yield _data({"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            self.ended_early += not done


def _chunk(choice: dict[str, Any], finish: str | None) -> bytes:
    return _data({"id": "x", "choices": [{"index": 0, "finish_reason": finish, **choice}]})


def _data(said: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def _error(status: int, kind: str, message: str, param: str | None = None) -> Response:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


async def _not_found(request: Request, problem: Exception) -> Response:
    return JSONResponse({"detail": "Not Found"}, status_code=404)
