"""Sound that comes bit by bit, brought to 16 kHz: a windowed sinc, computed for the ratio of the two rates.

`intake` makes one per session for sound at another rate. Plain numbers in and out: nothing is parsed here.
"""

from __future__ import annotations

from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

_ZEROS = 16
"""Zero crossings of the sinc on each side: more is a sharper edge, and more work."""
_ROLLOFF = 0.945
"""Of the lower Nyquist frequency, so that nothing is folded back."""


class Resampler:
    """From `rate_hz` to `target_hz`, a piece at a time."""

    def __init__(self, rate_hz: int, target_hz: int) -> None:
        common = gcd(rate_hz, target_hz)
        self._up, self._down = target_hz // common, rate_hz // common
        width = min(1.0, self._up / self._down) * _ROLLOFF
        self._half = ceil(_ZEROS / width)
        # One kernel for each place that an output sample can have between two input samples.
        offsets = np.arange(-self._half + 1, self._half + 1, dtype=np.float64)
        places = np.arange(self._up, dtype=np.float64)[:, None] / self._up
        distance = offsets - places
        window = np.cos(np.clip(distance / self._half, -1, 1) * np.pi / 2) ** 2
        kernels = width * np.sinc(distance * width) * window
        self._kernels: NDArray[np.float32] = (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)
        # What came before the beginning was silence.
        self._held: NDArray[np.float32] = np.zeros(self._half - 1, np.float32)
        self._next = 0
        """Of the next output sample, in `1 / up` input samples from the one that its kernel begins with."""

    def take(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """What can be computed now; the last few milliseconds wait for what comes behind them."""
        held = np.concatenate([self._held, samples.astype(np.float32)])
        taps = 2 * self._half
        room = (len(held) - taps + 1) * self._up - self._next
        count = max(0, ceil(room / self._down))
        if not count:
            self._held = held
            return np.zeros(0, np.int16)
        at = self._next + np.arange(count, dtype=np.int64) * self._down
        begins, phases = at // self._up, at % self._up
        found = np.empty(count, np.float32)
        # In bounded steps: the table of one step holds `taps` numbers for each sample.
        for first in range(0, count, 16_384):
            part = slice(first, first + 16_384)
            table = held[begins[part, None] + np.arange(taps)]
            found[part] = np.einsum("ij,ij->i", table, self._kernels[phases[part]])
        following = self._next + count * self._down
        used = min(following // self._up, len(held))
        self._held = held[used:]
        self._next = following - used * self._up
        return np.clip(np.rint(found), -32768, 32767).astype(np.int16)

    def rest(self) -> NDArray[np.int16]:
        """What was still waiting, at the end."""
        return self.take(np.zeros(self._half, np.int16))
