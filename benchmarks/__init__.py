"""Scripts that measure fedkd. Each runs from the repository root."""
