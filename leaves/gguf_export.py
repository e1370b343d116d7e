"""An adapter as a GGUF file, which llama.cpp's server and Ollama put on.

llama.cpp keeps the rows of a Llama's query and key projections in another order than Hugging Face:
the two halves of each head's rotary pairs are interleaved. What an adapter adds to these rows must
be put in the same order, or it loads without a word and computes something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .bundle import AdapterFile, Label
from .training.chassis import Chassis
from .training.tensors import Array

ARCHITECTURE = "llama"  # llama.cpp's word for both of the families below
FAMILIES = frozenset({"llama", "mistral"})
_A, _B, _PREFIX = ".lora_A.weight", ".lora_B.weight", "base_model.model."

NAMES = {  # Hugging Face -> GGUF, within a layer
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class NoGgufError(Exception):
    """This chassis has no GGUF form that is known here; the message says what has one."""


def write_gguf(path: Path, adapter: AdapterFile, label: Label, chassis: Chassis) -> None:
    """Write the new file `path`. Raises NoGgufError, before anything is written."""
    from gguf import GGUFWriter

    tensors = gguf_tensors(adapter, chassis)
    writer: Any = GGUFWriter(path, ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(adapter.alpha))
    writer.add_name(label.name)
    writer.add_license(label.licence or "unknown")
    writer.add_string("groove.leaf", label.leaf)
    writer.add_string("groove.chassis", label.chassis)
    writer.add_string("groove.adapter", label.adapter)
    writer.add_string("groove.terms", label.terms)
    for name, tensor in sorted(tensors.items()):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(adapter: AdapterFile, chassis: Chassis) -> dict[str, Array]:
    """The tensors by llama.cpp's names, in llama.cpp's order of rows."""
    family = str(chassis.config.get("model_type"))
    if family not in FAMILIES:
        raise NoGgufError(
            f"a chassis of the family {family!r} cannot be put into GGUF: "
            f"known are {', '.join(sorted(FAMILIES))}"
        )
    heads = int(chassis.config["num_attention_heads"])
    kv_heads = int(chassis.config.get("num_key_value_heads") or heads)
    found: dict[str, Array] = {}
    for name, tensor in adapter.tensors.items():
        module = name.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B)
        target = _gguf_name(module)
        if name.endswith(_A):
            found[f"{target}.weight.lora_a"] = np.ascontiguousarray(tensor, np.float32)
            continue
        rows = np.asarray(tensor, np.float32)
        if module.endswith("q_proj"):
            rows = permuted(rows, heads)
        elif module.endswith("k_proj"):
            rows = permuted(rows, kv_heads)
        found[f"{target}.weight.lora_b"] = np.ascontiguousarray(rows)
    return found


def permuted(rows: Array, heads: int) -> Array:
    """Rows of all heads, from Hugging Face's order into llama.cpp's. shape: (features out, any)."""
    size, columns = rows.shape
    return rows.reshape(heads, 2, size // heads // 2, columns).swapaxes(1, 2).reshape(size, columns)


def _gguf_name(module: str) -> str:
    """Such as blk.3.attn_q for model.layers.3.self_attn.q_proj."""
    parts = module.split(".", 3)
    if parts[:2] != ["model", "layers"] or len(parts) != 4 or parts[3] not in NAMES:
        raise NoGgufError(f"llama.cpp has no name that is known here for {module!r}")
    return f"blk.{int(parts[2])}.{NAMES[parts[3]]}"
