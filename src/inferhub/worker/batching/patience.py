"""Whether an idle engine should wait a moment for more calls. Pure; nearly always it should not.

Taking what is there and gathering while busy fills batches by itself exactly when there is much to do. A
moment pays only where a batch costs nearly the same whatever its size: the backend says so with `may_wait`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

LONGEST_S = 0.005
SHARE = 0.1
"""Of what a batch takes lately."""
_RECENT = 2
_ARRIVALS = 32
_WEIGHT = 0.2


def wait_s(recent: Sequence[int], most: int, batch_s: float, arrivals_per_s: float) -> float:
    """0, or how long to wait: only after small batches, and where somebody is expected to come meanwhile."""
    moment_s = min(LONGEST_S, SHARE * batch_s)
    were_small = len(recent) >= _RECENT and all(2 * size < most for size in recent[-_RECENT:])
    return moment_s if were_small and arrivals_per_s * moment_s >= 1 else 0.0


class Pace:
    """The last batches and arrivals, as far as `wait_s` asks for them."""

    def __init__(self) -> None:
        self._sizes: deque[int] = deque(maxlen=_RECENT)
        self._arrivals: deque[float] = deque(maxlen=_ARRIVALS)
        self._batch_s = 0.0

    def arrived(self, now_s: float) -> None:
        self._arrivals.append(now_s)

    def computed(self, size: int, took_s: float) -> None:
        self._sizes.append(size)
        self._batch_s += (_WEIGHT if self._batch_s else 1.0) * (took_s - self._batch_s)

    def wait_s(self, most: int, now_s: float) -> float:
        since_s = now_s - self._arrivals[0] if self._arrivals else 0.0
        per_s = len(self._arrivals) / since_s if since_s > 0 else 0.0
        return wait_s(list(self._sizes), most, self._batch_s, per_s)
