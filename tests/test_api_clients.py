"""The clients that people have, as they come: over a real socket, behind the guard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support_api import Bench, ScriptedBackend, Served, served

from node.api import token as token_file
from node.api.guard import Guard
from node.api.ports import BackendError, Piece
from node.api.token import Token

ASK: Any = [{"role": "user", "content": "hi"}]
BREAKS = ScriptedBackend((Piece("Hel"),), breaks=BackendError("backend_down", "it went away", 503))


@contextmanager
def endpoint(home: Path, bench: Bench | None = None) -> Iterator[tuple[Bench, Served, str]]:
    """The endpoint as a client meets it, and the token that it needs."""
    bench = bench or Bench()
    key = token_file.read_or_make(home)
    token = Token(home, trio.to_thread.run_sync, lambda: 0.0)
    guard = Guard(bench.app, token=token, config=bench.config, counts=bench.counts)
    with served(guard, bench.relay.run) as server:
        yield bench, server, key


def _run(argv: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        argv, env=clean | env, capture_output=True, text=True, timeout=120, check=False
    )


def test_openais_package_chats_streams_and_lists(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    with (
        endpoint(tmp_path) as (bench, server, key),
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client,
    ):
        chats = client.chat.completions
        whole = chats.with_raw_response.create(model="groove/auto", messages=ASK)
        stream = chats.create(
            model="groove/async-python",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True},
            stop=["END"],
            seed=1,
            max_completion_tokens=5,
        )
        chunks = list(stream)
        raw = client.completions.create(model="groove/chassis", prompt="def", max_tokens=3)
        raws = client.completions.create(model="groove/chassis", prompt="def", stream=True)
        joined = "".join(chunk.choices[0].text for chunk in raws)
        names = [model.id for model in client.models.list()]
        one = client.models.retrieve("groove/async-python")
    answer = whole.parse()
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 9
    assert answer.groove["leaf"] == whole.headers["x-groove-leaf"] == "async-python"
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert texts == ["", "Hello", " there", None]
    assert chunks[-1].usage.total_tokens == 9
    assert bench.backend.asks[1].stop == ("END",)
    assert raw.choices[0].text == joined == "Hello there"
    assert names == ["groove/auto", "groove/chassis", "groove/async-python"]
    assert one.id == "groove/async-python"
    assert bench.counts.failures == {}


def test_openais_package_knows_our_errors_as_its_own(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    down = ScriptedBackend(raises={"": BackendError("backend_down", "it does not run", 503)})
    busy = ScriptedBackend(raises={"": BackendError("busy", "wait", 429)})

    def problem(server: Served, key: str, **changes: Any) -> Any:
        asked = {"model": "groove/chassis", "messages": ASK} | changes
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
            pytest.raises(openai.APIError) as caught,
        ):
            for _ in client.chat.completions.create(**asked):
                pass
        return caught.value

    with endpoint(tmp_path) as (_, server, key):
        unknown = problem(server, key, model="groove/none")
        malformed = problem(server, key, temperature=9)
        stranger = problem(server, "wrong")
    with endpoint(tmp_path, Bench(down)) as (_, server, key):
        off = problem(server, key)
    with endpoint(tmp_path, Bench(busy)) as (_, server, key):
        full = problem(server, key)
    with endpoint(tmp_path, Bench(BREAKS)) as (_, server, key):
        broken = problem(server, key, stream=True)
    assert type(unknown) is openai.NotFoundError
    assert (unknown.code, unknown.param) == ("model_not_found", "model")
    assert type(malformed) is openai.BadRequestError
    assert malformed.param == "temperature"
    assert type(stranger) is openai.AuthenticationError
    assert type(off) is openai.InternalServerError
    assert off.code == "backend_down"
    assert type(full) is openai.RateLimitError
    assert type(broken) is openai.APIError
    assert broken.message == "it went away"


def test_a_client_that_leaves_a_stream_frees_the_back_end(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")

    async def gate(n: int) -> None:
        if n == 1:
            await trio.sleep_forever()

    bench = Bench(ScriptedBackend(gate=gate))
    with endpoint(tmp_path, bench) as (_, server, key):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client:
            stream = client.chat.completions.create(model="groove/auto", messages=ASK, stream=True)
            assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Hello"]
            stream.close()

        async def freed() -> None:
            with trio.fail_after(10):
                while not bench.recorder.ends:
                    await trio.sleep(0.01)

        trio.run(freed)
    assert bench.backend.open == 0
    assert bench.recorder.ends == [("Hello", "aborted", None)]
    assert (bench.counts.aborted, bench.counts.streams) == (1, 0)


def test_anthropics_package_chats_streams_and_knows_our_errors(tmp_path: Path) -> None:
    anthropic = pytest.importorskip("anthropic")
    asked: Any = {"model": "groove/auto", "max_tokens": 9, "messages": ASK}
    with endpoint(tmp_path) as (bench, server, key):
        with anthropic.Anthropic(base_url=server.url, api_key=key) as client:
            whole = client.messages.create(**asked, system="Be brief.", stop_sequences=["END"])
            with client.messages.stream(**asked) as stream:
                texts = list(stream.text_stream)
                final = stream.get_final_message()
            names = [model.id for model in client.models.list()]
        with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client:
            with pytest.raises(anthropic.NotFoundError):
                client.messages.create(**asked | {"model": "claude-none"})
            with pytest.raises(anthropic.BadRequestError, match="temperature"):
                client.messages.create(**asked, extra_body={"temperature": 3})
        with (
            anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.create(**asked)
    assert whole.content[0].text == "Hello there"
    assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 2)
    assert texts == ["Hello", " there"]
    assert (final.stop_reason, final.usage.input_tokens) == ("end_turn", 7)
    assert bench.backend.asks[0].stop == ("END",)
    assert names == ["groove/auto", "groove/chassis", "groove/async-python"]
    with (
        endpoint(tmp_path, Bench(BREAKS)) as (_, server, key),
        anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match="it went away"),
        client.messages.stream(**asked) as stream,
    ):
        list(stream.text_stream)


def test_llm_answers_with_a_leaf(tmp_path: Path) -> None:
    pytest.importorskip("llm")
    user = tmp_path / "llm"
    user.mkdir()
    with endpoint(tmp_path) as (bench, server, key):
        (user / "extra-openai-models.yaml").write_text(
            "- model_id: groove\n"
            "  model_name: groove/auto\n"
            f"  api_base: {server.url}/v1\n"
            "  api_key_name: groove\n"
        )
        (user / "keys.json").write_text(json.dumps({"groove": key}))
        llm = [sys.executable, "-m", "llm", "-m", "groove"]
        env = {"LLM_USER_PATH": str(user), "LLM_LOAD_PLUGINS": ""}
        done = _run([*llm, "hi", "-o", "temperature", "0", "-s", "Be brief."], **env)
    assert (done.stdout, done.returncode) == ("Hello there\n", 0), done.stderr
    (ask,) = bench.backend.asks
    assert ask.temperature == 0
    assert ask.messages[0] == {"role": "system", "content": "Be brief."}


def test_curl_streams_and_shows_who_answered(tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "groove/auto", "stream": True, "messages": ASK})
    with endpoint(tmp_path) as (_, server, key):
        bearer = f"Authorization: Bearer {key}"
        typed = "Content-Type: application/json"
        command = [curl, "-siN", "-H", bearer, "-H", typed, "-d", body]
        done = _run([*command, f"{server.url}/v1/chat/completions"])
        refused = _run([curl, "-s", "-H", typed, "-d", body, f"{server.url}/v1/chat/completions"])
    assert "x-groove-leaf: async-python" in done.stdout
    assert '"content":"Hello"' in done.stdout
    assert done.stdout.rstrip().endswith("data: [DONE]")
    assert json.loads(refused.stdout)["error"]["type"] == "authentication_error"


_LITELLM = """
import json, litellm
said = {}
asked = dict(
    model="openai/groove/auto", messages=[{"role": "user", "content": "hi"}],
    api_base=URL + "/v1", api_key=KEY, num_retries=0, max_retries=0,
)
whole = litellm.completion(**asked, temperature=0, max_tokens=5, stop=["END"])
said["whole"] = whole.choices[0].message.content
said["usage"] = whole.usage.total_tokens
said["streamed"] = "".join(
    chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)
)
try:
    litellm.completion(**asked | {"model": "openai/groove/none"})
except litellm.NotFoundError as problem:
    said["unknown"] = type(problem).__name__
claude = dict(model="anthropic/groove/auto", api_base=URL)
said["anthropic"] = litellm.completion(**asked | claude).choices[0].message.content
print(json.dumps(said))
"""


def test_litellm_chats_streams_and_knows_our_errors(tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("litellm") is None:
        pytest.skip("litellm is not installed")
    with endpoint(tmp_path) as (_, server, key):
        done = _run(
            [sys.executable, "-c", f"URL, KEY = {server.url!r}, {key!r}\n{_LITELLM}"],
            LITELLM_LOCAL_MODEL_COST_MAP="True",  # else it is fetched at import
            LITELLM_LOG="ERROR",
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "whole": "Hello there",
        "usage": 9,
        "streamed": "Hello there",
        "unknown": "NotFoundError",
        "anthropic": "Hello there",
    }
