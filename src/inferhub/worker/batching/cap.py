"""How many calls one batch may have: as the model allows, less where memory did not hold so many. Pure."""

from __future__ import annotations

_GOOD = 20
"""Batches without trouble before one call more is tried."""


class Cap:
    """Halved by every batch that was too much, raised by one again after a while."""

    def __init__(self, most: int) -> None:
        self.calls = most
        self._most = most
        self._good = 0

    def was_too_much(self, calls: int) -> None:
        self.calls = max(1, min(self.calls, calls) // 2)
        self._good = 0

    def was_fine(self) -> None:
        if self.calls == self._most:
            return
        self._good += 1
        if self._good == _GOOD:
            self._good = 0
            self.calls += 1
