"""Many runs: a grid of partitions, methods and seeds, run, resumed, and put into a table and a plot."""
