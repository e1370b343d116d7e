"""Makes `docs/what-leaves.md`: each structure that may leave the machine, with real bytes of it.

The list is `gossip/wire.py`, and the examples are encoded by the node's own encoder from fixed
keys, so that the page cannot say less than the code sends. Run it after a deliberate change of the
wire, and look at what changed: `python tests/make_what_leaves.py`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import support_wire as example
from gossip_kit import seed
from make_wire_vectors import plain

from gossip import wire
from gossip.wire import BYTES_MAX, BundleMessage, PeersMessage, SyncMessage, Wire, encode
from leaves.bundle import Label, Privacy, encode_label

PATH = Path(__file__).parent.parent / "docs" / "what-leaves.md"
SHOWN_BYTES = 256  # of an example; wire-vectors.json has all of each

LABEL = Label(
    leaf="ab" * 16,
    name="async-python",
    chassis="cd" * 8,
    adapter=seed("adapter").hex(),
    rank=16,
    alpha=32,
    targets=("q_proj", "v_proj"),
    method="sft",
    dtype="float16",
    tokens=120_000,
    evaluation=None,
    control_root="",
    control_bytes=0,
    privacy=Privacy(contributors=1, sessions=512, canary_exposure=None, scrub_rules="rules/1"),
    lineage=(),
    licence="CC0-1.0",
    terms="own",
)

# What makes a structure leave, and who gets it.
WHEN = {
    "Head": "with `publish`: to linked peers, who pass it on",
    "Card": "with `publish`: the live leaves that the owner shows",
    "Index": "with `publish`: which leaves there are, by hash",
    "Usage": "with `publish` and `fetch`: weekly, of foreign leaves that are used here",
    "Retract": "when a leaf is retracted or data deleted: without any consent, for it takes back",
    "KeyDoc": "with the first signed thing",
    "Fork": "when two heads of one key are found, whoever's: proof for others",
    "ChunkList": "with `publish` (own bundles) or `fetch` (peers', served on), when asked for",
    "AddressRecord": "to linked peers, unless `introduced = false` under `[mesh.transport]`",
}

PLAIN = {  # what says all by its name in the code
    "ListData": "The bytes of that list or label.",
    "ChunkData": "One chunk of a bundle.",
}
WAYS = (
    (
        "signed leaf states: the structures below",
        "linked peers, and through them the whole mesh",
        "`consent grant publish`",
    ),
    (
        "a mature leaf's bundle: adapter and label",
        "any peer that asks by its hash",
        "`consent grant publish`",
    ),
    (
        "peers' signed records and, with `fetch`, their bundles",
        "linked peers",
        "running the node; `consent grant fetch`",
    ),
    (
        "this node's addresses, signed by the key it dials with",
        "linked peers, who may pass it on for a week",
        "running the node; `introduced = false` keeps it back",
    ),
    (
        "its peer name, port and local addresses",
        "the local network, by multicast DNS",
        "`mdns = true` under `[mesh.transport]`",
    ),
    (
        "what libp2p says when two nodes connect: transport key, protocols, addresses",
        "the node at the other end",
        "running the node",
    ),
    (
        "mature bundles and an index",
        "a folder or S3 store",
        "`url` under `[registry]`, and `publish`",
    ),
    (
        "a request for a model that is not `groove/…`, as the client sent it",
        "the server that the owner names",
        "`upstream` or `anthropic` under `[api]`",
    ),
    (
        "a chat for a `groove/…` model",
        "a server that the owner names",
        "`backend_url` under `[api]`",
    ),
)

HEAD = """\
# What leaves the machine

By itself nothing: a fresh node sends no byte to anybody, has no telemetry, asks no server for
updates and downloads no model. This page is the whole list of what may leave, and what makes it.
It is made of the code by `python tests/make_what_leaves.py`, and a test compares the two.

**Never leaves**: a prompt, an answer, a file, a path, an embedding of a session, the corpus, a log,
an event, a crash report, the user's id, a name of the machine or of its user.

{WAYS}

What is *not* secret in what leaves: that this origin exists and when it publishes; how many leaves
it has, their stages and sizes to a power of two; an int8 centroid of at least 200 sessions (100
after a split), from which a domain can be guessed; a leaf's **name** in the label of its bundle,
which is made of words that its sessions share (`leaf rename` gives another); and whatever an
adapter remembers of its training texts. Before a bundle leaves, a second scan, a search for
verbatim runs and planted canaries look for the last; they lower the risk and do not end it.

"""


def kinds() -> list[type[Wire]]:
    """Every structure of wire.py, in its order."""
    found = [x for x in vars(wire).values() if inspect.isclass(x) and issubclass(x, Wire)]
    return [x for x in found if x is not Wire]


def page() -> str:
    rows = ["| what | to whom | what allows it |", "|---|---|---|"]
    rows += ["| " + " | ".join(way) + " |" for way in WAYS]
    head = HEAD.replace("{WAYS}", "\n".join(rows))
    return head + "".join([*_structures(), *_messages(), *_parts(), *_label(), *_told()])


def _structures() -> Iterator[str]:
    yield "## Structures, byte by byte\n\nKeys and values are made up; the bytes are what the "
    yield "node's encoder makes of them.\n"
    for name, value in example.STRUCTURES.items():
        kind = type(value)
        data = encode(value)
        yield f"\n### {name}\n\n{_said(kind)}\n\n"
        if when := WHEN.get(kind.__name__):
            yield f"Leaves {when}.\n\n"
        yield f"{len(data):,} bytes here, at most {BYTES_MAX[kind]:,}.\n\n"
        yield _fenced(_bytes(data)) + "\n" + _fenced(_fields(value))


def _messages() -> Iterator[str]:
    yield "\n## Messages\n\nWhat peers ask and answer. They carry the structures above and hashes; "
    yield "`docs/wire-vectors.json` has the bytes of each.\n\n"
    yield "| message | what it says | bytes of the example | at most |\n|---|---|---|---|\n"
    for union, examples in (
        (SyncMessage, example.SYNC),
        (BundleMessage, example.BUNDLES),
        (PeersMessage, example.PEERS),
    ):
        for name, value in examples.items():
            size = f"{len(encode(value)):,} | {BYTES_MAX[union]:,}"
            yield f"| {name} | {_said(type(value))} | {size} |\n"


def _parts() -> Iterator[str]:
    shown = {type(x) for x in (*example.STRUCTURES.values(), *example.SYNC.values())}
    shown |= {type(x) for x in (*example.BUNDLES.values(), *example.PEERS.values())}
    yield "\nParts of these:\n\n"
    for kind in kinds():
        if kind not in shown:
            fields = ", ".join(f"`{name}`" for name in kind.__struct_fields__)
            yield f"- **{kind.__name__}** ({fields})\n"


def _label() -> Iterator[str]:
    data = encode_label(LABEL)
    yield "\n## The label of a bundle\n\n`label.json`, beside the adapter's weights: at most "
    yield f"64 KiB, {len(data):,} bytes here.\n\n"
    yield _fenced("\n".join(textwrap.wrap(data.decode(), 96, break_on_hyphens=False)))


def _told() -> Iterator[str]:
    yield """
## Who can check this

- `groove-node leaf show NAME` shows the privacy card of a leaf and what was shown to peers.
- `docs/protocol.md` is the protocol, and `docs/wire-vectors.json` checks another implementation.
- The mesh's bytes are encrypted between two nodes (Noise). What a packet log shows is sizes, times
  and addresses; those are not hidden.
"""


def _said(kind: type[Wire]) -> str:
    """The first paragraph of a structure's docstring; its name where it has none of its own."""
    told = kind.__dict__.get("__doc__") or PLAIN[kind.__name__]
    return " ".join(inspect.cleandoc(told).partition("\n\n")[0].split())


def _bytes(data: bytes) -> str:
    lines = textwrap.wrap(data[:SHOWN_BYTES].hex(), 64)
    if len(data) > SHOWN_BYTES:
        lines.append(f"… and {len(data) - SHOWN_BYTES:,} bytes more")
    return "\n".join(lines)


def _fields(value: Any) -> str:
    lines = []
    for name, field in plain(value).items():
        text = str(field)
        lines.append(f"{name:<14}{text if len(text) <= 76 else text[:73] + '…'}")
    return "\n".join(lines)


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```\n"


if __name__ == "__main__":
    PATH.write_text(page())
