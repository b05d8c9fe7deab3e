"""A run on disk: its directory, checkpoints, identity and summary."""
