"""[api] in groove.toml: where the endpoint listens, what answers, what it may take."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

LISTEN = "127.0.0.1:4022"
PLACE = r"^((127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}|unix(:.+)?)?$"
PLACE_IN_WORDS = "127.0.0.1:PORT, localhost:PORT, [::1]:PORT, unix, unix:PATH or an empty text"
URL = r"^(https?://[^\s/]\S*)?$"
URL_IN_WORDS = "a URL such as http://127.0.0.1:11434/v1, or an empty text"
Url = Annotated[str, Meta(pattern=URL)]
Place = Annotated[str, Meta(pattern=PLACE)]


class ApiConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    listen: Place = LISTEN  # loopback alone; "unix:PATH" (or "unix" for api.sock in the home) is a
    # socket of the owner's; empty: no endpoint and no dashboard
    backend: Literal["builtin", "llamacpp", "vllm"] = "builtin"  # what answers for groove/...
    backend_url: Url = ""  # of llama.cpp's or vLLM's server, such as http://127.0.0.1:8080
    backend_key_env: str = ""  # variable of the environment with its key, if it wants one
    upstream: Url = ""  # base URL, such as http://127.0.0.1:11434/v1: models that are not
    # groove/... are passed to it as they are
    upstream_key_env: str = "OPENAI_API_KEY"  # keys stand in no file
    anthropic: Url = ""  # the same for /v1/messages, such as https://api.anthropic.com
    anthropic_key_env: str = "ANTHROPIC_API_KEY"  # likewise
    capture: bool = True  # exchanges become sessions, where consent allows the source `endpoint`
    tokens_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 512  # of an answer, if not asked
    adapters_resident: Annotated[int, Meta(ge=1, le=1000)] = 20  # kept in memory, 10 MB each
    unload_after_s: Annotated[float, Meta(ge=1, le=86_400)] = 900.0  # the built-in back end gives
    # its memory (0.8 GB) back when nobody asked for so long
    route_within_ms: Annotated[float, Meta(ge=1, le=10_000)] = 250.0  # then the chassis answers
    upstream_within_s: Annotated[float, Meta(gt=0, le=3600)] = 120.0  # for the first byte
    connections_max: Annotated[int, Meta(ge=1, le=10_000)] = 256  # clients at once
    body_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 30)] = 8 << 20  # of a request
