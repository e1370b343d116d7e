"""From a prompt to the leaf that serves it best."""
