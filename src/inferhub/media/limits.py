"""What is passed between the room and its callers: limits, effects on sound, and a decoded picture.

Imported by parent and child alike, so it imports nothing but msgspec.
"""

from __future__ import annotations

import msgspec

MIB = 1024**2

PITCH_SEMITONES = (-24.0, 24.0)
SPEED = (0.25, 4.0)
GAIN_DB = (-40.0, 40.0)


class MediaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one job, one child process and one pool may take. Each is enforced while it works, not after."""

    input_bytes: int = 25 * MIB
    """Of one encoded sound or picture. More is `TooLarge`."""
    duration_s: float = 7_200.0
    """Of sound, counted as it is decoded; what a header says is never believed. More is `TooLarge`."""
    decoded_bytes: int = 4096 * MIB
    """Samples of a whole sound, in its own rate and channels. More is `TooLarge`."""
    channels: int = 32
    """Of sound. More is `Invalid`."""
    source_rate_hz: int = 384_000
    """Samples a second that a sound may claim to have. More is `Invalid`."""
    pixels: int = 50_000_000
    """Of a picture, read from its header before anything is decoded. More is `Invalid`."""
    frames: int = 1_000
    """Of an animated picture, of which only the first is looked at. More is `Invalid`."""
    memory_bytes: int = 1024 * MIB
    """Address space of one child process, the interpreter and its libraries (about 150 MiB) included."""
    cpu_s: int = 120
    """Processor time of a job; of one that is fed bit by bit, between two bits."""
    time_s: float = 60.0
    """How long a child may be silent while it has everything that it needs to go on."""
    jobs_at_once: int = 4
    """Children that decode and encode what is there as a whole."""
    streams_at_once: int = 16
    """Children that wait for a client or an engine: live sound, and sound that is encoded as it is made."""
    waiting: int = 64
    """Jobs that wait for a child; one more is `Overloaded`."""
    wait_s: float = 30.0
    """How long a job waits for a child before it is `Overloaded`."""
    idle_s: float = 30.0
    """After so long without a job a child ends."""
    jobs_per_child: int = 100
    """Then it is replaced, so that nothing that a decoder lost piles up."""


class Effects(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to a voice. Pitch changes keep its length, speed changes keep its pitch."""

    pitch_semitones: float = 0.0
    speed: float = 1.0
    gain_db: float = 0.0

    @property
    def are_none(self) -> bool:
        return self == Effects()


class Picture(msgspec.Struct, frozen=True):
    """Upright, without metadata."""

    width: int
    height: int
    rgb: bytes
    """Row by row, three bytes a pixel."""
    alpha: bytes | None = None
    """One byte a pixel; None where all of it is opaque."""
