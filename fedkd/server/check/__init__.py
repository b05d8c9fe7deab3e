"""`check_run`: what a run will take, found out before it by small runs of the same settings."""
