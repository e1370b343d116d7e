"""An adapter in the layout that PEFT, vLLM and SGLang read: a folder of configuration and tensors.

The configuration is written here, from the label's checked fields: a peer's bundle brings none, for
one could name another class of adapter, a pattern that never ends, or a model to download.
"""

from __future__ import annotations

import json
from pathlib import Path

from .bundle import CheckedBundle, Label
from .training.tensors import Array, pack

CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"


def peft_config(label: Label, base: str) -> bytes:
    """`adapter_config.json`. base: the model's name or folder, as the reader of it knows it."""
    fields = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": label.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": label.rank,
        "target_modules": sorted(label.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(fields, indent=2, sort_keys=True).encode() + b"\n"


def write_peft(bundle: CheckedBundle, tensors: dict[str, Array], folder: Path, base: str) -> None:
    """Write the layout into `folder`, which exists and is empty.

    tensors: of `bundle.read_adapter`, by PEFT's names already. The node's own metadata (rank and
    alpha) are left out: the configuration says them.
    """
    (folder / TENSORS).write_bytes(pack(tensors, {"format": "pt"}))
    (folder / CONFIG).write_bytes(peft_config(bundle.label, base))
    (folder / CARD).write_text(model_card(bundle.label, base), encoding="utf-8")


def model_card(label: Label, base: str) -> str:
    """What the label says, for a person: where it is from, what it is good for, on what terms."""
    head = {"base_model": base, "library_name": "peft", "license": label.licence or "unknown"}
    head_lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    rows = [
        ("leaf", f"`{label.leaf}`"),
        ("chassis", f"`{label.chassis}`"),
        ("adapter, SHA-256", f"`{label.adapter}`"),
        ("rank, alpha", f"{label.rank}, {label.alpha}"),
        ("sits on", ", ".join(label.targets)),
        ("trained by", f"{label.method}, {label.tokens:,} tokens"),
        ("licence", label.licence or "not stated"),
        ("terms", label.terms or "not stated"),
        ("contributors", f"{label.privacy.contributors:,}"),
        ("sessions", f"{label.privacy.sessions:,}"),
        ("scrubbed by", label.privacy.scrub_rules),
        ("ancestors", ", ".join(f"`{leaf}`" for leaf in label.lineage) or "none"),
        *_evaluation(label),
    ]
    table = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(
        [
            *("---", *head_lines, "---", ""),
            *(f"# {_cell(label.name)}", ""),
            "A LoRA adapter that a groove-node trained. What follows is what its label says; only "
            "its form was checked on export.",
            *("", "| | |", "|---|---|", *table, ""),
        ]
    )


def _evaluation(label: Label) -> list[tuple[str, str]]:
    found = label.evaluation
    if found is None:
        return [("evaluation", "none: a style control")]
    gain = found.over_parent
    return [
        ("verdict of its origin", found.verdict),
        ("held-out sessions", f"{found.held_out:,}"),
        ("gain over its parent", f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) nats"),
    ]


def _cell(text: str) -> str:
    """A peer's words, so that they stay words in one cell of a table of Markdown."""
    text = "".join(x if x.isprintable() else " " for x in text)
    for mark in ("\\", "|", "<", "[", "*", "_", "`"):
        text = text.replace(mark, "\\" + mark)
    return text
