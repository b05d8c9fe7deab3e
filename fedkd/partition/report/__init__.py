"""The result of a partition: counts and skew, tables and plots."""
