"""The header of a WAV stream. Pure."""

from __future__ import annotations

import struct

_UNKNOWN = 0xFFFFFFFF
_HEADER_BYTES = 44


def wav_header(rate_hz: int, data_bytes: int | None = None) -> bytes:
    """For mono s16le; without a length, for a stream whose end is not known yet, as players accept it."""
    is_known = data_bytes is not None and data_bytes <= _UNKNOWN - _HEADER_BYTES
    data = data_bytes if is_known and data_bytes is not None else _UNKNOWN
    riff = data + _HEADER_BYTES - 8 if is_known else _UNKNOWN
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form + struct.pack("<4sI", b"data", data)
