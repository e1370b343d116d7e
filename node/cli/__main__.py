"""`python -m node.cli`: the same as `groove-node`."""

from . import main

main()
