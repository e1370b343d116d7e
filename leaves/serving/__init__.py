"""Answers while somebody waits: one chassis in a child process, many leaves, many answers at once.

orders      what the parent asks of the child, and what the child says
chat        messages as the text that a chassis was trained on
worker      the child's main: adapters it has at hand, answers it is at
engine      which tokens are computed next; sampling, saying what came to one answer
stepping    what an engine asks of a chassis in memory; llama, hf the two that there are
"""
