"""What the node makes in its folders, by name: all else in them is somebody else's.

`uninstall` removes by this list. A name that is missing here is left behind and told of; nothing is
ever removed because it only lies beside what is the node's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

# Top names, and what of a folder is the node's; None: a file, or all that is in the folder.
Names = Mapping[re.Pattern[str], "re.Pattern[str] | None"]

_FILES = "|".join(
    (
        r"groove\.toml|user_id|api\.token|api\.sock|consent\.flag|mesh\.heard",
        r"deletion\.pending|rescan\.pending|uninstall\.pending|deletions\.jsonl",
        r"events\.jsonl(\.1)?|(node|run|service)\.log(\.\d)?",
        r"(capture_counts|chassis|known_values|night|pause|peers|pins|publish|run)\.json",
        r"(second_scan|shown|tries|usage|watch)\.json",
        r"(consent|foreign|leaves|mailbox|mesh)\.db(-wal|-shm|-journal)?(\.\d+\.aside)?",
        r"(capture_counts|config|keys|pins|publish|round|router|run)\.lock",
    )
)
_FOLDERS = (
    r"bundles|crashes|embeddings|exports|map|neighbours|rounds|router|training|training_data"
    r"|adapters-\w+"
)
_KEYS = (
    r"(root|op|transport|swarm)\.key|op\.doc|root\.away|(backup|restored)\.json"
    r"|change\.json(\.[0-9a-f]{8}\.aside)?|known_values\.key"
)


def _whole(names: str) -> re.Pattern[str]:
    """These names, and what a writer that was killed has left on its way to them."""
    return re.compile(rf"(?:{names})|\.(?:{names})\.[0-9a-f]{{1,32}}\.tmp")


HOME: Final[Names] = {
    _whole(f"{_FILES}|{_FOLDERS}"): None,
    re.compile(r"keys|\.keys\.\d+\.tmp"): _whole(_KEYS),
}
CACHE: Final[Names] = {
    re.compile(
        r"encoder-[0-9a-f]{16}(\.lock|\.new-\d+)?|encoder-hashes\.json|[0-9a-f]{32}\.vscdb"
        r"|\.encoder-hashes\.json\.[0-9a-f]{32}\.tmp"
    ): None,
    re.compile("chassis"): re.compile(r"\.?smollm2-135m-[0-9a-f]{12}(\.lock)?|\.building-\w+"),
    re.compile("canaries"): _whole(r"\.?[0-9a-f]{32}\.(json|lock)"),
    re.compile("kingfisher"): re.compile(r"[0-9a-f]{32}\.vscdb"),
    re.compile("probes"): _whole(r"[0-9a-f]{32}\.probe"),
}


def ours(folder: Path, names: Names) -> Iterator[Path]:
    """What of a folder is the node's, in order; of one with a stranger in it, its parts."""
    for top in sorted(folder.iterdir()):
        mine, others = _split(top, names)
        if others:
            yield from mine
        elif mine or is_known(top.name, names):
            yield top


def strangers(folder: Path, names: Names) -> Iterator[Path]:
    """What of a folder is not the node's, in order: what stays."""
    for top in sorted(folder.iterdir()):
        if is_known(top.name, names):
            yield from _split(top, names)[1]
        else:
            yield top


def _split(top: Path, names: Names) -> tuple[list[Path], list[Path]]:
    """What lies in a folder of which only a part may be the node's: its own, and others'."""
    inside = next((inner for name, inner in names.items() if name.fullmatch(top.name)), None)
    if inside is None or top.is_symlink() or not top.is_dir():
        return [], []
    found = sorted(top.iterdir())
    mine = [path for path in found if inside.fullmatch(path.name)]
    return mine, [path for path in found if path not in mine]


def is_known(name: str, names: Names) -> bool:
    """Whether the node gives something in this folder such a name."""
    return any(each.fullmatch(name) for each in names)
