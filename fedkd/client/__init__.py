"""What a client has, and what it does with it."""
