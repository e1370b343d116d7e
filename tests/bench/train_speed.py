"""Speed and memory of supervised training, against trl and a plain transformers + peft loop.

    python tests/bench/train_speed.py --data FILE [FILE…] [--json FILE|-] [--threads N]
                                      [--steps N] [--runs N]

Each trainer runs in child processes of its own, in turn, `--runs` times, on the same tokens in the
same batches (of 8 sessions, alike in length), from the same adapters, in the dtype that our own
training chooses here, with the same optimiser. All minimise nats per completion token of the
batch, so their losses can be compared step by step. The first two steps warm up and are not timed.
With one thread figures are by its CPU time: by the clock, a shared core measures its other tenants.

tokens_per_s     of ours, prompt and completion together; median
gemm_fraction    matrix products that a token needs, 4·N operations of the N = 106 M weights of the
                 layers and as many of the head (28 M) for the completion's tokens alone, in the
                 time a step took, over the best of many products (tokens, 576) × (576, 1536) taken
                 between the steps. Adapters, attention and all else count as waste; median
peak_rss_mb      largest resident memory of `ChildTrainer`'s child
trl_ratio        our rate over that of trl's SFTTrainer in the same run (its gradient checkpointing,
                 on by default, is off: it would only slow it down); median over the runs
hf_ratio         the same with a plain loop over transformers and peft
loss_difference  largest difference from either, of the mean loss of all steps
resume_identical a training killed by SIGKILL in the middle and run again ends in the same bytes
threads_identical the same training with 1 and with 2 threads ends in the same bytes
peer.*           rates and peak memory of the others
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from leaves.ports import Example, Schedule, Trained, TrainJob  # noqa: E402
from leaves.training import launch  # noqa: E402
from leaves.training.adapter import Adapters  # noqa: E402
from leaves.training.backend import fastest_dtype, open_backend  # noqa: E402
from leaves.training.chassis import open_chassis, prepare_chassis  # noqa: E402
from leaves.training.child import ChildTrainer, TrainingError  # noqa: E402
from leaves.training.encode import Encoded, Encoder, chunks  # noqa: E402
from leaves.training.sft import adamw, batches  # noqa: E402
from node.home import groove_cache  # noqa: E402

SESSIONS, WARM_STEPS, RATE = 256, 2, 1e-3
# Of longer sessions the others hold all logits, and take 10 GB.
SCHEDULE = Schedule(steps=8, batch=8, tokens_max=256)


def examples(files: Sequence[Path], count: int = SESSIONS) -> tuple[Example, ...]:
    """The first rows of each file in turn."""
    turns = [_rows(file, -(-count // len(files))) for file in files]
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*turns))
    return tuple(example for example in mixed if example is not None)[:count]


def _rows(file: Path, count: int) -> list[Example]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, count)]
    return [Example(row["id"], row["prompt"], row["completion"]) for row in rows]


class Clock:
    """Seconds of work: of the CPU with one thread, of the wall with more."""

    def __init__(self, threads: int) -> None:
        self.now: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter


class Setting:
    """What the three trainers share."""

    def __init__(self, files: Sequence[Path], steps: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.chassis = open_chassis(prepare_chassis(groove_cache()))
        self.steps, self.clock = steps, Clock(threads)
        self.dtype = fastest_dtype()
        shapes = self.chassis.adapter_shapes(SCHEDULE.rank, self.chassis.targets)
        self.adapters = Adapters(shapes, SCHEDULE.rank, SCHEDULE.alpha)
        self.adapters.initialise(seed=0)
        encoder = Encoder(self.chassis.path)
        encoded = encoder.encode_all(examples(files), tokens_max=SCHEDULE.tokens_max)
        schedule = replace(SCHEDULE, steps=steps)
        order = batches([len(session.tokens) for session in encoded], schedule)
        self.batches = [[encoded[index] for index in batch] for batch in order]

    def peft_model(self) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        bare = AutoModelForCausalLM.from_pretrained(self.chassis.path, dtype=self.dtype)
        config = LoraConfig(
            r=SCHEDULE.rank,
            lora_alpha=SCHEDULE.alpha,
            target_modules=list(self.chassis.targets),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(bare, config)
        modules = dict(bare.named_modules())
        for name, pair in self.adapters.pairs.items():
            modules[name].lora_A["default"].weight.data.copy_(pair.a)
            modules[name].lora_B["default"].weight.data.copy_(pair.b)
        return model.train()

    def result(self, seconds: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
        timed = self.batches[WARM_STEPS:]
        return {
            "tokens": sum(len(session.tokens) for batch in timed for session in batch),
            "completion": sum(session.completion for batch in timed for session in batch),
            "seconds": sum(seconds[WARM_STEPS:]),
            "losses": list(losses),
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def ours(setting: Setting) -> dict[str, Any]:
    """The step of `sft`, with the weights that make it minimise what the others do."""
    import torch

    adapters, clock = setting.adapters, setting.clock
    state = {"values": adapters.values, "mean": torch.zeros_like(adapters.values)}
    state["square"] = torch.zeros_like(adapters.values)
    seconds, losses, peak = [], [], 0.0
    with torch.no_grad():
        model = open_backend(setting.chassis.path, setting.dtype)
        model.bind(adapters)
        for step, batch in enumerate(setting.batches):
            rows = sum(len(session.tokens) for session in batch)
            peak = max(peak, gemm_peak(setting.dtype, rows, clock))
            start = clock.now()
            total = sum(session.completion for session in batch)
            adapters.grads.zero_()
            loss = 0.0
            for indices in chunks(batch):
                part = [batch[index] for index in indices]
                share = [session.completion / total for session in part]
                got = model.learn(part, lambda _, share=share: share)
                loss += sum(each * of for each, of in zip(got, share, strict=True))
            adamw(adapters.grads, state, step, RATE)
            model.refresh()
            seconds.append(clock.now() - start)
            losses.append(loss)
    weights = sum(linear.rows * linear.columns for linear in setting.chassis.linears.values())
    head = setting.chassis.config["vocab_size"] * setting.chassis.config["hidden_size"]
    result = setting.result(seconds, losses)
    needed = 4 * (weights * result["tokens"] + head * result["completion"])
    return {**result, "gemm_fraction": needed / result["seconds"] / peak}


def gemm_peak(dtype: Any, rows: int, clock: Clock) -> float:
    """Operations a second of (rows, 576) × (576, 1536): the best of several tries."""
    import torch

    x, weight = torch.ones(rows, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    tries = []
    for _ in range(8):
        start = clock.now()
        torch.nn.functional.linear(x, weight)
        tries.append(clock.now() - start)
    return 2 * rows * 576 * 1536 / min(tries)


def hf(setting: Setting) -> dict[str, Any]:
    """What one writes in an afternoon."""
    import torch

    model, clock = setting.peft_model(), setting.clock
    trained = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    seconds, losses = [], []
    for batch in setting.batches:
        start = clock.now()
        loss = model(**_padded(batch), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(clock.now() - start)
        losses.append(float(loss.detach()))
    return setting.result(seconds, losses)


def _padded(batch: Sequence[Encoded]) -> dict[str, Any]:
    import torch

    width = max(len(session.tokens) for session in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for row, session in enumerate(batch):
        length = len(session.tokens)
        tokens[row, :length] = torch.tensor(session.tokens)
        mask[row, :length] = 1
        labels[row, session.prompt : length] = tokens[row, session.prompt : length]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def trl(setting: Setting) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seconds, losses, start = [], [], [0.0]
    clock = setting.clock

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            start[0] = clock.now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds.append(clock.now() - start[0])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    rows = [
        {
            "input_ids": list(session.tokens),
            "completion_mask": [0] * session.prompt + [1] * session.completion,
        }
        for batch in setting.batches
        for session in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=setting.steps,
            per_device_train_batch_size=SCHEDULE.batch,
            train_sampling_strategy="sequential",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            completion_only_loss=True,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=setting.peft_model(),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(setting.chassis.path),
            callbacks=[Watch()],
        )
        trainer.train()
    return setting.result(seconds, [float(loss) for loss in losses])


def in_child(name: str, files: Sequence[Path], steps: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--steps", str(steps)]
    command += ["--threads", str(threads), "--data", *map(str, files)]
    with tempfile.TemporaryFile() as errors:
        run = subprocess.run(
            command,
            env=launch.environment(threads=threads),
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
        )
        if run.returncode:
            errors.seek(0)
            raise SystemExit(f"{name} failed: {errors.read().decode(errors='replace')[-2000:]}")
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def speed(
    files: Sequence[Path], *, steps: int = 8, runs: int = 3, threads: int = 1
) -> dict[str, Any]:
    """Rates of ours and of the peers, in turn."""
    names = ("ours", "trl", "hf")
    rounds = []
    for number in range(runs):
        rounds.append({name: in_child(name, files, steps, threads) for name in names})
        told = (f"{name} {r['tokens'] / r['seconds']:.0f}" for name, r in rounds[-1].items())
        print(f"run {number + 1} of {runs}, tokens/s:", *told, file=sys.stderr, flush=True)
    rates = [{name: r[name]["tokens"] / r[name]["seconds"] for name in names} for r in rounds]
    means = [{name: statistics.fmean(r[name]["losses"]) for name in names} for r in rounds]

    def median(values: Any) -> float:
        return round(float(statistics.median(values)), 4)

    return {
        "threads": threads,
        "tokens_per_s": median(rate["ours"] for rate in rates),
        "gemm_fraction": median(r["ours"]["gemm_fraction"] for r in rounds),
        "trl_ratio": median(rate["ours"] / rate["trl"] for rate in rates),
        "hf_ratio": median(rate["ours"] / rate["hf"] for rate in rates),
        "loss": median(mean["ours"] for mean in means),
        "loss_difference": max(
            abs(mean["ours"] - mean[peer]) for mean in means for peer in ("trl", "hf")
        ),
        "peer": {
            f"{peer}_{key}": value
            for peer in ("trl", "hf")
            for key, value in (
                ("tokens_per_s", median(rate[peer] for rate in rates)),
                ("rss_mb", median(r[peer]["rss_mb"] for r in rounds)),
            )
        },
    }


def resuming(files: Sequence[Path], *, steps: int = 6) -> dict[str, Any]:
    """Is a killed training's result that of an unbroken one, and that of two threads?"""
    return in_child("resuming", files, steps, threads=1)


def _resuming(files: Sequence[Path], steps: int) -> dict[str, Any]:
    """In a process of its own, whose children are no other's: their peak is what is asked."""
    chassis = prepare_chassis(groove_cache())
    schedule = Schedule(steps=steps)  # sessions of up to 512 tokens, as a leaf's are
    with tempfile.TemporaryDirectory() as folder:

        def job(name: str) -> TrainJob:
            return TrainJob(Path(folder) / name, chassis, examples(files), schedule)

        unbroken = ChildTrainer().train(job("unbroken"))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        broken = _killed_and_resumed(job("broken"), at_step=steps - 1)
        two = ChildTrainer(threads=2).train(job("two"))
    return {
        "peak_rss_mb": round(peak),
        "resume_identical": broken.sha256 == unbroken.sha256,
        "threads_identical": two.sha256 == unbroken.sha256,
    }


def _killed_and_resumed(job: TrainJob, *, at_step: int) -> Trained:
    trainer = ChildTrainer()

    def kill(progress: Any) -> None:
        if progress.done == at_step:
            trainer.stop()

    try:
        trainer.train(job, kill)
    except TrainingError:
        return trainer.train(job)
    raise SystemExit("the training was not killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--json", default="-")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--child", choices=["ours", "trl", "hf", "resuming"], help=argparse.SUPPRESS
    )
    asked = parser.parse_args()
    if asked.child == "resuming":
        print(json.dumps(_resuming(asked.data, asked.steps)))
        return
    if asked.child:
        setting = Setting(asked.data, asked.steps, asked.threads)
        print(json.dumps({"ours": ours, "trl": trl, "hf": hf}[asked.child](setting)))
        return
    figures = speed(asked.data, steps=asked.steps, runs=asked.runs, threads=asked.threads)
    figures |= resuming(asked.data)
    text = json.dumps(figures, indent=2)
    if asked.json == "-":
        print(text)
    else:
        Path(asked.json).write_text(text + "\n")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
