"""groove.toml: each package declares its own section, this module joins them.

A typo must be an error, so unknown keys are refused; a missing file means the defaults.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from gossip.config import GossipConfig
from gossip.exchange_events import ExchangeConfig
from gossip.transport_config import TransportConfig
from leaves.lifecycle import Rules

from .api.config import PLACE_IN_WORDS, URL_IN_WORDS, ApiConfig
from .errors import OwnerError
from .windows import PATTERN, Window

FILE = "groove.toml"

# A bound is where a value makes no sense any more, not where it is wise.
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
Hours = Annotated[float, Meta(gt=0, le=8784)]
Threads = Annotated[int, Meta(ge=0, le=4096)]
Steps = Annotated[int, Meta(ge=1, le=100_000)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Nats = Annotated[float, Meta(ge=0, le=10)]
Pairs = Annotated[int, Meta(ge=0, le=1000)]
Minutes = Annotated[float, Meta(ge=0, le=1440)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(gt=0, le=1)]
Cosine = Annotated[float, Meta(ge=-1, le=1)]


class CaptureConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tool_output: bool = False  # of imported transcripts: it is mostly files, and seldom the owner's
    known_values: bool = True  # secrets of the environment and of .env files are found anywhere
    keyring: tuple[str, ...] = ()  # "service/user", looked for likewise; one opens what is unlocked
    watch: bool = True  # a running node takes new lines of allowed sources in as they are written
    idle_close_s: Seconds = 1800.0  # a transcript not written to for so long is a finished session


class EncoderConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str = ""  # folder of a SentenceTransformer; empty means the packaged all-MiniLM-L6-v2
    threads: Annotated[int, Meta(ge=1)] = 1  # more gain on idle cores alone; on busy ones they wait


class TrainingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    steps: Steps = 48  # of 8 sessions each; 16 win only where a domain stands well apart
    learning_rate: Rate = 2e-3  # at its peak; half of it once a leaf has an adapter
    threads: Threads = 0  # of the training child; 0 means all cores
    style_margin: Nats = 0.08  # nats over the style control: 1.6 x the largest seed noise seen
    control_pairs: Pairs = 4  # leaves whose first training measures a second
    # style control, to learn how much two of them differ by themselves; 0 trusts style_margin
    restricted_outputs: bool = False  # also answers whose provider forbids training on them
    chassis: str = ""  # path of a local Hugging Face causal LM; empty means the packaged SmolLM2


class RoundsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    auto: bool = True  # a running node starts rounds by itself, when [night] lets it
    every_h: Hours = 20.0  # a round is due so long after the last one began: nights are not all
    # at the same minute, and one that is a little early must not find that none is due
    sessions: Count = 200  # or once so many are new: enough for a first leaf


class NightConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    window: Annotated[str, Meta(pattern=PATTERN)] = "01:00-05:00"  # local time, when to work
    # unattended; "00:00-24:00" is any hour that the rest allows, "always" heeds `pause` alone
    idle_min: Minutes = 15.0  # min that nobody has touched the machine, before a night begins
    again_min: Minutes = 3.0  # min of quiet before work goes on that gave way to somebody
    on_battery: bool = False  # work without mains power: a night's work is a battery's charge
    battery_min: Percent = 60.0  # % of charge; with on_battery, less is left for the morning
    load_max: Share = 0.3  # of all cores; if other work takes as much, somebody needs the machine
    metered: bool = False  # work over a connection that is paid for by volume
    disk_gb_min: Annotated[float, Meta(ge=0, le=100_000)] = 2.0  # GB free: checkpoints and bundles
    temperature_c_max: Annotated[float, Meta(ge=30, le=130)] = 90.0  # °C, where it can be read
    megabytes_max: Count = 200  # MB a night in and out; then nothing is fetched
    energy_wh_max: Annotated[float, Meta(gt=0, le=100_000)] = 150.0  # Wh a night, an estimate:
    # hours of one core at work, times the next line
    watts_per_core: Annotated[float, Meta(gt=0, le=1000)] = 8.0  # W more for a core that is busy
    model_servers: tuple[str, ...] = (  # programs to which work gives way while they compute
        "ollama",
        "llama-server",
        "llama-cli",
        "vllm",
        "lmstudio",
        "lm-studio",
        "koboldcpp",
        "text-generation",
        "tabbyapi",
        "mlx_lm",
        "sglang",
        "localai",
    )
    server_cpu_min: Share = 0.1  # of one core; a model server that takes less waits for its owner

    def __post_init__(self) -> None:
        Window.parse(self.window)


class PublishConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    novel: Literal["ask", "auto"] = "ask"  # a topic that no peer shows: wait for the owner's word


class ExecutorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["processes", "ray"] = "processes"  # ray: for a lab with a cluster
    address: str = ""  # of a Ray that runs already; empty starts one here for each round
    workers: Threads = 0  # jobs at once; 0: of ray, one a core; of processes,
    # none, and a round trains one leaf after the other


class RegistryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str = ""  # a folder or s3://BUCKET/PREFIX to which rounds push what may be published
    endpoint: str = ""  # of a store that is not Amazon's
    region: str = "us-east-1"  # other stores mostly ignore it
    key_env: str = "AWS_ACCESS_KEY_ID"  # variables of the environment: keys stand in no file
    secret_env: str = "AWS_SECRET_ACCESS_KEY"


class MeshConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    peers: tuple[str, ...] = ()  # multiaddrs ending in /p2p/PEER, dialled at start
    fetch_delay_s: Seconds = 3.0  # at most, and at least half of it: more holders may be heard of
    interest_cosine: Cosine = 0.5  # foreign leaves nearer than this to an own cluster are fetched
    cache_bytes_max: Annotated[int, Meta(ge=0, le=1 << 50)] = 2 << 30  # of peers' bundles on disk,
    # whole or in part; of more, those go that were used longest ago and are not pinned
    mirror: str = ""  # a folder or s3://BUCKET/PREFIX, asked for bundles like one more peer; the
    # endpoint and the keys are those of [registry]
    evaluate_sessions: Count = 40  # own sessions that judge a foreign leaf; below 20 no verdict
    gossip: GossipConfig = field(default_factory=GossipConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of groove.toml."""

    capture: CaptureConfig = field(default_factory=CaptureConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    rules: Rules = field(default_factory=Rules)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    night: NightConfig = field(default_factory=NightConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    api: ApiConfig = field(default_factory=ApiConfig)


class ConfigError(OwnerError):
    """groove.toml cannot be used."""

    exit_code = 2


def load(home: Path) -> Config:
    """Read GROOVE_HOME/groove.toml; raises ConfigError naming the key, the file and the mend."""
    path = home / FILE
    if not path.exists():
        return Config()
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Config)
    except (msgspec.DecodeError, ValueError) as problem:
        raise ConfigError(
            f"{path}: {problem}{_suggestion(str(problem))}",
            unchanged="Nothing was started.",
            next_step=f"Mend the line, or move {path.name} aside to run on the defaults.",
        ) from None


def _suggestion(problem: str) -> str:
    if "matching regex" in problem and "night.window" in problem:
        return "; it may be always or HH:MM-HH:MM, such as 23:00-05:00"
    if "matching regex" in problem and "api.listen" in problem:
        return f"; it may be {PLACE_IN_WORDS}"
    if "matching regex" in problem and "api." in problem:
        return f"; it may be {URL_IN_WORDS}"
    unknown = re.search(r"unknown field `(\w+)`", problem)
    if not unknown:
        return ""
    close = difflib.get_close_matches(unknown[1], sorted(_keys(Config())), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _keys(section: Struct) -> set[str]:
    names = set(section.__struct_fields__)
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Struct):
            names |= _keys(value)
    return names
