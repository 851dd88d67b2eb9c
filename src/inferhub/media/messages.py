"""What parent and child say to each other: frames of a kind, a length and that many bytes.

The parent writes a job, then its data, then an end; the child writes pieces and notes, then an end or a
failure. Nothing is ever unpickled, and each side gives up on a frame that is longer than it may be.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Literal

import msgspec

from inferhub.media.limits import Effects, MediaLimits

HEAD = struct.Struct("<BI")
PIECE_BYTES = 256 * 1024
"""Larger contents are sent in pieces of this size."""
MAX_FRAME_BYTES = 1024 * 1024


class Kind(IntEnum):
    JOB = 1
    DATA = 2
    NOTE = 3
    END = 4
    FAILED = 5


class DecodeAudio(msgspec.Struct, tag="decode_audio", frozen=True):
    """All of the data comes first, then its end; then sound goes back."""

    container: str
    rate_hz: int


class DecodeLive(msgspec.Struct, tag="decode_live", frozen=True):
    """Data and sound cross each other."""

    format: str
    input_rate_hz: int
    rate_hz: int


class EncodeAudio(msgspec.Struct, tag="encode_audio", frozen=True):
    """Mono s16le and encoded sound cross each other."""

    format: str
    rate_hz: int
    effects: Effects


class DecodeImage(msgspec.Struct, tag="decode_image", frozen=True):
    """Answered by a `Size`, then by the colours, then by the alpha channel where there is one."""

    max_side: int | None


class EncodeImage(msgspec.Struct, tag="encode_image", frozen=True):
    format: str
    quality: int | None
    width: int
    height: int
    has_alpha: bool


class Upright(msgspec.Struct, tag="upright", frozen=True):
    """The picture turned as its metadata says, in its own format, without metadata."""


class Warm(msgspec.Struct, tag="warm", frozen=True):
    """Import what decodes, so that the next job need not."""

    what: Literal["audio", "image"]


Task = DecodeAudio | DecodeLive | EncodeAudio | DecodeImage | EncodeImage | Upright | Warm


class Job(msgspec.Struct, frozen=True):
    task: Task
    limits: MediaLimits


class Size(msgspec.Struct, frozen=True):
    """The note before pixels."""

    width: int
    height: int
    has_alpha: bool


class Failure(msgspec.Struct, frozen=True):
    kind: Literal["invalid", "too_large", "missing", "internal"]
    code: str
    message: str
    """A whole sentence of ours; nothing of what a library said, which may hold addresses."""


class Refused(Exception):
    """Raised in the child; the parent raises what `kind` stands for."""

    def __init__(
        self, kind: Literal["invalid", "too_large", "missing", "internal"], code: str, message: str
    ) -> None:
        super().__init__(message)
        self.failure = Failure(kind, code, message)


def invalid_audio(message: str) -> Refused:
    return Refused("invalid", "invalid_audio", message)


def invalid_image(message: str, code: str = "invalid_image") -> Refused:
    return Refused("invalid", code, message)


def frame(kind: Kind, payload: bytes | memoryview = b"") -> bytes:
    return HEAD.pack(kind, len(payload)) + bytes(payload)


encode = msgspec.msgpack.Encoder().encode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_size = msgspec.msgpack.Decoder(Size).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode
