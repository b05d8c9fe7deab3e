"""The server: the round loop, strategies, backends, checkpoints and the run directory."""
