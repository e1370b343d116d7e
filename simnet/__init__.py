"""Many nodes, simulated time, one seed: the harness that proves the mesh."""
