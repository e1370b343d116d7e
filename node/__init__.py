"""The process that runs on a contributor's machine: capture, rounds, mesh and command line."""
