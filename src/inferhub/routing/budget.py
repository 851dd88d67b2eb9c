"""How many calls may be on their second endpoint: a share of all that run. Asked by `router`.

Without it an outage doubles the load on whatever is left.
"""

from __future__ import annotations


class RetryBudget:
    """Counts retries and hedges in flight against calls in flight, of one gateway process."""

    __slots__ = ("_minimum", "_share", "active", "retries")

    def __init__(self, *, share: float, minimum: int) -> None:
        self._share = share
        self._minimum = minimum
        self.active = 0
        """Calls in flight, each counted once."""
        self.retries = 0
        """Trials in flight beyond the first of their call."""

    @property
    def has_room(self) -> bool:
        return self.retries < max(self._minimum, self._share * self.active)
