"""What training gives and costs: speed, gains over chassis and style control, preferences.

    python tests/bench/train.py [--data FILE...] [--preferences FILE...] [--json FILE|-]
                                [--only speed,domains,dpo,planted] [--seeds N] [--steps N]
                                [--runs N] [--work DIR]

FILE is JSON Lines, gzipped or not: `prompt`, `completion`, `domain`, `split`, perhaps `check`; of
preferences `prompt`, `chosen`, `rejected`, `split`. Each file is a domain. The default chassis, one
thread, children one after another; about an hour of one core in all. `--work` keeps adapters, and a
bench that was ended goes on from there.

tokens_per_s, gemm_fraction, peak_rss_mb, resume_identical, trl_ratio, hf_ratio, ...
                          speed of supervised training: see train_speed.py
domains.D.gain            nats per completion token below the chassis on held-out rows; `ci_low`,
                          `ci_high`: one-sided 95 % bounds each, by paired bootstrap over rows
domains.D.vs_style        the same below the style control; `vs_style_low` its lower bound
domains.D.verdict         better | not better | too few
domains.D.general_rise    upper bound of the rise of the loss on other kinds of text
domains.D.strength        share of what was learned that is left, so that other text is not spoilt
domains.D.train_cpu_s     CPU seconds of the leaf's training, of `tokens`
domains.D.right           [chassis, leaf] share of right answers, of `answers` rows; first seed
domains.D.seeds           each seed's figures; all others are of the median seed by `vs_style_low`
dpo.D.*                   preference training: see train_dpo.py; `planted.*` likewise
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
os.environ["HF_HUB_OFFLINE"] = "1"

import train_domains  # noqa: E402
import train_dpo  # noqa: E402
import train_speed  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
PARTS = ("speed", "domains", "dpo", "planted")


def main() -> None:
    args = _arguments()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as fallback:
        work: Path = args.work or Path(fallback)
        if "speed" in args.only:
            figures |= train_speed.speed(args.data, steps=5, runs=args.runs)
            figures |= train_speed.resuming(args.data)
            _write(figures, args.json)
        if "domains" in args.only:
            grown = train_domains.domains(
                args.data, work / "domains", seeds=args.seeds, steps=args.steps
            )
            for found in grown:
                _write(figures | {"domains": found}, args.json)
                figures["domains"] = found
        if "dpo" in args.only:
            figures["dpo"] = {}
            for file in args.preferences:
                name = file.name.split(".")[0]
                figures["dpo"][name] = train_dpo.run(file, work / "dpo" / name)
                _write(figures, args.json)
        if "planted" in args.only and args.preferences:
            figures["planted"] = train_dpo.run_planted(args.preferences[0], work / "planted")
    _write(figures, args.json)
    if args.json in (None, "-"):
        print(json.dumps(figures, indent=1))


def _arguments() -> argparse.Namespace:
    instructions = sorted((DATA / "instructions").glob("*.jsonl.gz"))
    preferences = [
        DATA / "preferences" / f"{name}.jsonl.gz" for name in ("shell", "math", "coding")
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", type=Path, default=instructions)
    parser.add_argument(
        "--preferences", nargs="*", type=Path, default=[p for p in preferences if p.exists()]
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json")
    args = parser.parse_args()
    if unknown := set(args.only) - set(PARTS):
        parser.error(f"--only takes some of {', '.join(PARTS)}; not {', '.join(sorted(unknown))}")
    if not args.data:
        parser.error("no data: give --data FILE...")
    return args


def _write(figures: dict[str, Any], path: str | None) -> None:
    """What is known so far: the whole takes an hour."""
    if path not in (None, "-"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
