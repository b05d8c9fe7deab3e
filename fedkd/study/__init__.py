"""Many runs: run and resume a grid of partitions, methods and seeds, and summarize it in tables and a plot."""
