"""Which colours a picture, or a thing on it, has, by the names that people use. Pure numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inferhub.backends.scene.pixels import thinned
from inferhub.modalities.vision import Box, Color

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inferhub.backends.scene.pixels import Rgb

NAMES = (
    "black", "gray", "white", "red", "orange", "brown", "yellow", "green", "cyan", "blue", "purple", "pink",
)  # fmt: skip
_BLACK, _GRAY, _WHITE, _RED, _ORANGE, _BROWN, _YELLOW, _GREEN, _CYAN, _BLUE, _PURPLE, _PINK = range(12)
_NEUTRAL = frozenset({"black", "gray", "white"})
_MAX_SIDE = 256
_LEAST_SHARE = 0.04
_MOST = 6
_PLAIN_SHARE = 0.6
"""A thing that is to so much black, gray or white is that, whatever else is on it."""
_CENTRE = 0.7
"""Of a box's sides: around it, the box is mostly background."""


def named(pixels: Rgb) -> NDArray[np.uint8]:
    """The number of each pixel's name in `NAMES`."""
    rgb = np.asarray(pixels, np.float32) / np.float32(255)
    most, least = rgb.max(axis=-1), rgb.min(axis=-1)
    spread = most - least
    hue = _hue(rgb, most, spread)
    saturation = np.divide(spread, most, out=np.zeros_like(most), where=most > 0)
    edges = (14, 42, 68, 165, 195, 258, 292, 340)
    names = np.array([_RED, _ORANGE, _YELLOW, _GREEN, _CYAN, _BLUE, _PURPLE, _PINK, _RED], np.uint8)[
        np.digitize(hue, edges)
    ]
    is_warm = (names == _RED) | (names == _ORANGE)
    # Dark orange is brown to everybody, and so is a dull dark red; bright red mixed with white is pink.
    is_brown = ((names == _ORANGE) & (most < 0.74)) | (
        (names == _RED) & (hue >= 8) & (hue < 20) & (most < 0.5)
    )
    is_brown |= (names == _YELLOW) & (hue < 50) & (most < 0.55)
    is_brown |= (names == _ORANGE) & (saturation < 0.7) & (most < 0.9)
    names[(names == _RED) & (saturation < 0.55) & (most > 0.75)] = _PINK
    names[is_brown | (is_warm & (saturation < 0.45) & (most < 0.75) & (hue > 8) & (hue < 42))] = _BROWN
    is_dull = (saturation < 0.16) | (spread < 0.07)
    names[is_dull] = _GRAY
    names[is_dull & (most > 0.86)] = _WHITE
    names[(most < 0.16) | (is_dull & (most < 0.25))] = _BLACK
    return names


def palette(pixels: Rgb) -> list[Color]:
    """The colours of the picture, most of it first."""
    sample = thinned(pixels, _MAX_SIDE).reshape(-1, 3)
    names = named(sample)
    found: list[Color] = []
    for number, count in enumerate(np.bincount(names, minlength=len(NAMES))):
        share = float(count) / len(sample)
        if share >= _LEAST_SHARE:
            middle = np.median(sample[names == number], axis=0).astype(int)
            found.append(Color(NAMES[number], "#{:02x}{:02x}{:02x}".format(*middle), round(share, 3)))
    return sorted(found, key=lambda color: -color.share)[:_MOST]


def color_in(pixels: Rgb, box: Box) -> str | None:
    """The colour of the thing in the box: not the background that shows at its corners."""
    left, top, right, bottom = box
    margin_x, margin_y = (right - left) * (1 - _CENTRE) / 2, (bottom - top) * (1 - _CENTRE) / 2
    inner = pixels[
        round(top + margin_y) : round(bottom - margin_y), round(left + margin_x) : round(right - margin_x)
    ]
    if inner.size == 0:
        return None
    sample = thinned(inner, _MAX_SIDE).reshape(-1, 3)
    shares = np.bincount(named(sample), minlength=len(NAMES)) / len(sample)
    ranked = sorted(zip(NAMES, shares, strict=True), key=lambda pair: -pair[1])
    name, share = ranked[0]
    if name in _NEUTRAL and share < _PLAIN_SHARE:
        # A red cup with white foam and black shadows is a red cup.
        name, share = next(((n, s) for n, s in ranked if n not in _NEUTRAL and s >= 0.2), (name, share))
    return str(name)


def _hue(
    rgb: NDArray[np.float32], most: NDArray[np.float32], spread: NDArray[np.float32]
) -> NDArray[np.float32]:
    """In degrees; 0 is red, 120 green, 240 blue."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    safe = np.where(spread > 0, spread, 1)
    hue = np.where(most == red, ((green - blue) / safe) % 6, (blue - red) / safe + 2)
    hue = np.where((most == blue) & (most != red) & (most != green), (red - green) / safe + 4, hue)
    return np.asarray(hue * 60, np.float32)
