"""Algorithms that change what a client does."""
