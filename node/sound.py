"""What the type of a setting cannot say: whether what it names can be used at all.

`config set` refuses what cannot; `doctor` and a starting node tell of what stands in groove.toml.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gossip.addresses import AddressError, peer_of
from gossip.multiaddrs import parse
from gossip.wire import CHUNK_BYTES

if TYPE_CHECKING:
    from .config import Config


def fault(key: str, value: Any) -> str:
    """Why a key of groove.toml cannot have this value; empty if it can."""
    match key:
        case "training.chassis" | "encoder.path":
            return _model(value)
        case "mesh.mirror":
            return _mirror(value)
        case "mesh.cache_bytes_max":
            least = f"no bundle fits: expected at least {CHUNK_BYTES:,}, and better 1,000,000,000"
            return least if value < CHUNK_BYTES else ""
        case "mesh.peers" | "mesh.transport.relay":
            return _peers(value)
        case "mesh.transport.listen":
            return _places([value])
        case "mesh.transport.announce":
            return _places(value)
    return ""


def faults(config: Config) -> list[tuple[str, str]]:
    """What of the mesh in groove.toml cannot be used: the key, and why."""
    mesh = config.mesh
    held = {
        "mesh.mirror": mesh.mirror,
        "mesh.cache_bytes_max": mesh.cache_bytes_max,
        "mesh.transport.relay": mesh.transport.relay,
    }
    return [(key, why) for key, value in held.items() if (why := fault(key, value))]


def _model(value: str) -> str:
    if not value:
        return ""
    if why := _folder(value):
        return why
    folder = Path(value).expanduser()
    return "" if (folder / "config.json").is_file() else f"{folder} holds no config.json"


def _mirror(value: str) -> str:
    parts = urlsplit(value)
    if not value or (parts.scheme == "s3" and parts.netloc):
        return ""
    if parts.scheme:
        return f"{value!r} is no folder and no s3://BUCKET/PREFIX"
    return _folder(value)


def _folder(value: str) -> str:
    folder = Path(value).expanduser()
    if not folder.is_absolute():
        return f"a node may run anywhere: give the whole path, {folder.resolve()}"
    return "" if folder.is_dir() else f"there is no folder {folder}"


def _peers(addresses: list[str] | tuple[str, ...]) -> str:
    for address in addresses:
        try:
            peer_of(address)
        except AddressError as problem:
            return str(problem)
    return ""


def _places(addresses: list[str] | tuple[str, ...]) -> str:
    for address in addresses:
        try:
            parse(address)
        except AddressError as problem:
            return str(problem)
    return ""
