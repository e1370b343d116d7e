"""Pictures of what grew: sessions on a map, leaves as a tree, both over time.

`atlas` gathers from the stores; `page`, `png` and `tree` each turn that into one form. Nothing here
is needed for a round, so nothing of it is loaded by one.
"""
