"""llama.cpp's own server in a process of its own, and the tiny Llama as the GGUF that it reads."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from leaves.gguf_export import NAMES, permuted
from leaves.training.chassis import open_chassis, weight_files
from leaves.training.tensors import Weights

MISSING = "" if importlib.util.find_spec("xllamacpp") else "xllamacpp is not installed"
START_S = 60.0
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
_SERVER = """
import json, sys, xllamacpp
asked = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = asked["model"]
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(each, 1.0) for each in asked["lora"]]
params.lora_init_without_apply = True
params.n_ctx, params.n_parallel, params.warmup = asked["context"], 2, False
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
params.fit_params = params.ui = False
params.port, params.verbosity = 0, 0
server = xllamacpp.Server(params)
print("listening " + server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_server(model: Path, adapters: Sequence[Path] = (), context: int = 1024) -> Iterator[str]:
    """The base URL of a server with these adapters, which it applies when asked alone."""
    asked = {"model": str(model), "lora": [str(path) for path in adapters], "context": context}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": ""},
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield _address(process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = select.poll()  # `select.select` takes no descriptor above 1,023
    said.register(process.stdout, select.POLLIN)
    while said.poll(START_S * 1000):
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"llama.cpp's server ended: {process.wait()}")
        if line.startswith("listening "):
            return line.split()[1]
    raise AssertionError(f"llama.cpp's server is not there after {START_S} s")


def gguf_of(chassis: Path, path: Path) -> Path:
    """The tiny Llama and its tokenizer as a GGUF file."""
    from gguf import GGUFWriter

    config = open_chassis(chassis).config
    writer: Any = GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((chassis / "tokenizer.json").read_text()), config)
    weights = Weights(weight_files(chassis))
    for name in weights:
        writer.add_tensor(*_tensor(name, weights.array(name), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: Any) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    marks = {each["id"] for each in tokenizer["added_tokens"]}
    tokens = [f"<|unused{n}|>" for n in range(config["vocab_size"])]
    for token, index in vocabulary.items():
        tokens[index] = token
    kinds = [
        3 if n in marks else (1 if n < len(vocabulary) else 5) for n in range(len(tokens))
    ]  # control, normal, unused
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [each if isinstance(each, str) else " ".join(each) for each in _merges(tokenizer)]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _merges(tokenizer: dict[str, Any]) -> list[Any]:
    merges: list[Any] = tokenizer["model"]["merges"]
    return merges


def _tensor(name: str, array: Any, config: Any) -> tuple[str, Any]:
    if name in _TOP:
        return _TOP[name], np.ascontiguousarray(array, np.float32)
    _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if rest.endswith("q_proj"):
        array = permuted(array, config["num_attention_heads"])
    elif rest.endswith("k_proj"):
        array = permuted(array, config["num_key_value_heads"])
    target = norms.get(rest) or NAMES[rest]
    return f"blk.{layer}.{target}.weight", np.ascontiguousarray(array, np.float32)
