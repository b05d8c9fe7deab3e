"""Heads: from features to logits, fitted from what clients send."""
