"""Back ends of the endpoint: the built-in one, and the servers of others."""
