"""Replication of signed leaf states between peers. Carries bytes and knows no leaf."""
