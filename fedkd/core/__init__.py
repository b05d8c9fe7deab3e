"""The leaves: errors, seeds, tensors, metrics, settings, files and the messages that travel."""
