"""What every encoder does to texts before its model sees them: cut, make sound, and batch.

On one thread a batch costs what its padded tokens cost and little more, so batches are chosen by
tokens: a fixed number of texts pads short ones to the longest, and takes 100 MB for long ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from .ports import ENCODED_CHARS

TOKENS_PER_BATCH = 512  # padded; from 128 to 1,024 prompts/s differ by less than the noise
# What a run costs beside its tokens, as tokens. One fit on one machine, and it need not be exact:
# it decides how readily short texts share a batch with longer ones.
TOKENS_PER_RUN = 8


def cut(text: str) -> str:
    """The part of a text that is embedded, as sound Unicode.

    Two surrogates that belong together become their character; a lone one becomes U+FFFD, which
    tokenizers drop. Costs the same for ten megabytes as for a line.
    """
    head = text[:ENCODED_CHARS]
    if head.isascii():
        return head
    return head.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def batches(
    lengths: Sequence[int], tokens_max: int = TOKENS_PER_BATCH, run_cost: int = TOKENS_PER_RUN
) -> list[list[int]]:
    """Divide texts, by their lengths in tokens, into the batches that cost least together.

    A batch costs `run_cost` and its number of texts times its longest; it holds at most
    `tokens_max` of the latter, or one text. Shortest first; of equal length, in their order.
    Costs n * tokens_max / length steps.
    """
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    cost = [0] * (len(order) + 1)  # of the best division of the first n texts
    first = [0] * (len(order) + 1)  # of its last batch
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        fit = max(1, tokens_max // longest) if longest else end
        cost[end], first[end] = min(
            (cost[start] + run_cost + (end - start) * longest, start)
            for start in range(max(0, end - fit), end)
        )
    out: list[list[int]] = []
    end = len(order)
    while end:
        out.append(order[first[end] : end])
        end = first[end]
    return out[::-1]
