"""Algorithms that change how the server aggregates and steps."""
