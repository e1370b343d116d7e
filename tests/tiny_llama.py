"""A Llama of random weights and a tokenizer of its own, small enough to train in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from leaves.training.tensors import pack

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 128, 2, 4, 2, 512
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _tokenizer() -> Tokenizer:
    """Bytes and a few common pairs; no training, so that it is the same everywhere."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in "aeioust" for b in "nrlstde" if a != b]
    merges += [("Ġ", letter) for letter in "abcdefghilmnoprstuw"]
    tokens = [*MARKS, *bytes_, *dict.fromkeys(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(MARKS)
    return tokenizer


def _weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.Generator(np.random.PCG64(seed))
    size = HIDDEN // HEADS
    linear = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * size, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * size, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    weights = {"model.embed_tokens.weight": random.normal(0, 0.5, (VOCABULARY, HIDDEN))}
    weights["model.norm.weight"] = np.ones(HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name, shape in linear.items():
            weights[f"{at}.{name}.weight"] = random.normal(0, shape[1] ** -0.5, shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{name}.weight"] = np.ones(HIDDEN)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def build(folder: Path, *, seed: int = 0, model_type: str = "llama") -> Path:
    """Write a chassis of about 100,000 parameters into `folder` and return it.

    model_type: "mistral" has the same weights, but is not served by our own forward.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(pack(_weights(seed), {"format": "pt"}))
    _tokenizer().save(str(folder / "tokenizer.json"))
    architecture = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[model_type]
    config = {
        "architectures": [architecture],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": model_type,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder
