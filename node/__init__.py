"""The process that runs on a contributor's machine: capture, rounds, mesh and command line.

One home
    app         the only module that wires: start here. adapters what it reaches the machine by
    home, config, clock, errors, told, logfile
                what everything else stands on
    identity    the keys; keyfiles, keysafe, rekeying how they change and are kept safe
    cli         the commands; overview, orders, settings, show_* what they ask and print
    doctor      what may be amiss: doctor_machine, doctor_api; crash what is kept of a fault of ours
    answering   one question from the terminal: by the endpoint, or here (answering_here)

From a prompt to a leaf
    gate        all of capture that is loaded while it is off; capture the rest; consent its leave
    importing, watching, history
                other tools' transcripts
    rounds      a round wired to one home: engine carries it out, regrouping, spreading its parts
    classroom   a leaf's training: teaching, preferring, judging; by_hand the same by the owner
    deploying   routing tables: routing what is in one, replay whether it is better, tables on disk
    publishing  what may be shown to others: screening, examining, approvals

The running node
    daemon      what runs, and who is told of what: start here
    publisher   what goes out; following what comes in; mesh cards out of leaves and back
    fetch       a peer's leaf from card to verdict: trial; foreign how far each has come
    bundles, shelf, mirror, registry
                adapters at rest, kept or let go, and elsewhere
    links       whom it is linked with: peerbook, meeting, swarm; reach what can be reached
    night       unattended work: governor when, windows, senses; held gives way; morning the report
    service     as a service: service_manager, notify

The owner's rights
    consenting, rights, deletion, exporting, rescanning; uninstalling
"""
