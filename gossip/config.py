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
    fanout: Peers = 3  # peers told at once, 0 for no telling; the others soon after
    tell_after_s: Seconds = 2.0  # news are gathered for so long, and silence is taken for a loss
    sync_interval_s: Seconds = 30.0  # so a lost push is noticed within a minute
    pull_timeout_s: Seconds = 3.0  # of silence; then another is asked, or the same again
    pulls_max: Count = 512  # tables asked for at once
    pull_bytes_max: Count = 3 * 1024 * 1024  # in answers awaited, or they overrun a peer's queue
    sources_max: Count = 8  # peers remembered as holders of a table on its way
    echo_peers: Peers = 3  # asked for one's own head before the first publish
    echo_timeout_s: Seconds = 10.0  # after which silence counts as no answer, but not as a yes
    head_lifetime_h: Lifetime = 168  # 48 to 168; peers stop routing to what is not renewed
    refresh_after_h: Refresh = 24  # a head is signed anew, so that a week's absence is survived
    floor_after_h: Count = 720  # of a head expired for so long, only the head itself is kept
    origins_max: Count = 20_000  # 1 to 30 KB each
    origins_full_max: Count = 10_000  # beyond, tables are kept of origins of interest only
    looks_day_max: Count = 2_000  # beyond, tables fetched to see whether they are: 20 MB
    look_again_h: Count = 28 * 24  # interests change slowly, and so do origins
    answer_frames_max: Count = 16  # to one question; the rest is asked for in the next round
    answer_bytes_s_max: Count = 1_000_000  # in answers to one peer; a question costs it 69 bytes
    answer_burst_bytes: Count = 16_000_000  # at once: who joins late takes 12 MB of one peer
    proofs_s_max: Count = 5  # broadcast, of forks found out here; more go from peer to peer
    heads_day_max: Count = 24  # accepted of one origin; one over it waits, and is not lost
    heads_burst: Count = 4  # accepted of one origin at once
    heads_burst_s: Seconds = 300.0  # then one more each so long, while the day's are not used up
    introductions_h_max: Count = 32  # unknown origins from one peer, once the half is full
    introductions_all_h_max: Count = 256  # from all, for a peer costs nothing to make either
    new_tables_bytes_max: Count = 16 * 1024 * 1024  # at once, of origins that were unknown
    new_tables_bytes_h: Count = 8 * 1024 * 1024  # and an hour; three quarters of it for one peer
    # Keys and retractions that nothing held here asks for are never given up, so they have a bound.
    records_bytes_max: Count = 64 * 1024 * 1024  # 80,000 of them; a quarter of that at once
    records_bytes_h: Count = 4 * 1024 * 1024  # then; three quarters of it for one peer
    epochs_burst: Count = 16  # keys of an origin whose table is held: four years of quarters
    epochs_day_max: Count = 1  # then
    signatures_s_max: Count = 500  # verified for one peer; a twentieth of a core
    signatures_burst: Count = 5_000  # so that a newcomer is told of 2,500 origins at once
    memory_bytes_max: Count = 1024 * 1024  # of frames read lately, for those that come twice

    def __post_init__(self) -> None:
        if not 48 <= self.head_lifetime_h <= 168:
            raise ValueError(f"head_lifetime_h must be 48 to 168, not {self.head_lifetime_h}")
        if not 1 <= self.refresh_after_h < self.head_lifetime_h:
            raise ValueError(
                f"refresh_after_h must be 1 to {self.head_lifetime_h - 1}, "
                f"not {self.refresh_after_h}"
            )
