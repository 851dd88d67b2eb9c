"""Pictures through real child processes, and what is said of them without decoding; bombs, lies and metadata."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from inferhub.core.errors import InferHubError, Invalid, TooLarge
from inferhub.media import MediaLimits, MediaPool, Picture, inspect_image, sniff, strip

DATA = Path(__file__).parents[1] / "data"
SECRET = b"Make of the telephone"


@pytest.fixture
async def pool() -> AsyncIterator[MediaPool]:
    pool = MediaPool()
    yield pool
    await pool.close()


def saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **more)
    return sink.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def halves() -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (60, 32), "blue")
    image.paste("red", (0, 0, 30, 32))
    return image


def shot(kind: str, orientation: int = 1) -> bytes:
    """As a telephone writes it: place, time, maker, profile and words."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, SECRET.decode()
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.6)
    more: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": b"profile" + SECRET}
    if kind == "PNG":
        words = PngImagePlugin.PngInfo()
        words.add_text("Author", SECRET.decode())
        words.add_itxt("XML:com.adobe.xmp", SECRET.decode(), zip=True)
        more["pnginfo"] = words
    elif kind == "JPEG":
        more |= {"comment": SECRET, "quality": 95}
    else:
        more |= {"xmp": SECRET, "lossless": True}
    return saved(halves(), kind, **more)


def pixel(picture: Picture, x: int, y: int) -> tuple[int, ...]:
    at = (y * picture.width + x) * 3
    return tuple(picture.rgb[at : at + 3])


async def refused(pool: MediaPool, data: bytes) -> InferHubError:
    with pytest.raises((Invalid, TooLarge)) as caught:
        await pool.decode_image(data)
    assert caught.value.param == "image"
    assert "0x" not in caught.value.message
    return caught.value


# --- pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_every_kind_is_decoded(pool: MediaPool, kind: str) -> None:
    picture = await pool.decode_image(saved(halves(), kind))
    assert (picture.width, picture.height, picture.alpha) == (60, 32, None)
    assert len(picture.rgb) == 60 * 32 * 3
    assert np.allclose(pixel(picture, 5, 5), (255, 0, 0), atol=8)
    assert np.allclose(pixel(picture, 55, 5), (0, 0, 255), atol=8)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("has_alpha", [False, True])
async def test_every_format_is_encoded(pool: MediaPool, name: str, has_alpha: bool) -> None:
    image = opened((DATA / "chelsea.png").read_bytes()).convert("RGB")
    alpha = bytes(range(256)) * (image.width * image.height // 256 + 1)
    given = Picture(
        image.width, image.height, image.tobytes(), alpha[: image.width * image.height] if has_alpha else None
    )
    data = await pool.encode_image(given, name, quality=None if name == "png" else 80)
    assert sniff(data) == f"image/{name}"
    back = await pool.decode_image(data)
    assert (back.width, back.height) == image.size
    if name == "png":
        assert back == given
    elif not has_alpha:
        difference = np.abs(np.frombuffer(back.rgb, "u1").astype(int) - np.frombuffer(given.rgb, "u1"))
        assert difference.mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
async def test_every_colour_model_becomes_rgb(pool: MediaPool, mode: str) -> None:
    image: Image.Image = halves()
    if mode == "I;16":
        image = Image.fromarray(
            np.where(np.arange(60)[None] < 30, 65_535, 25_700).repeat(32, 0).astype("<u2")
        )
    else:
        image = image.convert(mode)
    data = saved(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    picture = await pool.decode_image(data)
    if mode == "I;16":
        assert (pixel(picture, 3, 3), pixel(picture, 50, 3)) == ((255,) * 3, (100,) * 3)
    elif mode in ("P", "RGBA", "CMYK", "YCbCr"):
        assert np.allclose(pixel(picture, 5, 5), (255, 0, 0), atol=8)
    else:
        assert pixel(picture, 5, 5) != pixel(picture, 55, 5) or mode == "1"


async def test_transparency_is_apart(pool: MediaPool) -> None:
    image = Image.new("RGBA", (2, 1), (9, 8, 7, 255))
    image.putpixel((1, 0), (1, 2, 3, 40))
    picture = await pool.decode_image(saved(image, "PNG"))
    assert picture == Picture(2, 1, bytes([9, 8, 7, 1, 2, 3]), bytes([255, 40]))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    see_through = await pool.decode_image(saved(palette, "PNG", transparency=1))
    assert see_through.alpha == bytes([255, 0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
async def test_pictures_stand_upright(pool: MediaPool, kind: str, orientation: int) -> None:
    picture = await pool.decode_image(shot(kind, orientation))
    is_turned = orientation >= 5
    assert (picture.width, picture.height) == ((32, 60) if is_turned else (60, 32))
    red = {1: (5, 5), 2: (55, 5), 3: (55, 5), 4: (5, 5), 5: (5, 5), 6: (5, 5), 7: (5, 55), 8: (5, 55)}
    assert np.allclose(pixel(picture, *red[orientation]), (255, 0, 0), atol=10)


async def test_a_picture_is_made_smaller_and_never_larger(pool: MediaPool) -> None:
    data = (DATA / "coffee.png").read_bytes()
    for side, size in ((300, (300, 200)), (600, (600, 400)), (5_000, (600, 400))):
        picture = await pool.decode_image(data, max_side=side)
        assert (picture.width, picture.height) == size
    large = saved(Image.new("RGB", (4_000, 3_000), "teal"), "JPEG")
    picture = await pool.decode_image(large, max_side=512)
    assert (picture.width, picture.height) == (512, 384)


async def test_the_first_frame_is_looked_at(pool: MediaPool) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.allclose(pixel(await pool.decode_image(data), 1, 1), (255, 0, 0), atol=8)
        assert inspect_image(data).frames == 3


# --- bombs and lies ----------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, pixels: bytes = b"", *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(pixels, 9))
        + chunk(b"IEND", b"")
    )


def gif(frames: int) -> bytes:
    one = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + one * frames + b";"


def peak_mib(pool: MediaPool) -> int:
    [pid] = pool.pids
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


BOMBS = {
    "100 megapixels": (png(10_000, 10_000, bytes(10_000 * 3 * 100)), "image_too_large"),
    "a side of 2 thousand million": (png(2**31 - 1, 1), "image_too_large"),
    "10,000 frames": (gif(10_000), "too_many_frames"),
    "an APNG that says it has many": (png(1, 1, bytes(4), chunk(b"acTL", struct.pack(">II", 10_000, 0))), "too_many_frames"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "invalid_image"),
    "zip": (b"PK\x03\x04" + bytes(300), "invalid_image"),
    "html": (b"<!doctype html>", "invalid_image"),
    "pdf": (b"%PDF-1.7", "invalid_image"),
    "nothing": (b"", "invalid_image"),
    "tiff": (b"II*\0" + bytes(200), "invalid_image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run", "invalid_image"),
    "words in a PNG that unpack to 200 MB": (
        png(1, 1, bytes(4), *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 * 2**20), 9))] * 4), "invalid_image"),
    "a PNG without pixels": (png(100, 100), "invalid_image"),
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
async def test_bombs_are_refused_before_they_are_decoded(pool: MediaPool, what: str) -> None:
    await pool.warm("image")
    data, code = BOMBS[what]
    error = await refused(pool, data)
    assert (error.http, error.wire_code) == (400, code)
    assert peak_mib(pool) < 150


@pytest.mark.parametrize(
    "what", ["100 megapixels", "10,000 frames", "an APNG that says it has many", "svg", "zip"]
)
async def test_bombs_are_not_passed_on_either(pool: MediaPool, what: str) -> None:
    data, code = BOMBS[what]
    with pytest.raises(Invalid) as caught:
        await pool.clean_image(data, param="messages[0]")
    assert (caught.value.wire_code, caught.value.param) == (code, "messages[0]")
    assert not pool.pids, "a header is enough"


async def test_what_takes_too_much_memory_fails_alone() -> None:
    pool = MediaPool(MediaLimits(memory_bytes=256 * 1024**2))
    error = await refused(pool, png(7_000, 7_000, bytes(7_000 * (7_000 * 3 + 1))))
    assert error.http == 400
    assert (await pool.decode_image(saved(halves(), "PNG"))).width == 60
    await pool.close()


async def test_the_largest_allowed_picture_fits(pool: MediaPool) -> None:
    """Turned, transparent and as large as allowed: the memory that a child may take is enough."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(
        Image.new("RGBA", (8_000, 6_250), (1, 2, 3, 4)), "PNG", exif=exif.tobytes(), compress_level=1
    )
    picture = await pool.decode_image(data)
    assert (picture.width, picture.height) == (6_250, 8_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_pictures_that_are_cut_off_or_damaged(pool: MediaPool, kind: str) -> None:
    """They are refused, or show something; nothing dies and nothing else is raised."""
    data = saved(opened((DATA / "chelsea.png").read_bytes()).convert("RGB"), kind)
    assert (await refused(pool, data[: len(data) // 2])).wire_code == "invalid_image"
    dice = np.random.default_rng(3)
    for _ in range(25):
        damaged = bytearray(data)
        for at in dice.integers(0, min(len(data), 600), 4):
            damaged[at] = dice.integers(0, 256)
        for look in (inspect_image, strip):
            with contextlib.suppress(Invalid):
                look(bytes(damaged))
        try:
            await pool.decode_image(bytes(damaged))
        except InferHubError as error:
            assert error.http in (400, 413), error
    assert len(pool.pids) <= 1


# --- metadata ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_metadata_go_and_pixels_stay(pool: MediaPool, kind: str) -> None:
    data = shot(kind) + b"and a film after its end"
    assert SECRET in data
    clean = strip(data)
    assert SECRET not in clean
    assert b"profile" not in clean
    assert b"film" not in clean
    assert opened(clean).tobytes() == opened(data).tobytes(), "nothing is encoded anew"
    assert not opened(clean).getexif()
    assert strip(clean) is clean, "nothing is left to do"
    assert await pool.clean_image(data) == clean
    assert not pool.pids, "no process is needed for it"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
async def test_what_has_to_be_turned_is_turned(pool: MediaPool, kind: str, orientation: int) -> None:
    data = shot(kind, orientation)
    clean = await pool.clean_image(data)
    assert SECRET not in clean
    assert not opened(clean).getexif()
    assert sniff(clean) == sniff(data)
    before, after = await pool.decode_image(data), await pool.decode_image(clean)
    assert (before.width, before.height) == (after.width, after.height)
    difference = np.abs(np.frombuffer(before.rgb, "u1").astype(int) - np.frombuffer(after.rgb, "u1"))
    assert difference.mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_without_decoders_one_entry_says_how_to_turn_it(kind: str) -> None:
    clean = strip(shot(kind, 6), keep_orientation=True)
    assert SECRET not in clean
    assert dict(opened(clean).getexif()) == {0x0112: 6}
    assert inspect_image(clean).orientation == 6


def test_a_gif_keeps_its_frames_and_loses_its_words() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=3, comment=SECRET)
    assert SECRET in data
    clean = strip(data)
    assert SECRET not in clean
    image = opened(clean)
    assert (getattr(image, "n_frames", 0), image.info["loop"]) == (2, 3)
    assert strip(clean) is clean


def test_a_jpeg_keeps_what_says_how_its_colours_are_stored() -> None:
    data = saved(halves().convert("CMYK"), "JPEG", exif=Image.Exif().tobytes(), comment=SECRET)
    assert opened(strip(data)).tobytes() == opened(data).tobytes()
    progressive = saved(halves(), "JPEG", progressive=True, comment=SECRET)
    assert opened(strip(progressive)).tobytes() == opened(progressive).tobytes()
    assert SECRET not in strip(progressive)


@pytest.mark.parametrize("name", ["coffee.png", "chelsea.png", "invoice.png"])
def test_heads_of_the_samples(name: str) -> None:
    data = (DATA / name).read_bytes()
    head = inspect_image(data)
    with warnings.catch_warnings():
        assert (head.width, head.height) == opened(data).size
    assert opened(strip(data)).tobytes() == opened(data).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (1_000, 2_000)])
def test_sizes_are_read_from_headers(kind: str, size: tuple[int, int]) -> None:
    for more in ({}, {"lossless": True}) if kind == "WEBP" else ({},):
        head = inspect_image(saved(Image.new("RGB", size), kind, **more))
        assert (head.width, head.height, head.frames, head.orientation) == (*size, 1, 1)
