"""Sounds and pictures that the scripted upstream hands out: real files, made on the spot.

Used by the dialects of vendors that speak and paint. Every one is what its format says, so that whoever gets
it can open it.
"""

from __future__ import annotations

import io
import math
import struct
import wave
import zlib
from functools import lru_cache

RATE_HZ = 24_000
PIECE_MS = 100
"""How long each piece of a script's `n` sounds."""
_CODECS = {
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "aac": ("adts", "aac"),
    "flac": ("flac", "flac"),
}


def tone(length_ms: int, pitch_hz: int = 440) -> bytes:
    """Mono s16le at 24 kHz."""
    count = RATE_HZ * length_ms // 1000
    step = 2 * math.pi * pitch_hz / RATE_HZ
    return struct.pack(f"<{count}h", *(int(8000 * math.sin(step * place)) for place in range(count)))


@lru_cache(maxsize=64)
def sound(format_: str, length_ms: int) -> bytes:
    pcm = tone(length_ms)
    if format_ == "pcm":
        return pcm
    if format_ == "wav":
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE_HZ)
            out.writeframes(pcm)
        return file.getvalue()
    return _encoded(format_, pcm)


def _encoded(format_: str, pcm: bytes) -> bytes:
    import av
    import numpy as np

    container, codec = _CODECS[format_]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, np.int16)[None, :], format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        for packet in (*stream.encode(frame), *stream.encode(None)):  # type: ignore[union-attr, arg-type]
            out.mux(packet)
    return file.getvalue()


def length_s(wav: bytes) -> float:
    """Of a WAV; of everything else, what the vendor of these tests always says."""
    try:
        with wave.open(io.BytesIO(wav)) as file:
            return float(file.getnframes() / file.getframerate())
    except (wave.Error, EOFError):
        return 7.0


@lru_cache(maxsize=64)
def picture(width: int, height: int, shade: int = 0) -> bytes:
    """A PNG of one colour."""
    row = b"\0" + bytes((shade % 256, 64, 192)) * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * height)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
