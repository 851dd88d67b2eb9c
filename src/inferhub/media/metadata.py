"""What a picture says of itself, and the same picture without what it says of its owner. Pure, and lossless.

`inspect_image` reads sizes and frames so that limits can be checked, `strip` leaves out everything that is
not needed to show the picture: place, time, device, names, thumbnails, and whatever follows its end.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from inferhub.core.errors import Invalid
from inferhub.media.gif import gif_blocks, header_end
from inferhub.media.kinds import sniff
from inferhub.media.limits import MediaLimits

_MAX_PARTS = 100_000
"""Chunks or segments of one file; more are there to be slow."""
_ORIENTATION = 0x0112


@dataclass(slots=True)
class ImageHead:
    """What a header claims. Limits may be checked by it before anything is decoded; decoders check again."""

    kind: str
    """The media type."""
    width: int = 0
    height: int = 0
    frames: int = 1
    orientation: int = 1
    """As EXIF numbers them; 1 is upright."""
    kept: list[bytes | memoryview] = field(default_factory=list)
    """The file, piece by piece, without metadata."""
    has_metadata: bool = False


def inspect_image(data: bytes) -> ImageHead:
    """Of a PNG, JPEG, WebP or GIF. Raises `Invalid` for another file, and for one that has no such header."""
    kind = sniff(data) or ""
    look = _LOOKS.get(kind)
    if look is None:
        raise Invalid("This is no PNG, JPEG, WebP or GIF picture.", code="invalid_image")
    head = ImageHead(kind)
    try:
        look(memoryview(data), head)
    except (ValueError, IndexError, struct.error) as error:
        raise Invalid("The picture is corrupt or cut off.", code="invalid_image") from error
    if not head.width or not head.height:
        raise Invalid("The picture is corrupt or cut off.", code="invalid_image")
    return head


def check_head(head: ImageHead, limits: MediaLimits) -> None:
    """Raises `Invalid` for what is too large to be decoded."""
    if head.width * head.height > limits.pixels:
        raise Invalid(
            f"The picture has {head.width} × {head.height} pixels; at most {limits.pixels} are allowed.",
            code="image_too_large",
        )
    if head.frames > limits.frames:
        raise Invalid(f"The picture has more than {limits.frames} frames.", code="too_many_frames")


def strip(data: bytes, *, keep_orientation: bool = False) -> bytes:
    """Without metadata; the very same bytes where there are none. Raises `Invalid` as `inspect_image` does.

    How it has to be turned is metadata as well: with `keep_orientation` nothing else is left of them.
    """
    return stripped(data, inspect_image(data), keep_orientation=keep_orientation)


def stripped(data: bytes, head: ImageHead, *, keep_orientation: bool = False) -> bytes:
    """`strip` for a file whose head is known."""
    if not head.has_metadata:
        return data
    if keep_orientation and head.orientation != 1:
        _put_orientation(head)
    clean = b"".join(head.kept)
    if head.kind == "image/webp":
        clean = b"RIFF" + struct.pack("<I", len(clean)) + clean
    return clean


# --- PNG ---------------------------------------------------------------------------------------

_PNG_KEPT = frozenset(
    {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs",
     b"acTL", b"fcTL", b"fdAT"}
)  # fmt: skip


def _png(data: memoryview, head: ImageHead) -> None:
    head.kept.append(data[:8])
    announced = frames = 0
    end = 8
    for name, start, end in _png_chunks(data):
        body = data[start + 8 : end - 4]
        if name == b"IHDR":
            head.width, head.height = struct.unpack_from(">II", body)
        elif name == b"acTL":
            announced = int.from_bytes(body[:4], "big")
        elif name == b"fcTL":
            frames += 1
        elif name == b"eXIf":
            head.orientation = _orientation(bytes(body))
        if name in _PNG_KEPT:
            head.kept.append(data[start:end])
        else:
            head.has_metadata = True
    head.frames = max(1, announced, frames)
    head.has_metadata |= end < len(data)


def _png_chunks(data: memoryview) -> Iterator[tuple[bytes, int, int]]:
    at = 8
    for _ in range(_MAX_PARTS):
        if at + 12 > len(data):
            return
        size, name = struct.unpack_from(">I4s", data, at)
        end = min(at + 12 + size, len(data))
        yield name, at, end
        at = end
        if name == b"IEND":
            return
    raise ValueError("too many chunks")


# --- JPEG --------------------------------------------------------------------------------------

_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What is compressed holds no marker but those that start it anew."""
_PLAIN_JFIF_BYTES = 18
"""Of the segment when it holds no thumbnail."""


def _jpeg(data: memoryview, head: ImageHead) -> None:
    head.kept.append(data[:2])
    end = 2
    for marker, start, end in _jpeg_segments(data):
        segment = data[start:end]
        if marker in _SIZES:
            head.height, head.width = struct.unpack_from(">HH", segment, 5)
        elif marker == 0xE1 and bytes(segment[4:10]) == b"Exif\0\0" and head.orientation == 1:
            head.orientation = _orientation(bytes(segment[10:]))
        if _is_jpeg_metadata(marker, segment):
            head.has_metadata = True
        else:
            head.kept.append(segment)
    head.has_metadata |= end < len(data)


def _is_jpeg_metadata(marker: int, segment: memoryview) -> bool:
    if marker == 0xE0:
        return bytes(segment[4:9]) != b"JFIF\0" or len(segment) > _PLAIN_JFIF_BYTES
    if marker == 0xEE:
        return bytes(segment[4:9]) != b"Adobe"  # says how colours are stored
    return 0xE0 <= marker <= 0xEF or marker == 0xFE


def _jpeg_segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each; the one that starts compressed data reaches to the data's end."""
    at = 2
    for _ in range(_MAX_PARTS):
        start = at
        while at + 1 < len(data) and data[at] == 0xFF and data[at + 1] == 0xFF:
            at += 1
        if at + 2 > len(data):
            return
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker = data[at + 1]
        at += 2
        if marker == 0xD9:
            yield marker, start, at
            return
        if marker != 0x01 and not 0xD0 <= marker <= 0xD7:
            at += int.from_bytes(data[at : at + 2], "big")
        if marker == 0xDA:
            found = _NEXT_MARKER.search(data, at)
            at = found.start() if found else len(data)
        at = min(at, len(data))
        yield marker, start, at
    raise ValueError("too many segments")


# --- WebP --------------------------------------------------------------------------------------

_WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH"})
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04
_WEBP_EXIF_FLAG = 0x08


def _webp(data: memoryview, head: ImageHead) -> None:
    whole = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    head.has_metadata = whole < len(data)
    head.kept.append(b"WEBP")
    frames = 0
    at = 12
    for _ in range(_MAX_PARTS):
        if at + 8 > whole:
            break
        name, size = struct.unpack_from("<4sI", data, at)
        chunk = data[at : min(at + 8 + size + size % 2, whole)]
        _webp_size(name, chunk[8:], head)
        frames += name == b"ANMF"
        if name == b"EXIF":
            head.orientation = _orientation(bytes(chunk[8:]).removeprefix(b"Exif\0\0"))
        if name not in _WEBP_KEPT:
            head.has_metadata = True
        elif name == b"VP8X" and chunk[8] & _WEBP_METADATA_FLAGS:
            head.has_metadata = True
            head.kept.append(bytes(chunk[:8]) + bytes([chunk[8] & ~_WEBP_METADATA_FLAGS]) + bytes(chunk[9:]))
        else:
            head.kept.append(chunk)
        at += len(chunk)
    else:
        raise ValueError("too many chunks")
    head.frames = max(1, frames)


def _webp_size(name: bytes, body: memoryview, head: ImageHead) -> None:
    """The canvas, where there is one, or the picture itself."""
    if name == b"VP8X":
        width, height = (int.from_bytes(body[n : n + 3], "little") + 1 for n in (4, 7))
    elif name == b"VP8 ":
        width, height = (int.from_bytes(body[n : n + 2], "little") & 0x3FFF for n in (6, 8))
    elif name == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    else:
        return
    head.width, head.height = max(head.width, width), max(head.height, height)


# --- GIF ---------------------------------------------------------------------------------------


def _gif(data: memoryview, head: ImageHead) -> None:
    head.width, head.height = struct.unpack_from("<HH", data, 6)
    content = bytes(data)
    end = header_end(content)
    head.kept.append(data[:end])
    frames = 0
    for start, end, is_frame, is_metadata, (right, bottom) in gif_blocks(content):
        frames += is_frame
        head.width, head.height = max(head.width, right), max(head.height, bottom)
        if is_metadata:
            head.has_metadata = True
        else:
            head.kept.append(data[start:end])
    if not frames:
        raise ValueError("no frame")
    head.frames = frames
    head.kept.append(b";")
    head.has_metadata |= end + 1 < len(data)


# --- EXIF --------------------------------------------------------------------------------------


def _orientation(tiff: bytes) -> int:
    """1 where nothing else is said that can be understood."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    if at + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", tiff, at)
    for n in range(entries):
        place = at + 2 + n * 12
        if place + 12 > len(tiff):
            return 1
        tag, form, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
        if tag == _ORIENTATION and form == 3:
            return value if value in range(1, 9) else 1
    return 1


def _put_orientation(head: ImageHead) -> None:
    """The one entry that makes the picture stand upright where metadata are read."""
    tiff = struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, _ORIENTATION, 3, 1, head.orientation, 0, 0)
    if head.kind == "image/jpeg":
        segment = b"Exif\0\0" + tiff
        head.kept.insert(1, b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment)
    elif head.kind == "image/png":
        check = zlib.crc32(b"eXIf" + tiff)
        head.kept.insert(2, struct.pack(">I4s", len(tiff), b"eXIf") + tiff + struct.pack(">I", check))
    elif head.kind == "image/webp":
        head.kept[1:] = [_flagged(piece) for piece in head.kept[1:]]
        head.kept.append(struct.pack("<4sI", b"EXIF", len(tiff)) + tiff)


def _flagged(chunk: bytes | memoryview) -> bytes | memoryview:
    if bytes(chunk[:4]) != b"VP8X":
        return chunk
    return bytes(chunk[:8]) + bytes([chunk[8] | _WEBP_EXIF_FLAG]) + bytes(chunk[9:])


_LOOKS = {"image/png": _png, "image/jpeg": _jpeg, "image/webp": _webp, "image/gif": _gif}
