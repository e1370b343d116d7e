"""Where sessions come from besides the live node: each source turns what it reads into the same."""
