"""What an owner may set about replication, with the reason for each default."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Rate = Annotated[float, Meta(gt=0, le=1_000_000)]  # a second
Lifetime = Annotated[int, Meta(ge=48, le=168)]
Refresh = Annotated[int, Meta(ge=1, le=167)]
Peers = Annotated[int, Meta(ge=0, le=1000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class GossipConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    fanout: Count = 4  # peers told at once; what a push misses, sync mends
    sync_interval_s: Seconds = 30.0  # so a lost push is noticed within a minute
    pull_timeout_s: Seconds = 15.0  # an honest peer on a slow line answers 64 KiB in this time
    pulls_max: Count = 64  # tables fetched at once
    sources_max: Count = 4  # peers remembered as holders of a table on its way
    echo_peers: Peers = 3  # asked for one's own head before the first publish
    echo_timeout_s: Seconds = 10.0  # after which silence counts as no answer, but not as a yes
    head_lifetime_h: Lifetime = 168  # 48 to 168; peers stop routing to what is not renewed
    refresh_after_h: Refresh = 24  # a head is signed anew, so that a week's absence is survived
    origins_max: Count = 20_000  # 1 to 30 KB each
    answer_frames_max: Count = 16  # to one question; the rest is asked for in the next round

    def __post_init__(self) -> None:
        if self.fanout < 1:
            raise ValueError(f"fanout must be at least 1, not {self.fanout}")
        if not 48 <= self.head_lifetime_h <= 168:
            raise ValueError(f"head_lifetime_h must be 48 to 168, not {self.head_lifetime_h}")
        if not 1 <= self.refresh_after_h < self.head_lifetime_h:
            raise ValueError(
                f"refresh_after_h must be 1 to {self.head_lifetime_h - 1}, "
                f"not {self.refresh_after_h}"
            )
