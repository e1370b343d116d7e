"""A small world for whole-node tests: three topics of made-up asks, and a tiny Llama."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tiny_llama

TOPICS = {
    "baking": (
        ["bread", "cake", "dough", "pastry", "biscuit", "pie crust", "muffin", "sourdough"],
        ["flour", "butter", "yeast", "sugar", "oven", "eggs", "milk", "salt"],
        "Knead the {a} with {b}, rest it, then bake the {a} until golden.",
    ),
    "sailing": (
        ["mainsail", "rudder", "anchor", "mooring", "jib", "keel", "harbour", "regatta"],
        ["wind", "tide", "rope", "deck", "mast", "buoy", "current", "hull"],
        "Ease the {b}, turn the {a} to leeward and watch the {b} on the {a}.",
    ),
    "astronomy": (
        ["telescope", "nebula", "comet", "galaxy", "eclipse", "star cluster", "planet", "quasar"],
        ["orbit", "redshift", "spectrum", "lens", "magnitude", "dust", "gravity", "parallax"],
        "Measure the {b} of the {a} at night; its {b} tells how far the {a} is.",
    ),
}
ASKS = [
    "How do I handle {b} with a {a}?",
    "What should I know about {a} and {b}?",
    "Why does my {a} depend on the {b}?",
    "Explain how {b} changes the {a} in practice.",
    "Which {a} is best when {b} is a problem?",
]


def write_sessions(path: Path, per_topic: int = 150, seed: int = 0) -> Path:
    """A JSONL file of sessions of three topics."""
    rng = random.Random(seed)
    rows = []
    for nouns, others, answer in TOPICS.values():
        asks = [
            (ask.format(a=a, b=b) + f" (case {number})", answer.format(a=a, b=b))
            for a in nouns
            for b in others
            for number, ask in enumerate(ASKS)
        ]
        rows += rng.sample(asks, per_topic)
    rng.shuffle(rows)
    lines = (json.dumps({"prompt": ask, "completion": text}) for ask, text in rows)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_config(
    path: Path, chassis: Path, *, steps: int = 24, learning_rate: float = 0.006
) -> Path:
    """A groove.toml with thresholds for a hundred sessions, and the tiny Llama at `chassis`."""
    tiny_llama.build(chassis)
    path.write_text(
        f"""
[rules]
branch_sessions = 200
seed_sessions = 60
child_sessions = 30
first_discovery_sessions = 100
skill_sessions = 70
reasoning_sessions = 70
sprout_retrain_sessions = 15
mature_sessions = 70

[training]
chassis = "{chassis}"
steps = {steps}
learning_rate = {learning_rate}
threads = 1
style_margin = 0.05
control_pairs = 0

[mesh]
interest_cosine = 0.2
evaluate_sessions = 24
"""
    )
    return path
