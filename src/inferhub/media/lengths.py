"""How long a sound is, without decoding it: exactly where its header can be believed, and at most. Pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from inferhub.media.kinds import sniff
from inferhub.media.limits import MediaLimits

_LEAST_BITS_S = 16_000
"""Speech that is compressed further is rare; silence can be, and then lasts longer than guessed."""
_PCM_TAGS = frozenset({1, 3, 6, 7})
"""Whole numbers, floats, and the two kinds of G.711: so many bytes are so long."""
_EXTENSIBLE = 0xFFFE
_UNKNOWN = 0xFFFFFFFF
_MAX_CHUNKS = 1_000
_RATES_HZ = range(1_000, 768_001)


class _Form(NamedTuple):
    tag: int
    rate_hz: int
    frame_bytes: int


def probe_duration_ms(data: bytes) -> int | None:
    """From a WAV or FLAC header that agrees with the number of bytes; None for everything else."""
    match sniff(data):
        case "audio/wav":
            return _wav_ms(data)
        case "audio/flac":
            return _flac_ms(data)
    return None


def longest_ms(data: bytes, limits: MediaLimits | None = None) -> int:
    """To be reserved for a sound before it is decoded; no header makes it shorter than its bytes say."""
    most_ms = round((limits or MediaLimits()).duration_s * 1000)
    known_ms = probe_duration_ms(data)
    return min(most_ms, len(data) * 8000 // _LEAST_BITS_S if known_ms is None else known_ms)


def _wav_ms(data: bytes) -> int | None:
    if data[:4] != b"RIFF":
        return None
    form: _Form | None = None
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return None
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"fmt ":
            form = _form(data[at : at + size])
            if form is None:
                return None
        elif name == b"data":
            there = len(data) - at
            if form is None or (size not in (0, _UNKNOWN) and size > there):
                return None
            # A stream whose length was not known when it began goes on to the end of the file.
            held = there if size in (0, _UNKNOWN) else size
            return held // form.frame_bytes * 1000 // form.rate_hz
        at += size + size % 2
    return None


def _form(chunk: bytes) -> _Form | None:
    if len(chunk) < 16:
        return None
    tag, channels, rate_hz, bytes_s, frame_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        tag = int.from_bytes(chunk[24:26], "little")
    is_sound = tag in _PCM_TAGS and rate_hz in _RATES_HZ and channels and bits and not bits % 8
    agrees = frame_bytes == channels * bits // 8 and bytes_s == rate_hz * frame_bytes
    return _Form(tag, rate_hz, frame_bytes) if is_sound and agrees else None


def _flac_ms(data: bytes) -> int | None:
    """The number of samples is only a claim: it stands where the bytes could be so long, and not longer."""
    if len(data) < 42 or data[4] & 0x7F != 0:
        return None
    packed = int.from_bytes(data[18:26], "big")
    rate_hz, channels = packed >> 44, (packed >> 41 & 7) + 1
    bits, samples = (packed >> 36 & 31) + 1, packed & (1 << 36) - 1
    sound = len(data) - _flac_metadata_bytes(data)
    raw = samples * channels * bits // 8
    # A frame that is not worth compressing is a little larger than its samples.
    if rate_hz not in _RATES_HZ or not samples or sound <= 0 or sound > raw + raw // 16 + 8192:
        return None
    length_ms = samples * 1000 // rate_hz
    return length_ms if length_ms <= sound * 8000 // _LEAST_BITS_S else None


def _flac_metadata_bytes(data: bytes) -> int:
    at = 4
    for _ in range(_MAX_CHUNKS):
        if at + 4 > len(data):
            break
        is_last = data[at] & 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        if is_last:
            break
    return at
