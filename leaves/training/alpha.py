"""How sure a look at a leaf must be: a leaf that is tried every night must not pass by luck.

Each judged look spends a part of one budget, 0.05 for the whole life of a leaf (alpha spending:
Lan and DeMets 1983; here with an open end, as Foster and Stine 2008). Look k spends
0.05 / (k (k + 1)), which sums to 0.05 exactly. By the union bound a leaf without a gain then ever
wins with probability 0.05 at most, whatever its looks have in common.

Of the sequences tried (k^-1.2, k^-1.5, k^-2, 1 / (k log² k), an equal part for each of 30 looks)
this one wins as soon as any where there is a gain, and loses little late: it asks for 1.96 standard
errors at the first look, 2.9 at the fifth and 3.9 at the thirtieth. That a leaf needs two wins to
mature is not counted on: it is routed to after one.
"""

from __future__ import annotations

BUDGET = 0.05


def confidence_at(attempt: int) -> float:
    """Return the confidence that each bound of look `attempt` must have; 0.975 for the first.

    attempt: from 1; how many judged looks the leaf has had, this one included. A look that had too
    few sessions to judge by is none.
    """
    if attempt < 1:
        raise ValueError(f"attempt must be at least 1, not {attempt}")
    return 1 - BUDGET / (attempt * (attempt + 1))
