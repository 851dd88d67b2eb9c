"""F5: who is in the fleet, what it should run, and how it gets there. Calls never pass through it."""
