"""What the owner is told when something cannot be done: what, what stayed as it was, what next."""

from __future__ import annotations


class OwnerError(Exception):
    """Something the owner can mend. `cli.py` prints it and exits with `exit_code`: 2 where trying
    again is no use before it is mended, so that a service manager does not."""

    exit_code = 1

    def __init__(self, what: str, *, unchanged: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.unchanged = unchanged
        self.next_step = next_step


class MisuseError(OwnerError):
    """The command was given something it cannot take."""

    exit_code = 2
