"""How this package starts a Python child: the same interpreter, the same code, offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[2])  # where `leaves` itself is imported from


def command(module: str, *arguments: str) -> list[str]:
    """-P: the folder that the owner happens to stand in must not shadow a library."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(*, threads: int = 1) -> dict[str, str]:
    """The child's environment.

    Waiting threads sleep instead of spinning: on cores shared with other work, spinning made two
    threads eight times slower than one; on idle cores sleeping costs about 7 %.
    """
    path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
