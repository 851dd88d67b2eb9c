"""What files are by their content, and how long sounds are by theirs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from inferhub.media import MediaLimits, longest_ms, probe_duration_ms, sniff, wav_header

DATA = Path(__file__).parents[1] / "data"
MPEG = b"\xff\xfb\x90\x64" + bytes(413)
ADTS = b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0AVI LIST", None),
        (b"ID3\x03\0\0\0\0\0\0\0\0\0", "audio/mpeg"),
        (MPEG * 2, "audio/mpeg"),
        (MPEG, "audio/mpeg"),
        (MPEG[:300] + b"hello" * 80, None),
        (ADTS * 2, "audio/aac"),
        (ADTS + b"hello, world", None),
        (b"OggS\0\x02", "audio/ogg"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0", "audio/mp4"),
        (b"\0\0\0\x1cftypisom\0\0\0\0", "video/mp4"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "image/avif"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", "audio/webm"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x88matroska", "video/x-matroska"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"BM" + bytes(12) + struct.pack("<I", 40), "image/bmp"),
        (b"BM is how a letter begins", None),
        (b"II*\0", "image/tiff"),
        (b"%PDF-1.7", "application/pdf"),
        (b"<svg/>", None),
        (b"<?xml version='1.0'?><svg/>", None),
        (b"PK\x03\x04", None),
        (b"<!doctype html>", None),
        ("ÿþ text of two bytes".encode("utf-16"), None),
        (b"\xff\xfeh\0e\0l\0l\0o\0", None),
        (b"", None),
        (b"\xff", None),
        (bytes(100), None),
    ],
)
def test_sniff(data: bytes, kind: str | None) -> None:
    assert sniff(data) == kind
    assert sniff(data[:1]) is None


@pytest.mark.parametrize(("name", "length_ms"), [("two_cities.wav", 44_374), ("endgame_nagg_nell.wav", None)])
def test_the_samples_are_as_long_as_they_say(name: str, length_ms: int | None) -> None:
    import wave

    data = (DATA / name).read_bytes()
    with wave.open(str(DATA / name)) as file:
        told_ms = file.getnframes() * 1000 // file.getframerate()
    assert probe_duration_ms(data) == told_ms
    assert length_ms in (None, told_ms)
    assert longest_ms(data) == told_ms


def test_a_stream_of_unknown_length_goes_to_its_end() -> None:
    assert probe_duration_ms(wav_header(8_000) + bytes(16_000)) == 1_000
    assert probe_duration_ms(wav_header(8_000, 16_000) + bytes(16_000)) == 1_000


@pytest.mark.parametrize(
    "change",
    [
        (20, b"\x02\0"),  # ADPCM
        (22, b"\x02\0"),  # two channels, whose frames are as short as of one
        (24, b"\xff\xff\xff\xff"),
        (28, b"\0\0\0\0"),
        (32, b"\0\0"),
        (34, b"\x08\0"),
        (40, b"\xfe\xff\xff\xff"),
    ],
)
def test_a_header_that_contradicts_itself_is_not_believed(change: tuple[int, bytes]) -> None:
    data = bytearray(wav_header(8_000, 16_000) + bytes(16_000))
    at, forged = change
    data[at : at + len(forged)] = forged
    assert probe_duration_ms(bytes(data)) is None
    assert longest_ms(bytes(data)) == len(data) // 2


def flac(rate_hz: int, samples: int, sound_bytes: int) -> bytes:
    packed = rate_hz << 44 | 0 << 41 | 15 << 36 | samples
    return b"fLaC\x80\0\0\x22" + bytes(10) + packed.to_bytes(8, "big") + bytes(16) + bytes(sound_bytes)


def test_flac_is_believed_where_its_bytes_agree() -> None:
    assert probe_duration_ms(flac(16_000, 160_000, 150_000)) == 10_000
    assert probe_duration_ms(flac(16_000, 160, 150_000)) is None, "too many bytes for so short a sound"
    assert probe_duration_ms(flac(16_000, 2**35, 150_000)) is None, "too few bytes for so long a sound"
    assert probe_duration_ms(flac(0, 160_000, 150_000)) is None
    assert probe_duration_ms(flac(16_000, 0, 150_000)) is None
    assert probe_duration_ms(flac(16_000, 160_000, 0)[:30]) is None


def test_what_is_compressed_is_as_long_as_its_bytes_could_be() -> None:
    assert longest_ms(b"OggS" + bytes(19_996)) == 10_000
    assert longest_ms(b"OggS" + bytes(10**8)) == MediaLimits().duration_s * 1000
    assert probe_duration_ms(b"OggS" + bytes(20_000)) is None
    assert longest_ms(b"") == 0
