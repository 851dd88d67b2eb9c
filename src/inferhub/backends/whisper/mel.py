"""Sound as the speaker embedder wants it: 40 mel bands every 10 ms, logarithms of power. Pure functions."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

FRAME_HOP = 160
_RATE_HZ = 16_000
_FFT = 512
_FRAME = 400
_BANDS = 40
_FLOOR = 1e-10
_BLOCK = 3000
"""Frames at once, so that an hour does not become one spectrum."""

# The mel scale of Slaney: straight up to 1 kHz, logarithmic above.
_HZ_PER_MEL = 200.0 / 3
_BEND_HZ = 1000.0
_BEND_MEL = _BEND_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """One row of 40 numbers for each 10 ms; one at least, however short the sound is."""
    padded = np.pad(samples, (0, max(0, _FFT - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::FRAME_HOP]
    rows = []
    for first in range(0, len(frames), _BLOCK):
        power = np.abs(np.fft.rfft(frames[first : first + _BLOCK] * _window(), axis=1)) ** 2
        rows.append(np.log10(power @ _filters().T + _FLOOR))
    return np.concatenate(rows).astype(np.float32)


@cache
def _window() -> NDArray[np.float64]:
    """Hamming, in the middle of the transform's length."""
    side = (_FFT - _FRAME) // 2
    # Periodic: as if the window went on.
    return np.pad(np.hamming(_FRAME + 1)[:-1], side)


@cache
def _filters() -> NDArray[np.float64]:
    """Triangles over the bins of the transform, each with the same area."""
    bins = np.linspace(0, _RATE_HZ / 2, _FFT // 2 + 1)
    edges = _hz(np.linspace(0, _mel(_RATE_HZ / 2), _BANDS + 2))
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles: NDArray[np.float64] = np.maximum(0, np.minimum(rise, fall))
    return triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def _mel(hz: float) -> float:
    return float(_BEND_MEL + np.log(hz / _BEND_HZ) / _LOG_STEP) if hz >= _BEND_HZ else hz / _HZ_PER_MEL


def _hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BEND_HZ * np.exp(_LOG_STEP * (mels - _BEND_MEL))
    return np.where(mels >= _BEND_MEL, above, mels * _HZ_PER_MEL)
