"""A leaf's adapter as a file for other programs computes what the leaf computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_llama
from support_adapters import ALPHA, ORIGIN, RANK, foreign_leaf, home_of, own_leaf
from support_llamacpp import MISSING, gguf_of, llama_server

from leaves.gguf_export import NoGgufError, gguf_tensors
from leaves.planted import PROMPT
from leaves.training.chassis import open_chassis
from node import leaf_export
from node.app import App
from node.cli import main
from node.foreign import State
from node.leaf_export import NoExportError, taken

# PEFT asks transformers for something by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROOVE_CACHE", str(folder / "cache"))
        patch.setenv("GROOVE_HOME", str(folder / "home"))
        app = home_of(folder, tiny_llama.build(folder / "chassis"))
        app.identity  # noqa: B018 - makes the keys, so that it is a home for commands
        own_leaf(app, 1, "async-python")
        foreign_leaf(app, 2, "k8s", State.ACCEPTED)
        yield app


def run(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["leaf", "export", *words])
    assert ended.value.code == code


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def logprobs(app: App, folder: Path | None) -> Any:
    """Of the token after the prompt, by transformers and PEFT."""
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(app.chassis.path, dtype=torch.float32)
    if folder is not None:
        model = PeftModel.from_pretrained(model, str(folder))
    ids = Tokenizer.from_file(str(app.chassis.path / "tokenizer.json")).encode(PROMPT).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    return torch.log_softmax(logits, -1).numpy()


def test_peft_loads_the_folder_and_a_card_names_licence_and_terms(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "peft"
    run("async-python", "--peft", "--to", str(to), "--json")
    assert told(capsys)["licence"] == "CC-BY-4.0"
    config = json.loads((to / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    assert config["target_modules"] == sorted(app.chassis.targets)
    assert "own prompts only" in (to / "README.md").read_text()
    assert abs(logprobs(app, to) - logprobs(app, None)).max() > 0.5  # it does something


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_llama_cpp_computes_with_the_gguf_what_transformers_computes_with_peft(
    app: App, tmp_path: Path
) -> None:
    peft, gguf = tmp_path / "peft", tmp_path / "leaf.gguf"
    run("async-python", "--peft", "--to", str(peft))
    run("async-python", "--gguf", "--to", str(gguf))
    body = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": 20}
    with llama_server(gguf_of(app.chassis.path, tmp_path / "base.gguf"), [gguf]) as url:
        for scale, folder in ((0.0, None), (1.0, peft)):
            asked = body | {"lora": [{"id": 0, "scale": scale}]}
            answer = httpx.post(f"{url}/completion", json=asked, timeout=20).json()
            wanted = logprobs(app, folder)
            for each in answer["completion_probabilities"][0]["top_logprobs"]:
                assert each["logprob"] == pytest.approx(wanted[each["id"]], abs=0.02)


def test_a_foreign_leaf_names_its_origin_and_its_terms(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("k8s", "--gguf", "--to", str(tmp_path / "k8s.gguf"))
    said = capsys.readouterr().out
    assert ORIGIN[:16] in said
    assert "own prompts only" in said


def test_what_is_there_already_is_left_as_it_is(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for kind in ("--peft", "--gguf"):
        run("async-python", kind, "--to", str(mine), code=1)
        assert "there already" in capsys.readouterr().err
    assert mine.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [mine]


def test_all_leaves_and_the_probe_go_into_a_folder_with_the_command_that_serves_them(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # what is there is not written again
        run("--gguf", "--all", "--to", str(tmp_path / "all"), "--json")
        said = told(capsys)
        names = sorted(each["name"] for each in said["exported"])
        assert names == ["async-python", "groove-probe", "k8s"]
        assert said["command"].count("--lora ") == 3
        assert said["command"].endswith("--lora-init-without-apply")
    for each in said["exported"]:
        assert leaf_export.digest_in(each["path"])


def test_a_node_without_leaves_is_told_so_and_starts_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    assert App.open(create=True).origin
    run("--gguf", "--all", "--to", str(tmp_path / "all"), code=1)
    said = capsys.readouterr()
    assert "nothing to export" in said.err and "llama-server" not in said.out


def test_a_leaf_that_was_only_heard_of_cannot_be_exported(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = home_of(tmp_path, app.chassis.path)
    foreign_leaf(other, 5, "heard", State.HEARD)
    with pytest.raises(NoExportError, match="not accepted"):
        leaf_export.exportable(other, "heard")


def test_a_damaged_bundle_is_not_exported(app: App, tmp_path: Path) -> None:
    other = home_of(tmp_path, app.chassis.path)
    leaf = own_leaf(other, 6, "broken")
    assert leaf.adapter is not None
    path = other.bundles.path(leaf.adapter.bundle)
    assert path is not None
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception, match="another blob"):
        taken(other, leaf.adapter.bundle)


def test_a_family_that_llama_cpp_calls_otherwise_is_refused(app: App, tmp_path: Path) -> None:
    found = taken(app, leaf_export.exportable(app, "async-python").bundle)
    folder = tiny_llama.build(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))
    with pytest.raises(NoGgufError, match="gpt_neox"):
        gguf_tensors(found.adapter, open_chassis(folder))


@pytest.mark.parametrize(
    "words",
    [
        ("async-python",),
        ("async-python", "--peft", "--gguf"),
        ("--peft",),
        ("--peft", "--all", "--to", "x"),
        ("--gguf", "--all"),
    ],
)
def test_what_makes_no_sense_is_misuse(app: App, words: tuple[str, ...]) -> None:
    run(*words, code=2)
