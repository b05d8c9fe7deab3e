"""Many runs: grids, tables and plots."""
