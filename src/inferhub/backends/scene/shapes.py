"""Drawn shapes: circles, squares, rectangles, triangles of one flat colour on a plain ground. Pure numpy.

Photographs have no such thing, so nothing is found on them. A shape that another one covers in part is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inferhub.backends.scene.pixels import thinned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inferhub.backends.scene.pixels import Rgb

NAMES = ("circle", "ellipse", "square", "rectangle", "triangle")
_MAX_SIDE = 480
_PLAIN_SHARE = 0.3
"""Of the picture that must be of one colour exactly, by the upper four bits of each channel."""
_LEAST_AREA = 0.003
_LARGEST_AREA = 0.6
_MOST = 50
_MOST_RUNS = 20_000
"""A picture with more stretches of one colour is no drawing."""
_ROUND = np.pi / 4


class Shape(NamedTuple):
    name: str
    score: float
    """How near it comes to the ideal one."""
    box: tuple[float, float, float, float]


class _Run(NamedTuple):
    row: int
    start: int
    end: int
    """Exclusive."""


def find(pixels: Rgb) -> list[Shape]:
    """From top to bottom."""
    step = -(-max(pixels.shape[:2]) // _MAX_SIDE)
    small = thinned(pixels, _MAX_SIDE) >> 4
    flat = (small[..., 0].astype(np.int32) << 8) | (small[..., 1].astype(np.int32) << 4) | small[..., 2]
    counts = np.bincount(flat.ravel())
    ground = int(counts.argmax())
    if counts[ground] < _PLAIN_SHARE * flat.size:
        return []
    found: list[Shape] = []
    for runs in _regions(flat, ground):
        area = sum(run.end - run.start for run in runs)
        if _LEAST_AREA * flat.size <= area <= _LARGEST_AREA * flat.size and len(found) < _MOST:
            shape = _shape_of(runs, area)
            if shape is not None:
                box = tuple(float(edge * step) for edge in shape.box)
                found.append(shape._replace(box=(box[0], box[1], box[2], box[3])))
    return found


def _regions(flat: NDArray[np.int32], ground: int) -> Iterator[list[_Run]]:
    """Connected places of one colour, as stretches of rows. Rows are joined where stretches touch."""
    parent: list[int] = []
    runs: list[_Run] = []
    before: list[tuple[_Run, int, int]] = []
    for row, line in enumerate(flat):
        edges = np.flatnonzero(np.diff(line, prepend=-1, append=-1))
        now: list[tuple[_Run, int, int]] = []
        for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            color = int(line[start])
            if color == ground:
                continue
            if len(runs) >= _MOST_RUNS:
                return
            number = len(runs)
            run = _Run(row, start, end)
            runs.append(run)
            parent.append(number)
            now.append((run, color, number))
        _join(before, now, parent)
        before = now
    groups: dict[int, list[_Run]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(_root(parent, number), []).append(run)
    yield from groups.values()


def _join(above: list[tuple[_Run, int, int]], below: list[tuple[_Run, int, int]], parent: list[int]) -> None:
    at = 0
    for run, color, number in below:
        while at < len(above) and above[at][0].end <= run.start:
            at += 1
        for other, other_color, other_number in above[at:]:
            if other.start >= run.end:
                break
            if other_color == color:
                parent[_root(parent, number)] = _root(parent, other_number)


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _shape_of(runs: list[_Run], area: int) -> Shape | None:
    """By how much of its box it fills, and where it is widest."""
    left, right = min(run.start for run in runs), max(run.end for run in runs)
    top, bottom = runs[0].row, max(run.row for run in runs) + 1
    width, height = right - left, bottom - top
    if min(width, height) < 6:
        return None
    fill, is_even = area / (width * height), 0.87 <= width / height <= 1.15
    box = (float(left), float(top), float(right), float(bottom))
    if fill >= 0.94:
        return Shape("square" if is_even else "rectangle", min(fill, 0.99), box)
    widths = np.bincount([run.row - top for run in runs], [run.end - run.start for run in runs], height)
    first, middle, last = (float(part.mean()) / width for part in np.array_split(widths, 3))
    if abs(fill - _ROUND) < 0.045 and middle > max(first, last) and abs(first - last) < 0.12:
        return Shape("circle" if is_even else "ellipse", 0.99 - abs(fill - _ROUND), box)
    is_steady = first < middle - 0.2 < last - 0.4 or last < middle - 0.2 < first - 0.4
    if abs(fill - 0.5) < 0.07 and is_steady:
        return Shape("triangle", 0.99 - abs(fill - 0.5), box)
    return None
