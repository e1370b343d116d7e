"""The processes that `serve.py` measures: the node's endpoint, and a server that plays an upstream.

    python serve_node.py node HOME UPSTREAM      the endpoint as the node wires it, over a scripted
                                                 back end in its place of the built-in one
    python serve_node.py upstream                an OpenAI-shaped server of raw sockets

Each prints one line of JSON with its address, and for each line on stdin one of how it does. What
is asked says how the answer comes: see `Script`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import psutil  # noqa: E402
import trio  # noqa: E402

from node.api import assembling, server  # noqa: E402
from node.api.config import ApiConfig  # noqa: E402
from node.api.counts import Counts  # noqa: E402
from node.api.ports import (  # noqa: E402
    Adapter,
    AdapterError,
    Ask,
    BackendError,
    Capabilities,
    Piece,
    Usage,
)
from node.app import App  # noqa: E402

WORD = "word "


@dataclass(frozen=True, slots=True)
class Script:
    """How an answer comes, by the last word of what is asked: MS first, CHUNKS chunks, MS between.

    `script:20/3/5` waits 20 ms, then says three chunks 5 ms apart. `script:error` fails before the
    first, `script:break` after it.
    """

    first_s: float
    chunks: int
    between_s: float
    fails: str = ""

    @classmethod
    def of(cls, text: str) -> Script:
        _, found, rest = text.rpartition("script:")
        if not found:
            return cls(0.0, 3, 0.0)
        if rest in ("error", "break"):
            return cls(0.0, 3, 0.0, rest)
        first, chunks, between = rest.split("/")
        return cls(float(first) / 1000, int(chunks), float(between) / 1000)


class Scripted:
    """A back end that says words when its script says so, and refuses leaves named `refused`."""

    name = "builtin"
    capabilities = Capabilities(
        adapters=True,
        adapters_at_run_time=True,
        raw_prompts=True,
        tools=False,
        seed=True,
        at_once=1000,
    )

    async def run(self) -> None:
        await trio.sleep_forever()

    @asynccontextmanager
    async def answer(self, ask: Ask) -> AsyncIterator[AsyncIterator[Piece]]:
        if ask.adapter is not None and ask.adapter.name == "refused":
            raise AdapterError("damaged", "the leaf's adapter cannot be put on")
        text = ask.prompt or str(ask.messages[-1].get("content"))
        yield self._say(Script.of(text))

    async def _say(self, script: Script) -> AsyncIterator[Piece]:
        if script.fails == "error":
            raise BackendError("down", "the back end does not answer")
        await trio.sleep(script.first_s)
        for number in range(script.chunks):
            if number:
                await trio.sleep(script.between_s)
                if script.fails == "break":
                    raise BackendError("broke", "the back end broke off")
            yield Piece(WORD)
        yield Piece("", "stop", Usage(5, script.chunks))

    async def warm(self, adapter: Adapter) -> None:
        await trio.lowlevel.checkpoint()

    async def look(self) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"ready": True, "why": ""}


async def node(home: Path, upstream: str) -> None:
    """Serve a home on a free port until stdin ends."""
    os.environ["GROOVE_HOME"] = str(home)
    app = App.open()
    config = ApiConfig(listen="127.0.0.1:0", upstream=f"{upstream}/v1", upstream_key_env="NONE")
    counts = Counts()
    urls: list[str] = []
    assembling.open_backend = lambda app, config: Scripted()  # type: ignore[assignment]
    parts = assembling.assemble(app, config, counts, url=lambda: urls[0] if urls else "")

    def ready(url: str) -> None:
        urls.append(url)
        _say({"url": url, "pid": os.getpid()})

    async with trio.open_nursery() as nursery:
        for task in parts.tasks:
            nursery.start_soon(task)
        nursery.start_soon(
            partial(server.serve, parts.asgi, config, home, on_ready=ready, counts=counts)
        )
        await _answer_questions(lambda: counts.facts())
        nursery.cancel_scope.cancel()


async def upstream() -> None:
    """Say what scripts say, as an OpenAI-shaped stream; one request after the other."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, _upstream_client, 0, host="127.0.0.1", backlog=512)
        )
        port = listeners[0].socket.getsockname()[1]
        _say({"url": f"http://127.0.0.1:{port}", "pid": os.getpid()})
        await _answer_questions(dict)
        nursery.cancel_scope.cancel()


async def _upstream_client(stream: trio.SocketStream) -> None:
    data = b""
    try:
        while True:
            while b"\r\n\r\n" not in data:
                part = await stream.receive_some(65536)
                if not part:
                    return
                data += part
            head, _, data = data.partition(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            while len(data) < length:
                data += await stream.receive_some(65536)
            body, data = data[:length], data[length:]
            if not await _upstream_answer(stream, json.loads(body)):
                return
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def _upstream_answer(stream: trio.SocketStream, asked: dict[str, Any]) -> bool:
    """One answer; False if the connection is broken off by the script."""
    script = Script.of(asked["messages"][-1]["content"])
    if script.fails == "error":
        body = b'{"error":{"message":"overloaded","type":"server_error"}}'
        head = b"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        await stream.send_all(head % len(body) + body)
        return True
    await trio.sleep(script.first_s)
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for number in range(script.chunks):
        if number:
            await trio.sleep(script.between_s)
            if script.fails == "break":
                return False
        event = {"choices": [{"index": 0, "delta": {"content": WORD}, "finish_reason": None}]}
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        await stream.send_all(head + b"%x\r\n%s\r\n" % (len(data), data))
        head = b""
    await stream.send_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    return True


async def _answer_questions(more: Any) -> None:
    """For each line on stdin, one line of how this process does; until stdin ends."""
    process = psutil.Process()
    stdin = trio.wrap_file(sys.stdin)
    async for _ in stdin:
        gc.collect()
        _say(
            {
                "fds": process.num_fds(),
                "tasks": trio.lowlevel.current_statistics().tasks_living,
                "rss_mb": round(process.memory_info().rss / 1e6, 1),
                "cpu_s": sum(process.cpu_times()[:2]),
                **more(),
            }
        )


def _say(facts: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["node", folder, url]:
            trio.run(node, Path(folder), url)
        case ["upstream"]:
            trio.run(upstream)
        case _:
            sys.exit(__doc__)
