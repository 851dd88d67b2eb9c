"""What a file is by its content, whatever anybody calls it. Cheap and pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

SOUNDS: Mapping[str, str] = {
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "audio/mp4": "mov",
    "video/mp4": "mov",
    "audio/webm": "matroska",
    "video/x-matroska": "matroska",
    "audio/aac": "aac",
}
"""Media type → the one demuxer that may read it."""

IMAGES: Mapping[str, str] = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
}
"""Media type → the one reader that may look at it."""

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"%PDF-", "application/pdf"),
)
_BRANDS = {b"avif": "image/avif", b"avis": "image/avif", b"heic": "image/heic", b"heix": "image/heic",
           b"mif1": "image/heic", b"M4A ": "audio/mp4", b"M4B ": "audio/mp4"}  # fmt: skip
_EBML_SEARCHED = 256

_MPEG_KBITS = {
    # (is MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def sniff(data: bytes) -> str | None:
    """The media type, also of some kinds that nobody here reads; None where the content says nothing."""
    for start, kind in _STARTS:
        if data.startswith(start):
            return kind
    return next((found for look in _LOOKS if (found := look(data)) is not None), None)


def _riff(data: bytes) -> str | None:
    if data[:4] not in (b"RIFF", b"RF64"):
        return None
    return {b"WAVE": "audio/wav", b"WEBP": "image/webp"}.get(bytes(data[8:12]))


def _iso_media(data: bytes) -> str | None:
    return _BRANDS.get(bytes(data[8:12]), "video/mp4") if data[4:8] == b"ftyp" else None


def _ebml(data: bytes) -> str | None:
    if not data.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    return "audio/webm" if b"webm" in data[:_EBML_SEARCHED] else "video/x-matroska"


def _bmp(data: bytes) -> str | None:
    """Two letters are too few to be sure of; the size of the second header is one of few."""
    is_bmp = data[:2] == b"BM" and data[14:18] in _BMP_HEADERS
    return "image/bmp" if is_bmp else None


def _adts(data: bytes) -> str | None:
    at = _adts_end(data, 0)
    return "audio/aac" if at and (at == len(data) or _adts_end(data, at)) else None


def _mpeg(data: bytes) -> str | None:
    if data.startswith(b"ID3") and len(data) > 10:
        return "audio/mpeg"
    at = _mpeg_end(data, 0)
    return "audio/mpeg" if at and (at == len(data) or _mpeg_end(data, at)) else None


def _adts_end(data: bytes, at: int) -> int:
    """Where the frame that starts here ends; 0 where none starts."""
    head = data[at : at + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or (head[2] >> 2) & 15 > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return at + length if length > 7 else 0


def _mpeg_end(data: bytes, at: int) -> int:
    """Where the frame that starts here ends; 0 where none starts."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = (head[1] >> 3) & 3, 4 - ((head[1] >> 1) & 3)
    kbits, rate, padding = head[2] >> 4, (head[2] >> 2) & 3, (head[2] >> 1) & 1
    if version == 1 or layer == 4 or kbits in (0, 15) or rate == 3:
        return 0
    bits_s = _MPEG_KBITS[version == 3, layer][kbits - 1] * 1000
    rate_hz = _MPEG_RATES_HZ[version][rate]
    if layer == 1:
        return at + (12 * bits_s // rate_hz + padding) * 4
    samples = 576 if layer == 3 and version != 3 else 1152
    return at + samples // 8 * bits_s // rate_hz + padding


_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
_LOOKS: tuple[Callable[[bytes], str | None], ...] = (_riff, _iso_media, _ebml, _bmp, _adts, _mpeg)
