"""What the command modules share: the table of commands, its groups, and common options."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

from cyclopts import App as Command
from cyclopts import Parameter

HELP = """A node that learns from your own AI work and shares what it learned, peer to peer.

First steps: `init`, then `consent grant capture train`, `import pydoc libp2p networkx`, `round`,
`tree`.
Everything stays on this machine until you grant `publish`. GROOVE_HOME (default ~/.groove) is
yours; GROOVE_CACHE holds converted models and can be deleted; GROOVE_STATE remembers, outside the
home, which consent and which deletion of everything were the last: a home put back from a backup
asks again.
"""

command = Command(
    name="groove-node",
    help=HELP,
    version=lambda: version("groove-node"),
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),  # an empty list is no choice that one makes
    suppress_keyboard_interrupt=False,  # `node.cli.main` says what an interruption leaves
)
consent = Command(name="consent", help="What this node may do. Everything is off by default.")
leaf = Command(name="leaf", help="One leaf: show it, its history, its name, its retraction.")
peers = Command(name="peers", help="Who this node is connected to, and who it dials.")
config = Command(name="config", help="What groove.toml says: looked at, explained, changed.")
registry = Command(name="registry", help="A folder or S3 store where mature leaves lie for others.")
for group in (consent, leaf, peers, config, registry):
    command.command(group)

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document.")]
AsJsonLines = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON document per event.")
]
Yes = Annotated[bool, Parameter(name="--yes", negative="", help="Do not ask.")]
