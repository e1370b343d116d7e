"""Which encoder will embed a session: its closing record says so, and no model is loaded for it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from node.config import EncoderConfig
from router.minilm_encoder import ENC8, EncoderError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncoderTag:
    """Which encoder will embed the session; the vector itself is made later, and kept elsewhere."""

    model: str
    enc8: str  # 16 hex digits; empty of a folder that could not be read


DEFAULT_ENCODER = EncoderTag("all-MiniLM-L6-v2", ENC8.hex())


def configured(encoder: EncoderConfig, cache: Path) -> EncoderTag:
    """The tag of the encoder that groove.toml names.

    A folder that cannot be read stops no capture: the tag is a hint, and `groove-node doctor` and
    every round say what is wrong with the folder.
    """
    if not encoder.path:
        return DEFAULT_ENCODER
    from router.sentence_encoder import inspect

    folder = Path(encoder.path).expanduser()
    try:
        model = inspect(folder, cache)
    except EncoderError as problem:
        log.warning("encoder not read reason=%s", problem)
        return EncoderTag(folder.name, "")
    return EncoderTag(model.name, model.enc8.hex())
