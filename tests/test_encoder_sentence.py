"""Encoders by path: a SentenceTransformer folder, with its own tag, and no code of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from leaves.ports import Progress
from leaves.training import chassis
from node import doctor
from node.app import App, ModelError
from node.capture import CaptureItem, Scope, SessionEnd
from node.capture.queue import open_queue
from node.config import FILE
from node.home import HomeError, private_dir
from node.importing import Wanted, import_sessions
from node.preparing import prepare_models
from router.minilm_encoder import DIMENSIONS, ENC8, EncoderError
from router.sentence_encoder import SentenceEncoder, inspect

WORDS = ["how", "do", "i", "sort", "a", "list", "in", "python", "bake", "bread", "?", "##s"]
TEXTS = ["How do I sort a list in Python?", "bake bread", "", "\ud800 bread", "list " * 400]
WIDTH = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that SentenceTransformer saved: a tiny random BERT with a vocabulary of its own."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab={word: n for n, word in enumerate(vocabulary)}).save_pretrained(
        folder / "plain"
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "plain")
    words = Transformer(str(folder / "plain"), max_seq_length=32)
    SentenceTransformer(modules=[words, Pooling(WIDTH)], device="cpu").save(str(folder / "tiny"))
    return folder / "tiny"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def changed(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_folder_makes_unit_vectors_of_its_own_width(made: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder.open(made, tmp_path)
    told: list[Progress] = []
    vectors = encoder.encode(TEXTS * 10, told.append)
    assert vectors.shape == (50, WIDTH) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    for text, row in zip(TEXTS, vectors, strict=False):
        assert np.abs(encoder.encode_one(text) - row).max() < 1e-5
    assert [(p.done, p.total) for p in told] == [(32, 50), (50, 50)]
    assert (encoder.name, encoder.dimensions) == ("tiny", WIDTH)


def test_the_tag_is_told_without_loading_and_holds_when_the_folder_moves(
    made: Path, copied: Path, tmp_path: Path
) -> None:
    here = inspect(made, tmp_path)
    assert here.enc8 == inspect(copied, tmp_path).enc8 != ENC8
    assert len(here.enc8) == 8 and here.dimensions == WIDTH


@pytest.mark.parametrize("part", ["weights", "pooling", "cut"])
def test_whatever_changes_the_vectors_changes_the_tag(
    copied: Path, tmp_path: Path, part: str
) -> None:
    before = inspect(copied, tmp_path).enc8
    match part:
        case "weights":
            with (copied / "model.safetensors").open("r+b") as file:
                file.seek(-4, 2)
                file.write(b"\1\2\3\4")
        case "pooling":
            changed(copied / "1_Pooling" / "config.json", pooling_mode="cls")
        case _:
            (copied / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert inspect(copied, tmp_path).enc8 != before


def test_pickled_weights_are_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="holds no safetensors"):
        SentenceEncoder.open(copied, tmp_path)


@pytest.mark.parametrize(
    "module",
    ["os.system", "tiny.Evil", "sentence_transformers.models.CLIPModel"],
)
def test_modules_that_are_not_known_are_refused(copied: Path, tmp_path: Path, module: str) -> None:
    modules = json.loads((copied / "modules.json").read_text())
    (copied / "modules.json").write_text(
        json.dumps([*modules, {"idx": 2, "name": "2", "path": "2_X", "type": module}])
    )
    with pytest.raises(EncoderError, match="only Dense, Normalize, Pooling, Transformer are"):
        SentenceEncoder.open(copied, tmp_path)


def test_a_folder_that_is_none_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"nowhere is not a folder"):
        inspect(tmp_path / "nowhere", tmp_path)
    with pytest.raises(EncoderError, match=r"modules.json is missing: .* has saved"):
        inspect(tmp_path, tmp_path)


def test_damaged_weights_are_told(copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(EncoderError, match="tiny: "):
        SentenceEncoder.open(copied, tmp_path)


def test_an_encoder_of_the_config_is_the_one_of_the_home(made: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / FILE).write_text(f'[encoder]\npath = "{made}"\n')
    app = App(tmp_path)
    encoder = app.encoder()
    assert encoder is app.encoder()
    assert (encoder.enc8, encoder.dimensions) == (app.enc8, app.dimensions)
    assert app.dimensions == WIDTH
    app.embeddings.append(["a"], [1], encoder.encode(["bake bread"]))
    (tmp_path / FILE).unlink()
    other = App(tmp_path)
    assert (other.enc8, other.dimensions) == (ENC8, DIMENSIONS)
    with pytest.raises(HomeError, match="not the one that this home was begun with") as told:
        _ = other.embeddings
    assert "Set `path` under [encoder] in groove.toml back" in told.value.next_step
    assert app.embeddings.ids() == ["a"], "nothing was changed"


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """A home whose groove.toml names the tiny encoder, and whose owner has consented."""
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GROOVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GROOVE_CACHE", str(tmp_path / "cache"))
    (private_dir(tmp_path / "home") / FILE).write_text(f'[encoder]\npath = "{made}"\n')
    app = App.open(create=True)
    app.consent.record_consent(app.user_id, True, "1.0", scopes=(Scope.CAPTURE,))
    return app


def tags(app: App) -> list[tuple[str, str]]:
    closing = [record.metadata for record in app.corpus.records() if record.closes]
    told = [about["session_embedding"] for about in closing]
    return [(each["model"], each["enc8"]) for each in told]


def test_closing_records_name_the_encoder_of_the_config(home: App, tmp_path: Path) -> None:
    lines = tmp_path / "asks.jsonl"
    lines.write_text('{"prompt": "How do I bake bread?", "completion": "In an oven."}\n')
    import_sessions(home, Wanted("jsonl", [str(lines)]))
    assert tags(home) == [("tiny", home.enc8.hex())]
    queue = open_queue()
    assert queue is not None
    queue.offer(CaptureItem("s", "How do I sort a list?", "prompt"))
    queue.offer(SessionEnd("s", "accepted"))
    assert queue.close(60)
    assert sorted(tags(home)) == [("tiny", home.enc8.hex())] * 2


def test_a_folder_that_is_gone_stops_no_capture(home: App) -> None:
    (home.home / FILE).write_text('[encoder]\npath = "/nowhere/at/all"\n')
    queue = open_queue()
    assert queue is not None
    queue.offer(CaptureItem("s", "How do I sort a list?", "prompt"))
    queue.offer(SessionEnd("s", "accepted"))
    assert queue.close(60)
    assert tags(home) == [("all", "")]


def test_the_packaged_encoder_is_not_converted_where_another_is_named(
    home: App, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chassis, "prepare_chassis", lambda cache, report: cache / "chassis")
    assert prepare_models()["encoder"] == str(made)
    assert not [path for path in (tmp_path / "cache").glob("encoder-*") if path.is_dir()]
    (encoder,) = [found for found in doctor.examine() if found.check == "encoder"]
    assert encoder.verdict == "ok" and f"{WIDTH} dimensions" in encoder.text
    (home.home / FILE).write_text('[encoder]\npath = "/nowhere/at/all"\n')
    with pytest.raises(ModelError, match="/nowhere/at/all is not a folder"):
        prepare_models()


def test_a_wrong_path_is_told_as_the_owners_to_mend(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / FILE).write_text('[encoder]\npath = "/nowhere/at/all"\n')
    with pytest.raises(ModelError, match="/nowhere/at/all is not a folder"):
        App(tmp_path).encoder()
