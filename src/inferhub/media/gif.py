"""The blocks of a GIF: how many frames there are, and what is no part of a picture. Decodes none. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_MAX_STEPS = 250_000
"""A file of 25 MB has some 100,000 sub-blocks; one that has more is made to be slow."""
_KEPT_APPLICATIONS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
"""How often an animation is played."""


class Block(NamedTuple):
    start: int
    end: int
    is_frame: bool
    is_metadata: bool
    size: tuple[int, int]
    """As far right and down as a frame reaches."""


def gif_blocks(data: bytes) -> Iterator[Block]:
    """All after the header, up to the end mark or where the file is cut off. Raises `ValueError`."""
    if len(data) < 13:
        raise ValueError("cut off")
    at = header_end(data)
    steps = 0
    while at < len(data) and data[at] != 0x3B:
        start, first = at, data[at]
        size, is_metadata = (0, 0), False
        if first == 0x2C:
            if at + 10 > len(data):
                return
            left, top, width, height = (
                int.from_bytes(data[at + n : at + n + 2], "little") for n in (1, 3, 5, 7)
            )
            size = left + width, top + height
            at += 10 + _table_bytes(data[at + 9]) + 1
        elif first == 0x21:
            is_metadata = _is_metadata(data, at)
            at += 2
        else:
            raise ValueError("no block starts here")
        while at < len(data) and data[at]:
            at += 1 + data[at]
            steps += 1
        steps += 1
        if steps > _MAX_STEPS:
            raise ValueError("too many blocks")
        at = min(at + 1, len(data))
        yield Block(start, at, first == 0x2C, is_metadata, size)


def header_end(data: bytes) -> int:
    return 13 + _table_bytes(data[10])


def count_gif_frames(data: bytes, most: int) -> int:
    """Up to one more than `most`. Zero for what is no GIF."""
    frames = 0
    try:
        for block in gif_blocks(data):
            frames += block.is_frame
            if frames > most:
                break
    except ValueError:
        return frames
    return frames


def _table_bytes(packed: int) -> int:
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _is_metadata(data: bytes, at: int) -> bool:
    label = data[at + 1] if at + 1 < len(data) else 0
    if label == 0xFF:
        return not data[at + 3 : at + 14].startswith(_KEPT_APPLICATIONS)
    return label != 0xF9
