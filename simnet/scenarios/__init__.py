"""What is played: each scenario drives a network, and returns the figures that it is about.

A scenario sets its faults in motion and says what must come of it. That nothing forbidden happens
meanwhile is the checker's business; that all agree in the end is `settle`'s.
"""

from __future__ import annotations

from ..bundles import bundle_spread
from .common import ROUND_S, ROUNDS_MAX, Figures, Scenario, settle
from .hostile import (
    byzantine_half,
    byzantine_third,
    eclipse,
    flood,
    freeze,
    mix_and_match,
    mixed_versions,
    replay_everything,
    sybils,
    tampering,
)
from .identity import fork, key_theft, restored_backup
from .lifecycle import merge, promotion, pruning, retraction, revive, split
from .long import thirty_nights
from .mixture import swarm
from .spread import churn, late_joiner, partition_heal, propagation

__all__ = ["ROUNDS_MAX", "ROUND_S", "SCENARIOS", "Figures", "Scenario", "settle"]

SCENARIOS: dict[str, Scenario] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        propagation,
        late_joiner,
        partition_heal,
        churn,
        promotion,
        split,
        merge,
        pruning,
        revive,
        retraction,
        fork,
        restored_backup,
        key_theft,
        replay_everything,
        tampering,
        mix_and_match,
        freeze,
        sybils,
        eclipse,
        flood,
        byzantine_third,
        byzantine_half,
        mixed_versions,
        bundle_spread,
        thirty_nights,
        swarm,
    )
}
