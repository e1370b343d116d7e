"""`python -m node.api.pages.replaying HOME PROPOSAL`: what a proposal would do, as a line of JSON.

A thousand sessions through two tables of hundreds of leaves take seconds: no page waits for it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from node import approvals
from node.app import App


def read(output: bytes) -> approvals.Effect | str:
    """What such a child said."""
    try:
        return msgspec.json.decode(output.splitlines()[-1], type=approvals.Effect | str)
    except (IndexError, msgspec.DecodeError):
        return "the replay said nothing that can be read"


def main(arguments: list[str]) -> None:
    app = App(Path(arguments[0]))
    found = approvals.effect(app, approvals.find(app, arguments[1]))
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
