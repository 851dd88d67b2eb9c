"""F1: what the process says of itself and of its machine. No business logic."""
