"""Pictures ↔ pixels. Runs in the child, the only place with Pillow for strangers' files; `pool` asks."""

from __future__ import annotations

# Some of these are imported for Pillow, which would do so when it meets such a picture: then no file can be
# opened any more, modules included.
import copy  # noqa: F401
import io
from typing import Protocol

import PIL.ImageFilter
import PIL.ImagePalette
import PIL.MpoImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin  # noqa: F401
from PIL import Image, ImageOps

from inferhub.media.gif import count_gif_frames
from inferhub.media.kinds import IMAGES, sniff
from inferhub.media.limits import MediaLimits
from inferhub.media.messages import (
    DecodeImage,
    EncodeImage,
    Kind,
    Refused,
    Size,
    Upright,
    encode,
    invalid_image,
)

Image.preinit()
Image.MAX_IMAGE_PIXELS = None  # the limit is ours, checked below before anything is decoded
_CORRUPT = "The picture is corrupt or cut off."
_DEFAULT_QUALITY = {"jpeg": 90, "webp": 90}
_WEBP_MAX_SIDE = 16_383


class Line(Protocol):
    """The child's end of the line, as this file needs it."""

    def everything(self, most_bytes: int) -> bytes: ...
    def send(self, content: bytes | memoryview) -> None: ...
    def say(self, kind: Kind, payload: bytes | memoryview = b"") -> None: ...


def do(task: DecodeImage | EncodeImage | Upright, limits: MediaLimits, line: Line) -> None:
    match task:
        case DecodeImage():
            _decode(task, limits, line)
        case EncodeImage():
            _encode(task, line)
        case Upright():
            _turn_upright(limits, line)


def _decode(task: DecodeImage, limits: MediaLimits, line: Line) -> None:
    image = _read(line.everything(limits.input_bytes), limits, task.max_side)
    alpha = None
    if image.has_transparency_data or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
    colours = image.convert("RGB")
    line.say(Kind.NOTE, encode(Size(colours.width, colours.height, alpha is not None)))
    line.send(colours.tobytes())
    if alpha is not None:
        line.send(alpha.tobytes())


def _encode(task: EncodeImage, line: Line) -> None:
    size = (task.width, task.height)
    pixels = task.width * task.height
    data = line.everything(pixels * 4)
    if len(data) != pixels * (4 if task.has_alpha else 3):
        raise Refused("internal", "internal_error", "The picture has not as many bytes as its size says.")
    image = Image.frombytes("RGB", size, data[: pixels * 3])
    if task.has_alpha and task.format != "jpeg":
        image.putalpha(Image.frombytes("L", size, data[pixels * 3 :]))
    elif task.has_alpha:
        # JPEG has no transparency: what shows through is white, as on paper.
        paper = Image.new("RGB", size, "white")
        paper.paste(image, mask=Image.frombytes("L", size, data[pixels * 3 :]))
        image = paper
    line.send(_written(image, task.format, task.quality))


def _turn_upright(limits: MediaLimits, line: Line) -> None:
    data = line.everything(limits.input_bytes)
    kind = IMAGES[sniff(data) or ""]
    image = _read(data, limits, None)
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    line.send(_written(image, "png" if kind in ("GIF", "BMP") else kind.lower(), None))


def _written(image: Image.Image, name: str, quality: int | None) -> bytes:
    if name == "webp" and max(image.size) > _WEBP_MAX_SIDE:
        raise invalid_image(f"A WebP picture has sides of at most {_WEBP_MAX_SIDE} pixels.")
    if name == "jpeg" and image.mode in ("LA", "RGBA"):
        image = image.convert("RGB")
    sink = io.BytesIO()
    image.info = {}  # nothing but pixels
    if name == "png":
        image.save(sink, "PNG")
    else:
        image.save(sink, name.upper(), quality=quality or _DEFAULT_QUALITY[name])
    return sink.getvalue()


def _read(data: bytes, limits: MediaLimits, max_side: int | None) -> Image.Image:
    """The first frame, upright, with at most 8 bits a channel."""
    image = _opened(data, limits)
    try:
        if max_side is not None and max(image.size) > max_side:
            image.draft(None, (max_side, max_side))  # JPEG can be decoded smaller
        image.load()
        image = _eight_bit(_upright(image))
        if max_side is not None and max(image.size) > max_side:
            if image.mode not in ("L", "LA", "RGB", "RGBA"):
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    except MemoryError:
        raise
    except Exception as error:  # the border: readers raise whatever they meet
        raise invalid_image(_CORRUPT) from error
    return image


def _opened(data: bytes, limits: MediaLimits) -> Image.Image:
    """Its header is read; what it announces is within the limits."""
    kind = IMAGES.get(sniff(data) or "")
    if kind is None:
        raise invalid_image("This is no picture that can be read.")
    if kind == "GIF" and count_gif_frames(data, limits.frames) > limits.frames:
        raise _too_many_frames(limits)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=[kind])
        width, height = image.size
        frames = 1 if kind == "GIF" else getattr(image, "n_frames", 1)
    except MemoryError:
        raise
    except Exception as error:  # the border, as above
        raise invalid_image(_CORRUPT) from error
    if width * height > limits.pixels:
        raise invalid_image(
            f"The picture has {width} × {height} pixels; at most {limits.pixels} are allowed.",
            "image_too_large",
        )
    if frames > limits.frames:
        raise _too_many_frames(limits)
    return image


def _too_many_frames(limits: MediaLimits) -> Refused:
    return invalid_image(f"The picture has more than {limits.frames} frames.", "too_many_frames")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Pillow would cut off what is above 255, not scale it."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F", "1"):
        return image.convert("L" if image.mode in ("F", "1") else "RGB")
    return image
