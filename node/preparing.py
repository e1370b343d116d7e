"""The models that a node works with, made ready on this machine: what `init` does first."""

from __future__ import annotations

from pathlib import Path

from leaves.ports import Report, silent

from . import config as config_file
from .app import ModelError
from .home import groove_cache, home_path


def prepare_models(report: Report = silent) -> dict[str, str]:
    """Convert the packaged chassis and encoder into the cache, once; their folders.

    The packaged encoder is not needed where groove.toml names another: that one is looked at, so
    that a wrong path is told now and not by the first round.
    """
    from leaves.training.chassis import ChassisError, prepare_chassis
    from router.minilm_encoder import EncoderError, prepare
    from router.sentence_encoder import inspect

    configured = config_file.load(home_path()).encoder.path
    try:
        cache = groove_cache()
        if configured:
            encoder = inspect(Path(configured).expanduser(), cache).folder
        else:
            encoder = prepare(cache, report)
        chassis = prepare_chassis(cache, report)
    except (ChassisError, EncoderError) as problem:
        raise ModelError(str(problem), unchanged="Nothing was changed.") from None
    return {"encoder": str(encoder), "chassis": str(chassis)}
