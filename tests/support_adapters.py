"""Adapters and bundles that were never trained, and homes on a tiny chassis."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from leaves.bundle import Label, Privacy, encode_label, pack
from leaves.training.chassis import Chassis
from leaves.training.tensors import pack as pack_tensors
from node.app import App

RANK, ALPHA = 8, 16


def adapter_file(chassis: Chassis, seed: int, strength: float = 0.05) -> bytes:
    """An adapter on every layer, of random numbers large enough to change what is said."""
    random = np.random.Generator(np.random.PCG64(seed))
    tensors = {}
    for name, shape in chassis.adapter_shapes(RANK, chassis.targets).items():
        scale = shape[1] ** -0.5 if "lora_A" in name else strength
        tensors[name] = random.normal(0, scale, shape).astype(np.float32)
    return pack_tensors(tensors, {"format": "pt", "rank": str(RANK), "alpha": str(ALPHA)})


def label_of(chassis: Chassis, adapter: bytes, **changed: object) -> Label:
    fields = {
        "leaf": "ab" * 16,
        "name": "async-python",
        "chassis": chassis.tag8.hex(),
        "adapter": hashlib.sha256(adapter).hexdigest(),
        "rank": RANK,
        "alpha": ALPHA,
        "targets": chassis.targets,
        "method": "sft",
        "dtype": "float32",
        "tokens": 1000,
        "evaluation": None,
        "control_root": "",
        "control_bytes": 0,
        "privacy": Privacy(1, 500, None, "7"),
        "lineage": (),
        "licence": "CC-BY-4.0",
        "terms": "own prompts only",
    }
    return Label(**(fields | changed))  # type: ignore[arg-type]


def bundled(chassis: Chassis, seed: int) -> bytes:
    adapter = adapter_file(chassis, seed)
    return pack(encode_label(label_of(chassis, adapter)), adapter)


def home_of(folder: Path, chassis: Path) -> App:
    """A new home whose chassis is this one."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    (home / "groove.toml").write_text(f'[training]\nchassis = "{chassis}"\n')
    return App(home)
