"""`groove-node completion`: a script by which a shell completes this program's words.

The parser writes it from the same table as `--help`, so it names no command that is not there. It
is printed, and installed by the owner: no file of a shell is changed by itself.
"""

from __future__ import annotations

import sys
from typing import Literal

from node.terminal import Terminal

from .base import command

_LOAD = {
    "bash": (
        "mkdir -p ~/.local/share/bash-completion/completions\n"
        "groove-node completion bash > ~/.local/share/bash-completion/completions/groove-node"
    ),
    "zsh": (
        "mkdir -p ~/.zfunc && groove-node completion zsh > ~/.zfunc/_groove-node\n"
        "and in ~/.zshrc, before compinit: fpath+=~/.zfunc; autoload -Uz compinit; compinit"
    ),
    "fish": (
        "mkdir -p ~/.config/fish/completions\n"
        "groove-node completion fish > ~/.config/fish/completions/groove-node.fish"
    ),
}


@command.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes commands and options in your shell.

    bash, for good (new shells have it; it needs the package bash-completion):

        groove-node completion bash > ~/.local/share/bash-completion/completions/groove-node

    bash, for this shell alone: `source <(groove-node completion bash)`

    zsh, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc:

        groove-node completion zsh > ~/.zfunc/_groove-node

    fish:

        groove-node completion fish > ~/.config/fish/completions/groove-node.fish
    """
    sys.stdout.write(command.generate_completion(shell=shell).rstrip("\n") + "\n")
    if sys.stdout.isatty():  # it was to be read, or asked for without knowing where it belongs
        Terminal(False).note(f"to have it in each new shell:\n{_LOAD[shell]}")
