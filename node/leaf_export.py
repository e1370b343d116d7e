"""A leaf's adapter taken out of its bundle, for programs that know nothing of leaves.

Own leaves, and foreign ones that this node accepted. A bundle is checked again on its way out: what
lies on the disk may not be what was written, and others do not look as closely as we do.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaves.bundle import (
    AdapterFile,
    BundleError,
    CheckedBundle,
    Label,
    check_form,
    read_adapter,
)
from leaves.gguf_export import NoGgufError, write_gguf
from leaves.model import Leaf
from leaves.peft_export import write_peft
from leaves.ports import Progress, Report, silent

from . import overview
from .bundles import checked
from .errors import OwnerError
from .foreign import Known, State
from .home import sync_dir

if TYPE_CHECKING:
    from .app import App

DIGEST_CHARS = 32  # of a bundle's address, in names of files and adapters: 128 bits are enough
_DIGEST = re.compile(r"\.([0-9a-f]{32})\.gguf$")


class NoExportError(OwnerError):
    """A leaf cannot be exported, or not to there."""


@dataclass(frozen=True, slots=True)
class Exportable:
    """A leaf that has an adapter, and where it is from."""

    leaf: str
    name: str
    bundle: str
    origin: str  # empty: own


@dataclass(frozen=True, slots=True)
class Taken:
    """An adapter out of its bundle, its form checked."""

    bundle: CheckedBundle
    adapter: AdapterFile

    @property
    def label(self) -> Label:
        return self.bundle.label


def exportable(app: App, name: str) -> Exportable:
    """The leaf of this name or id; raises NoExportError if there is nothing to export."""
    found = overview.any_leaf(app, name)
    if isinstance(found, Leaf):
        if found.adapter is None:
            raise _nothing(f"{found.name} is a {found.stage}: no adapter of it was trained yet")
        return Exportable(found.id, found.name, found.adapter.bundle, "")
    if found.state is not State.ACCEPTED or found.leaf.root is None:
        raise _nothing(
            f"{found.name} of another origin is {found.state} here, not accepted",
            "`groove-node fetch NAME` has it judged; `groove-node leaf show NAME` says how far "
            "it is.",
        )
    return _of(found)


def all_exportable(app: App) -> list[Exportable]:
    """Every live own leaf that has an adapter, then every foreign one that was accepted."""
    own = [
        Exportable(leaf.id, leaf.name, leaf.adapter.bundle, "")
        for leaf in sorted(app.forests.forest(), key=lambda leaf: leaf.id)
        if leaf.adapter is not None and leaf.stage.live
    ]
    accepted = [known for known in app.foreign.all() if known.state is State.ACCEPTED]
    return own + [_of(known) for known in accepted if known.leaf.root]


def _of(known: Known) -> Exportable:
    assert known.leaf.root is not None
    return Exportable(known.leaf.leaf, known.name, known.leaf.root, known.leaf.origin)


def taken(app: App, address: str) -> Taken:
    """Take a bundle apart and check its form; raises NoExportError."""
    path = app.bundles.path(address)
    if path is None:
        raise _nothing(f"the bundle {address[:12]}… is not here", "`groove-node fetch` gets it.")
    try:
        data = checked(address, path.read_bytes(), "the node")
        bundle = check_form(data, app.chassis)
        return Taken(bundle, read_adapter(bundle.adapter, app.chassis))
    except BundleError as problem:
        raise _nothing(f"the bundle {address[:12]}… is refused: {problem}") from None


def file_name(name: str, address: str) -> str:
    """Of an adapter in GGUF: a name to read, and the digest that it is found by."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower())[:60].strip("-") or "leaf"
    return f"{readable}.{address[:DIGEST_CHARS]}.gguf"


def digest_in(path: str) -> str | None:
    """The digest in the name of a file that `file_name` named."""
    found = _DIGEST.search(path)
    return found.group(1) if found else None


def export_peft(app: App, leaf: Exportable, to: Path, base: str) -> Taken:
    """Write the new folder `to`."""
    found = taken(app, leaf.bundle)
    with_new_folder(
        to, lambda folder: write_peft(found.bundle, found.adapter.tensors, folder, base)
    )
    return found


def export_gguf(app: App, leaf: Exportable, to: Path) -> Taken:
    """Write the new file `to`."""
    refuse_existing(to)
    found = taken(app, leaf.bundle)
    to.parent.mkdir(parents=True, exist_ok=True)
    work = to.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        write_gguf(work, found.adapter, found.label, app.chassis)
        _keep(work)
        os.link(work, to)  # fails if somebody else was first
    except NoGgufError as problem:
        raise _nothing(str(problem), "`--peft` writes what transformers and vLLM read.") from None
    except FileExistsError:
        raise _exists(to) from None
    finally:
        work.unlink(missing_ok=True)
    sync_dir(to.parent)
    return found


def export_all_gguf(
    app: App, to: Path, report: Report = silent
) -> tuple[list[tuple[Exportable, Path]], list[str]]:
    """Have all leaves' adapters in a folder, and the probe's; what is there already is not written
    again.

    Returns the files, in order, and a sentence for each leaf that could not be written. Raises
    NoExportError if none could.
    """
    leaves, files, problems = all_exportable(app), [], []
    for number, leaf in enumerate(leaves):
        report(Progress("export", number, len(leaves), leaf.name))
        path = to / file_name(leaf.name, leaf.bundle)
        try:
            if not path.exists():
                export_gguf(app, leaf, path)
            files.append((leaf, path))
        except OwnerError as problem:
            problems.append(f"{leaf.name}: {problem}")
    if not files:
        why = "; ".join(problems) or "no leaf has an adapter yet"
        raise _nothing(f"there is nothing to export: {why}")
    files += _probe(app, to)
    report(Progress("export", len(leaves), len(leaves), "done"))
    return files, problems


def _probe(app: App, to: Path) -> list[tuple[Exportable, Path]]:
    """The adapter by which `groove-node doctor` finds out whether adapters are put on."""
    from leaves.planted import NoPlantError

    from .api.backends import probe

    try:
        prepared = probe.prepared(app)
    except NoPlantError:  # then it is not asked for either
        return []
    adapter = prepared.adapter
    leaf = Exportable(adapter.leaf, adapter.name, adapter.bundle, "")
    path = to / file_name(adapter.name, adapter.bundle)
    if not path.exists():
        with probe.at_hand(app, prepared):
            export_gguf(app, leaf, path)
    return [(leaf, path)]


def llama_command(app: App, adapters: Sequence[Path]) -> list[str]:
    """The words that start llama.cpp's server with these adapters."""
    from leaves.training.chassis import ChassisError, packaged_gguf

    model = "CHASSIS.gguf"
    if not app.config.training.chassis:
        try:
            model = str(packaged_gguf())
        except ChassisError:
            model = "SmolLM2-135M-Instruct.gguf"
    words = ["llama-server", "-m", model, "--host", "127.0.0.1", "--port", "8080", "--jinja"]
    for path in adapters:
        words += ["--lora", str(path)]
    return [*words, "--lora-init-without-apply"] if adapters else words


def terms_of(leaf: Exportable, label: Label) -> list[tuple[str, str]]:
    """What whoever gets the file must know."""
    facts = [("licence", label.licence or "not stated"), ("terms", label.terms or "not stated")]
    if leaf.origin:
        facts.insert(0, ("made by", f"another origin, {leaf.origin[:16]}…: its terms bind you"))
    return facts


def with_new_folder(to: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `to`, whole or not at all. Raises NoExportError if something is there."""
    refuse_existing(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    work = to.with_name(f".{uuid.uuid4().hex}.tmp")
    work.mkdir(mode=0o700)
    try:
        fill(work)
        for path in work.iterdir():
            _keep(path)
        try:
            work.rename(to)
        except OSError:
            raise _exists(to) from None
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    sync_dir(to.parent)


def refuse_existing(to: Path) -> None:
    if to.exists() or to.is_symlink():
        raise _exists(to)


def _keep(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _exists(to: Path) -> NoExportError:
    return NoExportError(
        f"{to} is there already",
        unchanged="It was left as it is, and nothing was written.",
        next_step="Name another place: `--to PATH`.",
    )


def _nothing(what: str, next_step: str = "`groove-node tree` lists the leaves.") -> NoExportError:
    return NoExportError(what, unchanged="Nothing was written.", next_step=next_step)


def as_json(leaf: Exportable, path: Path, label: Label | None = None) -> dict[str, Any]:
    found = {"leaf": leaf.leaf, "name": leaf.name, "origin": leaf.origin, "path": str(path)}
    return found | ({"licence": label.licence, "terms": label.terms} if label else {})
