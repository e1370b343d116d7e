"""Training and evaluation in a child: resumed to the bit, and gone when its parent is."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import tiny_llama

from leaves.bundle import BundleError, read_adapter
from leaves.ports import EvaluateJob, Example, Progress, Schedule, TrainJob
from leaves.training.chassis import open_chassis
from leaves.training.child import ChildEvaluator, ChildTrainer, TrainingError

SCHEDULE = Schedule(steps=12, batch=4, learning_rate=5e-3)


def readable(descriptor: int, within_s: float) -> bool:
    """`select.select` takes no descriptor above 1,023."""
    said = select.poll()
    said.register(descriptor, select.POLLIN)
    return bool(said.poll(within_s * 1000))


def examples(count: int) -> tuple[Example, ...]:
    return tuple(
        Example(
            f"s{n:03}", f"what does step {n} of the tour do?", f"it turns stone {n % 7} to sand"
        )
        for n in range(count)
    )


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, chassis: Path) -> Path:
    """The adapter of a training that nothing interrupted."""
    work = tmp_path_factory.mktemp("unbroken")
    told: list[Progress] = []
    job = TrainJob(work, chassis, examples(30), SCHEDULE)
    trained = ChildTrainer(dtype="float32").train(job, told.append)
    assert trained.loss_last < trained.loss_first
    assert trained.tokens > 0 and trained.dtype == "float32"
    assert [p.done for p in told if p.phase == "train"] == [0, *range(1, SCHEDULE.steps + 1)]
    assert "tokens/s" in told[-1].detail and "s left" in told[-1].detail
    return trained.adapter


def test_a_training_killed_half_way_and_run_again_ends_in_the_same_bytes(
    tmp_path: Path, chassis: Path, unbroken: Path
) -> None:
    trainer = ChildTrainer(dtype="float32")
    job = TrainJob(tmp_path / "work", chassis, examples(30), SCHEDULE)

    def kill_at_6(progress: Progress) -> None:
        if progress.done == 6:
            trainer.stop()

    with pytest.raises(TrainingError, match="signal 9"):
        trainer.train(job, kill_at_6)
    told: list[Progress] = []
    resumed = trainer.train(job, told.append)
    assert told[0].done == 4, "it went on from the checkpoint"
    assert resumed.adapter.read_bytes() == unbroken.read_bytes()
    again: list[Progress] = []
    assert trainer.train(job, again.append) == resumed
    assert not again, "a finished job is not done twice"
    left = {path.name for path in (tmp_path / "work").iterdir()}
    assert left == {"adapter.safetensors", "result.json"}, "nothing of the sessions is left behind"


def test_the_checkpoint_of_another_job_is_not_gone_on_from(
    tmp_path: Path, chassis: Path, unbroken: Path
) -> None:
    trainer = ChildTrainer(dtype="float32")

    def kill_at_9(progress: Progress) -> None:
        if progress.done == 9:
            trainer.stop()

    with pytest.raises(TrainingError):
        trainer.train(TrainJob(tmp_path, chassis, examples(31), SCHEDULE), kill_at_9)
    trained = trainer.train(TrainJob(tmp_path, chassis, examples(30), SCHEDULE))
    assert trained.adapter.read_bytes() == unbroken.read_bytes()


def test_a_warm_start_begins_where_the_version_before_ended(
    tmp_path: Path, chassis: Path, unbroken: Path
) -> None:
    still = Schedule(steps=1, batch=4, learning_rate=0.0)
    job = TrainJob(tmp_path, chassis, examples(8), still, warm_start=unbroken)
    trained = ChildTrainer(dtype="float32").train(job)
    assert trained.adapter.read_bytes() == unbroken.read_bytes()


def test_losses_are_in_the_order_of_the_examples_under_each_adapter(
    chassis: Path, unbroken: Path
) -> None:
    asked = examples(9)
    evaluator = ChildEvaluator(dtype="float32")
    adapters = (("chassis", None), ("leaf", unbroken), ("again", None))
    losses = evaluator.losses(EvaluateJob(chassis, asked, adapters))
    turned = evaluator.losses(EvaluateJob(chassis, asked[::-1], adapters))
    assert losses.by_label["chassis"] == losses.by_label["again"]
    assert sum(losses.by_label["leaf"]) < sum(losses.by_label["chassis"])
    assert turned.by_label["leaf"][::-1] == pytest.approx(losses.by_label["leaf"], abs=1e-4)
    assert turned.tokens[::-1] == losses.tokens


def test_the_evaluator_refuses_an_adapter_that_is_none(tmp_path: Path, chassis: Path) -> None:
    (tmp_path / "adapter").write_bytes(b"\x00" * 100)
    job = EvaluateJob(chassis, examples(2), (("peer", tmp_path / "adapter"),))
    with pytest.raises(BundleError):
        ChildEvaluator(dtype="float32").losses(job)


def test_a_child_that_takes_too_long_is_ended(chassis: Path) -> None:
    evaluator = ChildEvaluator(dtype="float32", timeout_s=0.05)
    with pytest.raises(TrainingError, match="signal 9"):
        evaluator.losses(EvaluateJob(chassis, examples(2), (("chassis", None),)))


def test_a_child_that_may_have_no_memory_says_so(chassis: Path) -> None:
    evaluator = ChildEvaluator(dtype="float32", memory_bytes_max=200 << 20)
    with pytest.raises(TrainingError):
        evaluator.losses(EvaluateJob(chassis, examples(2), (("chassis", None),)))


def test_a_missing_chassis_is_one_clear_line(tmp_path: Path) -> None:
    job = TrainJob(tmp_path / "work", tmp_path / "nowhere", examples(4), SCHEDULE)
    with pytest.raises(TrainingError, match=r"nowhere is not a usable chassis: config\.json"):
        ChildTrainer().train(job)


def test_prompts_are_answered_under_each_adapter(chassis: Path, unbroken: Path) -> None:
    answers = ChildEvaluator(dtype="float32").generate(
        chassis, (("chassis", None), ("leaf", unbroken)), ["what does step 3 do?", "why?"], 8
    )
    assert list(answers) == ["chassis", "leaf"]
    assert all(len(texts) == 2 for texts in answers.values())
    assert answers["chassis"] != answers["leaf"]


def test_any_other_architecture_is_trained_through_transformers_and_peft(tmp_path: Path) -> None:
    chassis = tiny_llama.build(tmp_path / "mistral", model_type="mistral")
    schedule = Schedule(steps=4, batch=4, learning_rate=5e-3)
    job = TrainJob(tmp_path / "work", chassis, examples(12), schedule)
    trained = ChildTrainer(dtype="float32").train(job)
    read_adapter(trained.adapter.read_bytes(), open_chassis(chassis))
    losses = ChildEvaluator(dtype="float32").losses(
        EvaluateJob(chassis, examples(4), (("chassis", None), ("leaf", trained.adapter)))
    )
    assert sum(losses.by_label["leaf"]) < sum(losses.by_label["chassis"])


@pytest.mark.parametrize("paused", [False, True], ids=["at work", "paused"])
def test_the_child_ends_when_its_parent_is_killed(
    tmp_path: Path, chassis: Path, paused: bool
) -> None:
    if paused and not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a stopped process that its parent is gone")
    parent = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from leaves.ports import Example, Schedule, TrainJob
        from leaves.training.child import ChildTrainer

        trainer = ChildTrainer(dtype="float32")
        examples = tuple(Example(str(n), f"ask {n}", f"answer {n}") for n in range(16))
        job = TrainJob(Path(sys.argv[1]), Path(sys.argv[2]), examples, Schedule(steps=100_000))

        def told(progress):
            if progress.done == 1:
                if sys.argv[3] == "True":
                    trainer.pause()
                print(trainer._running.process.pid, flush=True)

        trainer.train(job, told)
        """
    )
    root = str(Path(tiny_llama.__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", parent, str(tmp_path / "work"), str(chassis), str(paused)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    watch = os.pidfd_open(child)
    process.kill()
    process.wait()
    process.stdout.close()
    ended = readable(watch, 60)
    os.close(watch)
    if not ended:
        os.kill(child, signal.SIGKILL)
    assert ended, "the child outlived its parent by a minute"


def test_a_child_outlives_the_thread_that_asked_for_it(chassis: Path) -> None:
    evaluator = ChildEvaluator(dtype="float32")
    thread = threading.Thread(target=evaluator.losses, args=(judged(chassis, None),))
    thread.start()
    thread.join()
    first = pid_of(evaluator)
    assert evaluator.losses(judged(chassis, None)).tokens
    assert pid_of(evaluator) == first
    evaluator.close()


def test_the_parents_side_never_imports_torch() -> None:
    modules = "leaves.training.child leaves.training.evaluate leaves.training.preprocess "
    modules += "leaves.training.package leaves.training.chassis leaves.bundle"
    code = f"import sys, {', '.join(modules.split())}; sys.exit('torch' in sys.modules)"
    root = str(Path(tiny_llama.__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )


def judged(chassis: Path, *adapters: Path | None) -> EvaluateJob:
    return EvaluateJob(chassis, examples(2), tuple((str(n), a) for n, a in enumerate(adapters)))


def pid_of(evaluator: ChildEvaluator) -> int:
    assert evaluator._running is not None
    return evaluator._running.process.pid


def test_the_child_that_judges_stays_for_the_next_order(chassis: Path, unbroken: Path) -> None:
    evaluator = ChildEvaluator(dtype="float32")
    bare = evaluator.losses(judged(chassis, None)).by_label["0"]
    first = pid_of(evaluator)
    assert evaluator.losses(judged(chassis, unbroken)).by_label["0"] != bare
    assert evaluator.losses(judged(chassis, None)).by_label["0"] == bare, "no adapter stays on"
    assert pid_of(evaluator) == first
    evaluator.close()


def test_a_refused_adapter_does_not_cost_the_child(tmp_path: Path, chassis: Path) -> None:
    evaluator = ChildEvaluator(dtype="float32")
    evaluator.losses(judged(chassis, None))
    first = pid_of(evaluator)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\0" * 64)
    with pytest.raises(BundleError):
        evaluator.losses(judged(chassis, bad))
    evaluator.losses(judged(chassis, None))
    assert pid_of(evaluator) == first
    evaluator.close()


def test_a_child_that_failed_takes_no_other_order(tmp_path: Path, chassis: Path) -> None:
    evaluator = ChildEvaluator(dtype="float32")
    evaluator.losses(judged(chassis, None))
    first = pid_of(evaluator)
    with pytest.raises(TrainingError):
        evaluator.losses(judged(tmp_path / "none", None))
    evaluator.losses(judged(chassis, None))
    assert pid_of(evaluator) != first
    evaluator.close()


def test_an_idle_child_ends_by_itself_and_another_takes_its_place(chassis: Path) -> None:
    evaluator = ChildEvaluator(dtype="float32", keep_s=0.05)
    evaluator.losses(judged(chassis, None))
    running = evaluator._running
    if running is not None:  # it may be gone already
        watch = os.pidfd_open(running.process.pid)
        ended = readable(watch, 60)
        os.close(watch)
        assert ended
    assert evaluator.losses(judged(chassis, None)).tokens
    evaluator.close()


def test_a_chassis_that_was_changed_in_memory_is_noticed(chassis: Path) -> None:
    import torch

    from leaves.training.chassis import ChassisError
    from leaves.training.worker import _Model

    model = _Model(chassis, torch.float32)
    model.clear()
    model.backend.norm.weight[0] += 1e-3  # type: ignore[attr-defined]
    with pytest.raises(ChassisError, match="was changed"):
        model.clear()
