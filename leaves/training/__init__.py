"""The steps that turn a cluster's sessions into an adapter."""
