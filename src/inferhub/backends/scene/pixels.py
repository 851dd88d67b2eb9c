"""Pixels as arrays, made smaller: the one step that every finder begins with. Pure numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rgb = NDArray[np.uint8]
    """Height, width, 3."""


def on_white(width: int, height: int, rgb: bytes, alpha: bytes | None) -> Rgb:
    """What shows through is white, as on paper."""
    colors = np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
    if alpha is None:
        return colors
    cover = np.frombuffer(alpha, np.uint8).reshape(height, width, 1).astype(np.uint16)
    return ((colors * cover + 255 * (255 - cover)) // 255).astype(np.uint8)


def resized(pixels: Rgb, width: int, height: int) -> NDArray[np.float32]:
    """Averaged where it shrinks to less than half, then interpolated; in floats from 0 to 255."""
    factor = max(1, min(pixels.shape[0] // height, pixels.shape[1] // width))
    small = _averaged(pixels, factor) if factor > 1 else pixels.astype(np.float32)
    top, bottom, down = _steps(small.shape[0], height)
    left, right, across = _steps(small.shape[1], width)
    rows = small[top] * (1 - down)[:, None, None] + small[bottom] * down[:, None, None]
    across = across[None, :, None]
    return np.asarray(rows[:, left] * (1 - across) + rows[:, right] * across, np.float32)


def thinned(pixels: Rgb, most_side: int) -> Rgb:
    """Every n-th pixel: for what counts colours, and must not mix them."""
    step = -(-max(pixels.shape[:2]) // most_side)
    return pixels[::step, ::step]


def _averaged(pixels: Rgb, factor: int) -> NDArray[np.float32]:
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    whole = pixels[: height * factor, : width * factor]
    total = np.zeros((height, width, 3), np.float32)
    for row in range(factor):
        for column in range(factor):
            total += whole[row::factor, column::factor]
    return np.asarray(total / factor**2, np.float32)


def _steps(have: int, want: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each new place: its neighbours before and after, and how much the one after counts."""
    at = np.clip((np.arange(want) + 0.5) * have / want - 0.5, 0, have - 1)
    before = np.floor(at).astype(np.intp)
    return before, np.minimum(before + 1, have - 1), (at - before).astype(np.float32)
