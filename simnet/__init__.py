"""Many nodes, simulated time, one seed: the harness that proves the mesh.

What is simulated
    network     the heap of events, and what scenarios do to nodes: start here
    machine     one node: its replica, disk, links, line and clock
    lines       how frames travel; faults says what may happen to them there
    dialing     who links with whom; urgent the gossipsub mesh among the links
    disk        what a crash loses; log_store and files a store that may be torn
    pool        equal values in memory once; preload tables that are there from the start
    bundles     files fetched from several holders, over simulated lines

What is played, and what must hold
    scenarios   each sets faults in motion, and says what must come of it
    byzantine   nodes that lie, each in its way
    invariants  what must hold after every event, and in the end; agreement on families
    bodies      counts the cards that arrive, new or held already

Runs
    runs        a plan, carried out; sweep many of them, shorten the smallest that still breaks
    trace       the hash that two runs of one seed share
    watch       how a picture (plot) or an explanation looks on
    cli         the command

Whole nodes
    world       nodes with capture, training and routing through simulated nights, with traffic,
                sharing and fakes for what would take a model; world_checks, world_story
"""
