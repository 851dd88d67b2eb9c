"""Cuts a picture into tiles that overlap, so that what a network makes of them fits together without a seam.

Pure: arrays and numbers. `backend` runs the network between `tiles` and `place`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferhub.backends.pictures import as_pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inferhub.backends.pictures import Pixels


@dataclass(frozen=True, slots=True)
class Tiling:
    """How large the pieces are that a network sees."""

    side: int
    """Pixels, overlaps included: what memory and the time of one step depend on."""
    overlap: int
    """Pixels around each tile's own part that are computed and thrown away."""
    blend: int = 0
    """Of these, how many go over into the next tile, for networks that see further than `overlap`."""

    @property
    def step(self) -> int:
        return self.side - 2 * self.overlap


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis."""

    begin: int
    end: int
    """Of what the network sees."""
    own_begin: int
    own_end: int
    """Of what is kept."""

    def part(self, blend: int) -> tuple[int, int]:
        """What is kept, and what goes over into the neighbours."""
        begin = self.own_begin - (blend if self.begin < self.own_begin else 0)
        return begin, self.own_end + (blend if self.own_end < self.end else 0)

    def share(self, blend: int, scale: int) -> NDArray[np.float32]:
        """How much of it counts, pixel by pixel of `part`: rising where another tile lies already."""
        import numpy as np

        begin, end = self.part(blend)
        share = np.ones((end - begin) * scale, np.float32)
        if begin < self.own_begin:
            rising = 2 * blend * scale
            share[:rising] = (np.arange(rising, dtype=np.float32)[: len(share)] + 0.5) / rising
        return share


@dataclass(frozen=True, slots=True)
class Tile:
    rows: Span
    columns: Span

    def cut(self, pixels: Pixels) -> Pixels:
        return pixels[self.rows.begin : self.rows.end, self.columns.begin : self.columns.end]

    def place(self, made: Pixels, onto: Pixels, scale: int, blend: int = 0) -> None:
        """Put its part of `made`, `scale` times as large, where it belongs, after the tiles before it."""
        top, bottom = self.rows.part(blend)
        left, right = self.columns.part(blend)
        target = onto[top * scale : bottom * scale, left * scale : right * scale]
        above, before = top - self.rows.begin, left - self.columns.begin
        part = made[above * scale :, before * scale :][: target.shape[0], : target.shape[1]]
        if not blend:
            target[...] = part
            return
        share = self.rows.share(blend, scale)[:, None, None] * self.columns.share(blend, scale)[None, :, None]
        target[...] = as_pixels(target * (1 - share) + part * share)


def tiles(height: int, width: int, tiling: Tiling) -> list[Tile]:
    """Row by row. Their own parts cover the picture, each pixel once."""
    columns = list(_spans(width, tiling))
    return [Tile(rows, column) for rows in _spans(height, tiling) for column in columns]


def _spans(length: int, tiling: Tiling) -> Iterator[Span]:
    if length <= tiling.side:
        yield Span(0, length, 0, length)
        return
    own = 0
    while own < length:
        begin = max(0, own - tiling.overlap)
        end = min(length, begin + tiling.side)
        # At the end of the picture there is nothing to overlap with.
        own_end = length if end == length else end - tiling.overlap
        yield Span(begin, end, own, own_end)
        own = own_end
