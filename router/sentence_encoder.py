"""An `Encoder` made of a SentenceTransformer folder, for owners who know a better one.

The folder is read and never written to; nothing is downloaded, no code of it is run, and weights
are taken from safetensors alone. What its vectors may be compared with is told from the files,
before torch is loaded: eight bytes over weights, tokenizer, pooling and cuts.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leaves.model import Matrix, Vector, unit
from leaves.ports import Progress, Report, silent

from .minilm_encoder import EncoderError
from .ports import ENCODED_CHARS
from .soundness import sha256_once
from .texts import cut

BATCH = 32
LEDGER_FILE = "encoder-hashes.json"
MODULES = frozenset({"Transformer", "Pooling", "Dense", "Normalize"})
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json"),
    *("sentencepiece.bpe.model", "spiece.model"),
)
_CUT_FILES = ("sentence_bert_config.json", "sentence_roberta_config.json")  # max_seq_length
_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class SentenceModel:
    """What a folder's files tell of its encoder."""

    folder: Path
    name: str
    enc8: bytes
    dimensions: int


def inspect(folder: Path, cache_dir: Path) -> SentenceModel:
    """Read what a SentenceTransformer folder is, loading no model; hashes its files at most once.

    Raises EncoderError if it is not one that can be used.
    """
    if not folder.is_dir():
        raise EncoderError(f"{folder} is not a folder, and [encoder] path names no other encoder")
    modules = _modules(folder)
    weights = [
        _weights(kind, folder / path) for kind, path in modules if kind in {"Transformer", "Dense"}
    ]
    tokens = [folder / modules[0][1] / name for name in _TOKENIZER_FILES]
    files = [path for group in weights for path in group]
    files += [path for path in tokens if path.is_file()]
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        hashes = sha256_once(files, cache_dir / LEDGER_FILE)
    except OSError as problem:
        raise EncoderError(f"{folder} cannot be read: {problem}") from None
    modes, dimensions = _shape(folder, modules)
    lines = ["groove/encoder/2"]
    lines += [
        f"{path.relative_to(folder)} {digest}" for path, digest in zip(files, hashes, strict=True)
    ]
    lines += ["+".join(modes), "l2", str(ENCODED_CHARS), *_cuts(folder / modules[0][1])]
    lines.append(_prompt(folder))
    enc8 = hashlib.sha256("\n".join(lines).encode()).digest()[:8]
    return SentenceModel(folder, folder.resolve().name, enc8, dimensions)


class SentenceEncoder:
    """A SentenceTransformer on the CPU. Safe to call from several threads; they take turns."""

    def __init__(self, model: SentenceModel, loaded: Any) -> None:
        self._model = model
        self._loaded = loaded
        self._turn = threading.Lock()  # its tokenizer keeps padding and cuts as state

    @classmethod
    def open(cls, folder: Path, cache_dir: Path, threads: int = 1) -> SentenceEncoder:
        """Load the model; some seconds, for torch.

        `threads` are torch's own, of the whole process. Raises EncoderError.
        """
        model = inspect(folder, cache_dir)
        import torch
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        torch.set_num_threads(threads)
        transformers_logging.disable_progress_bar()
        try:
            loaded = SentenceTransformer(
                str(folder.resolve()),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        except (
            OSError,
            ValueError,
            LookupError,
            RuntimeError,
            TypeError,
            SafetensorError,
        ) as problem:
            raise EncoderError(f"{folder}: {type(problem).__name__}: {problem}") from None
        found = loaded.get_embedding_dimension()
        if found != model.dimensions:
            raise EncoderError(
                f"{folder} makes {found}-d vectors, its pooling is configured for "
                f"{model.dimensions}-d ones"
            )
        return cls(model, loaded)

    @property
    def enc8(self) -> bytes:
        return self._model.enc8

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def dimensions(self) -> int:
        return self._model.dimensions

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        """Return one unit row per text, in order; texts of like length share a batch."""
        out = np.empty((len(texts), self.dimensions), np.float32)
        heads = [cut(text) for text in texts]
        order = sorted(range(len(heads)), key=lambda at: (len(heads[at]), at))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            out[rows] = self._run([heads[at] for at in rows])
            report(Progress("embed", start + len(rows), len(order)))
        return out

    def encode_one(self, text: str) -> Vector:
        row: Vector = self._run([cut(text)])[0]
        return row

    def _run(self, heads: list[str]) -> Matrix:
        with self._turn:
            rows = self._loaded.encode(heads, batch_size=BATCH, show_progress_bar=False)
        return unit(np.asarray(rows, np.float32))


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and subfolder of each module. Only kinds that run no code of the folder's own pass."""
    found = _json(folder / "modules.json")
    try:
        modules = [(str(each["type"]), str(each["path"])) for each in found]
    except (TypeError, KeyError):
        raise EncoderError(f"{folder / 'modules.json'} does not list modules") from None
    out: list[tuple[str, str]] = []
    for type_, path in modules:
        kind = type_.rpartition(".")[2]
        if not type_.startswith("sentence_transformers.") or kind not in MODULES:
            raise EncoderError(
                f"{folder} has a module {type_!r}; only {', '.join(sorted(MODULES))} are supported"
            )
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise EncoderError(f"{folder} has a module outside of it: {path!r}")
        out.append((kind, path))
    if [kind for kind, _ in out][:2] != ["Transformer", "Pooling"]:
        raise EncoderError(f"{folder} does not begin with a Transformer and its Pooling")
    return out


def _weights(kind: str, module: Path) -> list[Path]:
    # A Dense whose weights have another name would be looked for in a pickle.
    files = sorted(module.glob("model.safetensors" if kind == "Dense" else "*.safetensors"))
    if not files:
        raise EncoderError(
            f"{module} holds no safetensors. Weights in other formats can run code when they are "
            "loaded: save the model anew with `SentenceTransformer(…).save(…)`"
        )
    return files


def _shape(folder: Path, modules: Sequence[tuple[str, str]]) -> tuple[list[str], int]:
    """The ways of pooling, and the dimensions of what comes out in the end."""
    path = folder / modules[1][1] / "config.json"
    pooling = _fields(path)
    given = pooling.get("pooling_mode")
    modes = [given] if isinstance(given, str) else list(given or ())
    modes = modes or [mode for key, mode in _POOLING_MODES.items() if pooling.get(key)] or ["mean"]
    width = pooling.get("embedding_dimension", pooling.get("word_embedding_dimension"))
    dimensions = _count(path, width) * len(modes)
    for kind, where in modules:
        if kind == "Dense":
            path = folder / where / "config.json"
            dense = _fields(path)
            if not str(dense.get("activation_function", "torch.nn.")).startswith("torch.nn."):
                raise EncoderError(f"{path} names an activation that is not torch's own")
            dimensions = _count(path, dense.get("out_features"))
    return modes, dimensions


def _cuts(module: Path) -> list[str]:
    for name in _CUT_FILES:
        if (module / name).is_file():
            told = _fields(module / name)
            return [f"{told.get('max_seq_length')} {told.get('do_lower_case', False)}"]
    return [""]


def _prompt(folder: Path) -> str:
    """The words that the model puts before each text, if it has such."""
    path = folder / "config_sentence_transformers.json"
    told = _fields(path) if path.is_file() else {}
    name, prompts = told.get("default_prompt_name"), told.get("prompts")
    return str(prompts.get(name, "")) if name and isinstance(prompts, dict) else ""


def _count(path: Path, value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise EncoderError(f"{path} tells no dimension of the vectors")
    return value


def _fields(path: Path) -> Mapping[str, Any]:
    found = _json(path)
    if not isinstance(found, dict):
        raise EncoderError(f"{path} is not a JSON object")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise EncoderError(
            f"{path} is missing: the folder is not one that SentenceTransformer has saved"
        ) from None
    except (OSError, ValueError) as problem:
        raise EncoderError(f"{path} cannot be read ({type(problem).__name__})") from None
