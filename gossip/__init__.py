"""Replication of signed leaf states between peers. Carries bytes and knows no leaf.

The protocol, pure
    core        events in, orders out: start here. events, config, ports are its doors
    wire        all that may cross the network; canonical its bytes, envelope its signatures
    origin      the join of what one origin said; keys, hearing, records, recent, ages, view
    comparing   who lacks what: reconcile by ranges, news by telling, holdings the answers
    pull        tables on their way: table, frames, merkle, reading
    author      what this node says itself, and when it may
    admission   how much is taken of one peer and of one origin; interest whose tables are kept

Bundles, pure
    exchange    asking for chunks; serving them; budget of bytes, patience of
                time; exchange_events is their door

In the world
    driver      the loop that feeds both cores and performs their orders; downloads those to disk
    sqlite_store, bundle_files
                what is kept
    libp2p_transport
                the real transport, behind libp2p_fence; libp2p_streams frames, libp2p_pubsub
                broadcasts, libp2p_muxer limits, libp2p_relay being reached (circuit, hop)
    framing, outbox, inbox, listening, swarm_key, dial_reasons
                what it is made of that needs no libp2p; doorkeeper who may connect

Whom to talk to
    dialer      whom to dial, and when, out of the addresses; multiaddrs what an address says
    introductions
                peers learned from peers; mdns on the local network; invites by hand
    relaying    reservations and circuits, as bookkeeping
    wakefulness a sleep, another network
"""
