"""Desired state: API keys and the applied spec, revisioned. `base` is the question, `sql` the answer."""
