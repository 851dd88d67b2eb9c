"""How long a sound is that somebody else encoded, by counting what is in it. Pure.

For metering, where an upstream hears or speaks and does not say how long. Nothing is believed that a header
claims of the rest: frames are counted, and the last page of an Ogg file counts samples itself.
"""

from __future__ import annotations

from inferhub.media.kinds import sniff
from inferhub.media.lengths import probe_duration_ms

_KBITS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_AAC_RATES_HZ = (
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
)  # fmt: skip
_AAC_SAMPLES = 1024
_OPUS_RATE_HZ = 48_000
_MAX_MS = 24 * 3600 * 1000


def length_ms(data: bytes) -> int | None:
    """Of WAV, FLAC, MP3, AAC (ADTS) and Opus in Ogg; None for what else there is, and for what is broken."""
    match sniff(data):
        case "audio/mpeg":
            return _mp3_ms(data)
        case "audio/aac":
            return _aac_ms(data)
        case "audio/ogg":
            return _opus_ms(data)
    return probe_duration_ms(data)


def _mp3_ms(data: bytes) -> int | None:
    at = 0
    if data.startswith(b"ID3") and len(data) > 10:
        # Its length has seven bits in each byte.
        at = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    total_us = 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xE6 == 0xE2:
        version, bits = data[at + 1] >> 3 & 3, data[at + 2]
        rate_place, kbits_place = bits >> 2 & 3, bits >> 4
        if version == 1 or rate_place == 3 or kbits_place in (0, 15):
            break
        rate_hz = _MPEG_RATES_HZ[version][rate_place]
        samples = 1152 if version == 3 else 576
        kbits = (_KBITS_1 if version == 3 else _KBITS_2)[kbits_place - 1]
        at += samples // 8 * kbits * 1000 // rate_hz + (bits >> 1 & 1)
        total_us += samples * 1_000_000 // rate_hz
    return total_us // 1000 or None


def _aac_ms(data: bytes) -> int | None:
    at = total_us = 0
    while at + 7 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0:
        rate_place = data[at + 2] >> 2 & 15
        length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        if rate_place >= len(_AAC_RATES_HZ) or length < 7:
            break
        at += length
        total_us += _AAC_SAMPLES * 1_000_000 // _AAC_RATES_HZ[rate_place]
    return total_us // 1000 or None


def _opus_ms(data: bytes) -> int | None:
    if b"OpusHead" not in data[:64]:
        return None
    page = data.rfind(b"OggS")
    position = int.from_bytes(data[page + 6 : page + 14], "little", signed=True)
    found_ms = position * 1000 // _OPUS_RATE_HZ
    return found_ms if 0 < found_ms <= _MAX_MS else None
