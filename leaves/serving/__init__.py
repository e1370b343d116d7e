"""Answers while somebody waits: one chassis in a child process, many leaves, many answers at once.

orders      what the parent asks of the child, and what the child says
worker      the child's main: start here. preparing makes a prompt tokens and checks an adapter
chat        messages as the text that a chassis was trained on
engine      which tokens are computed next; kept the texts that need not be read again
sampling    from logits to a token, from tokens to text
stepping    what an engine asks of a chassis in memory; llama, hf the two that there are
sharing     how many threads are worth their while
"""
