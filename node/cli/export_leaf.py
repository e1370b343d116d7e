"""A leaf's adapter as a file for other programs: PEFT's layout or GGUF."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from node import leaf_export
from node.app import App
from node.errors import MisuseError
from node.home import owner_path
from node.leaf_export import Exportable
from node.terminal import Terminal

from .base import AsJson, leaf


@leaf.command(name="export")
def leaf_export_(
    name: str | None = None,
    /,
    *,
    peft: Annotated[
        bool,
        Parameter(negative="", help="A folder for transformers and PEFT, vLLM, SGLang, Ollama."),
    ] = False,
    gguf: Annotated[
        bool, Parameter(negative="", help="A file for llama.cpp's server and Ollama.")
    ] = False,
    to: Annotated[
        str | None, Parameter(help="Where; by default named after the leaf, here.")
    ] = None,
    base: Annotated[
        str | None,
        Parameter(help="With --peft: what the reader calls the chassis; by default its folder."),
    ] = None,
    all_: Annotated[
        bool,
        Parameter(
            name="--all",
            negative="",
            help="With --gguf: all leaves into the folder --to, and the command that starts "
            "llama.cpp's server with them.",
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Write a leaf's adapter for other programs, own or accepted from a peer.

    The bundle is checked on its way out. Whatever is there already is left as it is. An adapter
    knows what its sessions said: who gets the file may find it in there.

    Examples: `groove-node leaf export async-python --peft`,
    `groove-node leaf export --gguf --all --to ~/adapters`.
    """
    out = Terminal(json)
    if peft == gguf:
        raise MisuseError("say either --peft or --gguf", unchanged="Nothing was written.")
    app = App.open()
    if all_:
        if peft or name or to is None:
            raise MisuseError(
                "--all goes with --gguf and --to FOLDER, and with no leaf's name",
                unchanged="Nothing was written.",
            )
        _all(app, owner_path(to), out)
        return
    if name is None:
        raise MisuseError(
            "which leaf? `groove-node tree` lists them", unchanged="Nothing was written."
        )
    _one(app, leaf_export.exportable(app, name), gguf, to, base, out)


def _one(
    app: App, found: Exportable, gguf: bool, to: str | None, base: str | None, out: Terminal
) -> None:
    default = leaf_export.file_name(found.name, found.bundle)
    path = owner_path(to or (default if gguf else default.removesuffix(".gguf")))
    if gguf:
        taken = leaf_export.export_gguf(app, found, path)
    else:
        taken = leaf_export.export_peft(app, found, path, base or str(app.chassis.path))
    out.facts([("written", str(path)), *leaf_export.terms_of(found, taken.label)])
    out.done(leaf_export.as_json(found, path, taken.label))


def _all(app: App, folder: Path, out: Terminal) -> None:
    files, problems = leaf_export.export_all_gguf(app, folder, out.progress)
    for problem in problems:
        out.note(problem)
    rows = [(found.name, found.origin[:16] or "this node", path.name) for found, path in files]
    out.table(("LEAF", "MADE BY", "FILE"), rows)
    words = leaf_export.llama_command(app, [path for _, path in files])
    command = shlex.join(words)
    out.line("start the server with:")
    out.line(command)
    exported = [leaf_export.as_json(found, path) for found, path in files]
    out.done({"exported": exported, "not_exported": problems, "command": command})
