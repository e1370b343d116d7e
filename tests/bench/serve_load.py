"""What the endpoint adds to the first byte, and how many requests it takes: part of `serve.py`.

Three processes: the load is made here, with raw sockets; the node is one child; the upstream, the
same that is asked directly for comparison, another. Each request through the node has one asked
directly right after it or before it, on a connection that is kept; what is reported is the
difference of their times to the first byte of the body, while 50 other streams are open in both.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import trio  # noqa: E402

from leaves import model  # noqa: E402
from leaves.bundle import Label, Privacy, encode_label, pack  # noqa: E402
from leaves.model import GrownFrom, Instant, Kind, Leaf, Stage, leaf_id, unit  # noqa: E402
from node.app import App  # noqa: E402
from node.consent import Scope  # noqa: E402

STREAMS = 50
FIRST_MS = 20  # of the scripted answers that are measured
AUTO_PER_S = 10.0
SESSIONS = 300  # of each leaf, for centroid, gate and neighbours


@dataclass
class Child:
    """A process of `serve_node.py`."""

    process: subprocess.Popen[str]
    url: str
    pid: int

    def ask(self) -> dict[str, Any]:
        """How it does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def child(*args: str) -> Iterator[Child]:
    command = [sys.executable, str(Path(__file__).with_name("serve_node.py")), *args]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        yield Child(process, said["url"], said["pid"])
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Have a child stop as a node does that is told to, once."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def home_of(files: Sequence[Path], home: Path) -> tuple[App, list[str]]:
    """A home with a leaf for each file of prompts, and one, `refused`, that no back end puts on.

    The bundles have the right labels and no adapters: nothing here loads them. Returns prompts
    that the leaves were not made of, too.
    """
    os.environ["GROOVE_HOME"] = str(home)
    app = App.open(create=True)
    others: list[str] = []
    members = {}
    for birth, path in enumerate(files):
        name = path.name.split(".")[0]
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line)["prompt"] for line, _ in zip(file, range(4000), strict=False)]
        vectors = app.encoder().encode(rows[:SESSIONS])
        others += rows[SESSIONS : SESSIONS + 400]
        own = leaf_id(app.origin, birth)
        ids = [f"{name}-{number:06d}" for number in range(SESSIONS)]
        app.embeddings.append(ids, [20_000] * SESSIONS, vectors)
        members |= dict.fromkeys(ids, own)
        _put(app, birth, name, unit(vectors.mean(axis=0, keepdims=True))[0])
    _put(app, len(files), "refused", unit(np.ones((1, app.dimensions), np.float32))[0])
    app.forests.assign(members)
    app.deploy_anew(lambda told: None)
    np.random.default_rng(0).shuffle(others)
    return app, others


def _put(app: App, birth: int, name: str, centroid: model.Vector) -> None:
    tag = app.chassis.tag8.hex()
    own = leaf_id(app.origin, birth)
    label = Label(
        leaf=own,
        name=name,
        chassis=tag,
        adapter="a" * 64,
        rank=8,
        alpha=16,
        targets=("q_proj",),
        method="sft",
        dtype="float32",
        tokens=1000,
        evaluation=None,
        control_root="",
        control_bytes=0,
        privacy=Privacy(contributors=1, sessions=9, canary_exposure=None, scrub_rules="1"),
        lineage=(),
        licence="Apache-2.0",
        terms="bench",
    )
    bundle = app.bundles.put(pack(encode_label(label), name.encode()))
    leaf = Leaf(
        id=own,
        name=name,
        stage=Stage.SPROUT,
        stage_since=Instant(1),
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=Instant(1),
        sessions=SESSIONS,
        growth_per_day=5.0,
        centroid=centroid,
        trainings=1,
        wins=1,
        adapter=model.Adapter(bundle, "c" * 64, "d" * 64, tag, 8),
    )
    app.forests.change(leaf, "born", "by a bench", Instant(1))


# ---- a client of raw sockets -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    port: int
    token: str = ""

    @classmethod
    def of(cls, url: str, token: str = "") -> Target:
        return cls(int(url.rpartition(":")[2]), token)


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    headers: Mapping[str, str]
    body: bytes
    first_s: float  # from the last byte of the request to the first of the body


class Client:
    """One connection. Not for two tasks at once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stream: trio.SocketStream | None = None
        self._data = b""

    async def post(self, asked: Mapping[str, Any] | bytes, path: str = "/v1/chat/completions",
                   *, abort_after: int | None = None) -> Got:  # fmt: skip
        """Ask and read the answer. abort_after: bytes of the body after which it is dropped."""
        body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._target.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"authorization: Bearer {self._target.token}\r\n\r\n"
        )
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._target.port)
            self._data = b""
        await self._stream.send_all(head.encode() + body)
        begun_s = perf_counter()
        while b"\r\n\r\n" not in self._data:
            await self._more()
        raw, _, self._data = self._data.partition(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if not self._data and headers.get("content-length") != "0":
            await self._more()
        first_s = perf_counter() - begun_s
        status = int(lines[0].split()[1])
        if abort_after is not None:
            while len(self._data) < abort_after:
                await self._more()
            await self.close()
            return Got(status, headers, b"", first_s)
        return Got(status, headers, await self._body(headers), first_s)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(self._data) < length:
                await self._more()
            body, self._data = self._data[:length], self._data[length:]
        else:
            while not self._data.endswith(b"0\r\n\r\n"):
                await self._more()
            body, self._data = self._data, b""
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return body

    async def _more(self) -> None:
        assert self._stream is not None
        part = await self._stream.receive_some(65536)
        if not part:
            await self.close()
            raise ConnectionError("closed by the server")
        self._data += part

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
        self._stream, self._data = None, b""


def asked(model_name: str, prompt: str, script: str, *, stream: bool = True) -> dict[str, Any]:
    text = f"{prompt} script:{script}"
    return {
        "model": model_name,
        "messages": [{"role": "user", "content": text}],
        "stream": stream,
    }


# ---- what is measured ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stand:
    """Where things are, for a run of the benches."""

    node: Target
    upstream: Target
    prompts: Sequence[str]


@contextmanager
def stand(
    files: Sequence[Path], folder: Path, *, capture: bool = False
) -> Iterator[tuple[Stand, Child, App]]:
    """A home with leaves, the upstream, and the node over both. capture: with consent."""
    app, prompts = home_of(files, folder / "home")
    if capture:
        app.consent.grant(app.user_id, [Scope("capture")], sources=["endpoint"])
    with child("upstream") as other, child("node", str(app.home), other.url) as node:
        token = (app.home / "api.token").read_text().strip()
        yield Stand(Target.of(node.url, token), Target.of(other.url), prompts), node, app


async def latency(where: Stand, probes: int, auto: int) -> dict[str, Any]:
    """Added milliseconds to the first byte, with STREAMS streams open in node and upstream each."""
    figures: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        for number in range(STREAMS):
            name = "groove/chassis" if number % 2 else "other"
            nursery.start_soon(_held_open, where.node, name)
            nursery.start_soon(_held_open, where.upstream, "other")
        await trio.sleep(2)
        for label, name in (("passed_on", "other"), ("named", "groove/chassis")):
            added = await _pairs(where, name, probes)
            figures |= _spread(f"added_{label}_ms", added)
        worst = max(("passed_on", "named"), key=lambda x: figures[f"added_{x}_ms_p99"])
        figures["added_ms_p50"] = max(
            figures["added_passed_on_ms_p50"], figures["added_named_ms_p50"]
        )
        figures["added_ms_p99"] = figures[f"added_{worst}_ms_p99"]
        added = await _autos(where, auto, figures)
        figures |= _spread("auto_ms", added)
        nursery.cancel_scope.cancel()
    return figures


async def _held_open(target: Target, name: str) -> None:
    client = Client(target)
    await client.post(asked(name, "hold", "10/3000/200"))


async def _pairs(where: Stand, name: str, probes: int) -> list[float]:
    through, direct = Client(where.node), Client(where.upstream)
    added: list[float] = []
    for number in range(probes + 20):
        request = asked(name, f"probe {number}", f"{FIRST_MS}/3/1")
        order = (through, direct) if number % 2 else (direct, through)
        first = {id(each): (await each.post(request)).first_s for each in order}
        if number >= 20:  # both are warm
            added.append((first[id(through)] - first[id(direct)]) * 1000)
        await trio.sleep(0.005)
    return added


async def _autos(where: Stand, count: int, figures: dict[str, Any]) -> list[float]:
    """New conversations at AUTO_PER_S, each with a prompt of its own that is encoded."""
    added: list[float] = []
    fallbacks: dict[str, int] = {}
    leaves: dict[str, int] = {}
    pool = [(Client(where.node), Client(where.upstream)) for _ in range(8)]

    async def one(number: int, pair: tuple[Client, Client]) -> None:
        request = asked("groove/auto", where.prompts[number], f"{FIRST_MS}/3/1")
        got = await pair[0].post(request)
        direct = await pair[1].post({**request, "model": "other"})
        added.append((got.first_s - direct.first_s) * 1000)
        word = got.headers.get("x-groove-fallback", "")
        fallbacks[word] = fallbacks.get(word, 0) + 1
        leaf = got.headers.get("x-groove-leaf", "")
        leaves[leaf] = leaves.get(leaf, 0) + 1

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number, pool[number % len(pool)])
            await trio.sleep(1 / AUTO_PER_S)
    figures["auto_fallbacks"] = dict(sorted(fallbacks.items()))
    figures["auto_leaves"] = dict(sorted(leaves.items()))
    return added


async def throughput(where: Stand, requests: int, at_once: int = 50) -> dict[str, Any]:
    """Answers per second that are not streamed, of a back end that needs no time."""
    left = iter(range(requests))
    statuses: dict[int, int] = {}

    async def work() -> None:
        client = Client(where.node)
        for _ in left:
            got = await client.post(asked("groove/chassis", "now", "0/3/0", stream=False))
            statuses[got.status] = statuses.get(got.status, 0) + 1

    begun_s = perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work)
    assert statuses == {200: requests}, statuses
    return {"rps_nonblocking": round(requests / (perf_counter() - begun_s), 1)}


async def overload(where: Stand, requests: int = 300) -> dict[str, Any]:
    """More new prompts at once than can be encoded: all are answered, and it is said how."""
    words: dict[str, int] = {}

    async def one(number: int) -> None:
        client = Client(where.node)
        prompt = f"{where.prompts[-1 - number]} again"
        got = await client.post(asked("groove/auto", prompt, "0/3/0", stream=False))
        assert got.status == 200, got.status
        word = got.headers.get("x-groove-fallback", "")
        words[word] = words.get(word, 0) + 1
        await client.close()

    async with trio.open_nursery() as nursery:
        for number in range(min(requests, 200)):
            nursery.start_soon(one, number)
    return {"overload": dict(sorted(words.items()))}


def _spread(name: str, added: Sequence[float]) -> dict[str, Any]:
    return {
        f"{name}_p50": round(float(np.percentile(added, 50)), 2),
        f"{name}_p99": round(float(np.percentile(added, 99)), 2),
        f"{name}_n": len(added),
    }
