"""Algorithms that work on the aggregated student, on images of no client."""
