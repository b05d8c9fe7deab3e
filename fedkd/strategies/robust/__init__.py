"""Aggregation rules that withstand false updates."""
