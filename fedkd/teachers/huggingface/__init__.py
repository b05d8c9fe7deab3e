"""Teachers from HuggingFace checkpoints."""
