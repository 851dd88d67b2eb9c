"""The files of one spool folder, in the order they were written. Used by `spool` and `drain`.

A segment's name ends in random digits: a position in it is unique in the world and for all time, which
makes it a token that stores can drop a repeated batch by.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(\d{10})-([0-9a-f]{16})\.log")


@dataclass(slots=True)
class Segment:
    """One file. Only the newest grows."""

    number: int
    id: str
    path: Path
    size: int
    """Bytes that were written whole."""

    def read(self, start: int, end: int) -> bytes:
        """Raises `OSError`."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces = []
            while start < end and (piece := os.pread(descriptor, end - start, start)):
                pieces.append(piece)
                start += len(piece)
            return b"".join(pieces)
        finally:
            os.close(descriptor)


def next_segment(folder: Path, number: int) -> Segment:
    unique = secrets.token_hex(8)
    return Segment(number, unique, folder / f"{number:010d}-{unique}.log", 0)


def segments_of(folder: Path) -> list[Segment]:
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    segments = [Segment(int(match[1]), match[2], path, path.stat().st_size) for match, path in found]
    return sorted(segments, key=lambda segment: segment.number)
