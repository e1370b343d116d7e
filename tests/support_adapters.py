"""Adapters and bundles that were never trained, and homes on a tiny chassis."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from leaves.bundle import Label, Privacy, encode_label, pack
from leaves.model import Adapter as LeafAdapter
from leaves.model import GrownFrom, Instant, Kind, Leaf, LeafId, Stage, Vector
from leaves.training.chassis import Chassis
from leaves.training.tensors import pack as pack_tensors
from node.app import App
from node.bundles import address_of
from node.foreign import Known, State
from node.mesh import ForeignLeaf

RANK, ALPHA = 8, 16
NOW = Instant(1_700_000_000)
ORIGIN = "0e" * 32


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


def own_leaf(app: App, seed: int, name: str) -> Leaf:
    """A mature leaf of this home, with an adapter."""
    address = app.bundles.put(bundled(app.chassis, seed))
    adapter = LeafAdapter(address, "cd" * 32, "", app.chassis.tag8.hex(), RANK)
    leaf = Leaf(
        id=LeafId(f"{seed:032x}"),
        name=name,
        stage=Stage.MATURE,
        stage_since=NOW,
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=NOW,
        sessions=600,
        growth_per_day=1.0,
        centroid=_centroid(),
        adapter=adapter,
    )
    app.forests.change(leaf, "born", "for a test", NOW)
    return leaf


def foreign_leaf(app: App, seed: int, name: str, state: State) -> Known:
    """A leaf of another origin; its bundle is here unless it was only heard of."""
    bundle = bundled(app.chassis, seed)
    address = address_of(bundle) if state is State.HEARD else app.bundles.put(bundle)
    leaf = ForeignLeaf(
        ORIGIN,
        LeafId(f"{seed:032x}"),
        *(1, Stage.MATURE, 9, address, "cd" * 32, len(bundle), app.chassis.tag8.hex()),
        _centroid(),
    )
    app.foreign.replace_origin(ORIGIN, [leaf])
    known = app.foreign.get(ORIGIN, leaf.leaf)
    assert known is not None
    return app.foreign.settle(known, state, {}, name)


def _centroid() -> Vector:
    centroid = np.zeros(384, np.float32)
    centroid[0] = 1.0
    return centroid
