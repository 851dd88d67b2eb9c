"""How fast a model works: seconds of being busy for one cost unit, over the last while. Pure.

The lane tells it when calls begin and end. Idle time does not count; nor does time that only calls took which
came to nothing.
"""

from __future__ import annotations

import math

_MEMORY_S = 30.0
"""Of busy time: what is older counts for little."""


class DrainRate:
    """All slots together."""

    def __init__(self) -> None:
        self._running = 0
        self._marked_s = 0.0
        self._seen_s = 0.0
        self._held_s = 0.0
        """Since the mark, of all calls together."""
        self._busy_sum_s = 0.0
        self._held_sum_s = 0.0
        self._done = 0.0

    @property
    def s_per_cost(self) -> float:
        """0 until a call has ended well."""
        return self._busy_sum_s / self._done if self._done else 0.0

    def at_best(self, slots: int) -> float:
        """The same if all slots were used and did not slow each other down: what few calls at a time say of
        a model is too little to refuse a call for."""
        running = self._held_sum_s / self._busy_sum_s if self._busy_sum_s else 1.0
        return self.s_per_cost * min(1.0, running / slots)

    def began(self, now_s: float) -> None:
        if self._running:
            self._hold(now_s)
        else:
            self._marked_s = self._seen_s = now_s
            self._held_s = 0.0
        self._running += 1

    def ended(self, now_s: float, cost: float | None) -> None:
        """`cost`: what is done now; None where the call came to nothing."""
        self._hold(now_s)
        self._running -= 1
        if cost is None:
            return
        passed_s, self._marked_s = now_s - self._marked_s, now_s
        # Calls of one batch end together: the first of them takes the time, the others only add their work.
        keep = math.exp(-passed_s / _MEMORY_S)
        self._busy_sum_s = self._busy_sum_s * keep + passed_s
        self._held_sum_s = self._held_sum_s * keep + self._held_s
        self._done = self._done * keep + cost
        self._held_s = 0.0

    def _hold(self, now_s: float) -> None:
        self._held_s += self._running * (now_s - self._seen_s)
        self._seen_s = now_s
