"""How soon a model that died, or could not be loaded, is tried again. Times only; `managed` acts on them."""

from __future__ import annotations

import time

DELAYS_S = (0.1, 1.0, 5.0, 15.0, 30.0, 60.0)
"""After a process died for the first, second, … time in a row; then always the last."""
WAIT_S = 5.0
"""How long calls wait for a process that is started again, before they are told to come back."""
STABLE_S = 60.0
"""A process that lived so long starts counting from the first delay again."""
TRY_AGAIN_S = 5.0
"""After a load that failed; until then callers get the same answer at once."""


class Restarts:
    """The deaths of one model's process in a row, and when the next try may begin."""

    def __init__(self) -> None:
        self._deaths = 0
        self._died_at_s = 0.0
        self._not_before_s = 0.0

    @property
    def is_one(self) -> bool:
        """Whether loading it now is bringing it back, not its first load or one after it was let go."""
        return self._deaths > 0

    @property
    def delay_s(self) -> float:
        """Until the next try; not below 0."""
        return max(0.0, self._not_before_s - time.monotonic())

    @property
    def down_s(self) -> float:
        """Since it died."""
        return time.monotonic() - self._died_at_s

    def died(self, after_s: float) -> float:
        """It lived so long; the delay before it is started again."""
        self._deaths = 1 if after_s >= STABLE_S else self._deaths + 1
        self._died_at_s = time.monotonic()
        delay_s = DELAYS_S[min(self._deaths, len(DELAYS_S)) - 1]
        self._not_before_s = self._died_at_s + delay_s
        return delay_s

    def failed(self) -> None:
        """A load came to nothing."""
        self._not_before_s = time.monotonic() + TRY_AGAIN_S

    def hurry(self) -> None:
        """Somebody asks for it by name: try now."""
        self._not_before_s = 0.0

    def forget(self) -> None:
        """What it does next has nothing to do with how it ended."""
        self._deaths = 0
