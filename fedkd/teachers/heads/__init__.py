"""Heads map features to logits. They are fitted from what clients send."""
