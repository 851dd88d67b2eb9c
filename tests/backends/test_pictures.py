"""The engines that change pictures, with their real networks, on real photographs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from platformdirs import user_cache_path

from inferhub.backends.base import Backend
from inferhub.backends.realesrgan import RealEsrgan
from inferhub.backends.realesrgan.network import Network
from inferhub.backends.realesrgan.tiles import Tiling, tiles
from inferhub.backends.style_transfer import StyleTransfer
from inferhub.core.call import Call, Delta, Finished, Media
from inferhub.core.errors import Invalid, SetupError, Unsupported
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.media import MediaPool, Picture, sniff
from inferhub.modalities.image import ImageDelta
from inferhub.registry.weights import Weights
from inferhub.testing.calls import make_call

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = Path(__file__).parents[1] / "data"
CAT = Media("image", (DATA / "chelsea.png").read_bytes(), "image/png", "cat.png")
COFFEE = Media("image", (DATA / "coffee.png").read_bytes(), "image/png", "coffee.png")

Colours = NDArray[np.int16]


@pytest.fixture(scope="module")
def realesrgan_path() -> Path:
    """Fails with the remedy where `make weights` has not run."""
    cache_dir = Path(os.environ.get("INFERHUB_CACHE_DIR") or user_cache_path("inferhub", appauthor=False))
    return Weights(cache_dir).resolve("realesrgan")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[MediaPool]:
    pool = MediaPool()
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def style() -> AsyncIterator[StyleTransfer]:
    backend = StyleTransfer(ModelSpec("style", "style_transfer"), None)
    await backend.load()
    yield backend
    await backend.unload()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upscaler(realesrgan_path: Path) -> AsyncIterator[RealEsrgan]:
    backend = RealEsrgan(ModelSpec("realesrgan", "realesrgan"), realesrgan_path)
    await backend.load()
    yield backend
    await backend.unload()


def edit(*media: Media, **params: Any) -> Call:
    return make_call("image", "m", media=media, **{"task": "edit", "prompt": "", **params})


async def answered(backend: Backend, call: Call) -> tuple[list[ImageDelta], Usage]:
    deltas: list[ImageDelta] = []
    usage: Usage | None = None
    async for chunk in backend.run(call):
        assert usage is None, "something came after the end"
        if isinstance(chunk, Finished):
            usage = chunk.usage
        else:
            deltas.append(chunk.payload)
    assert usage is not None
    return deltas, usage


async def colours(pool: MediaPool, data: bytes) -> Colours:
    picture = await pool.decode_image(data)
    return np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3).astype(np.int16)


async def png(pool: MediaPool, pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None) -> Media:
    high, wide = pixels.shape[:2]
    picture = Picture(wide, high, pixels.tobytes(), None if alpha is None else alpha.tobytes())
    return Media("image", await pool.encode_image(picture, "png"), "image/png")


async def cut(pool: MediaPool, file: Media, width: int, height: int) -> Media:
    return await png(pool, (await colours(pool, file.data))[:height, :width].astype(np.uint8))


def difference(one: Colours, other: Colours) -> float:
    return float(np.abs(one - other).mean())


# --- styles ------------------------------------------------------------------------------------


async def test_a_style_changes_the_picture_and_not_its_size(style: StyleTransfer, pool: MediaPool) -> None:
    before = await colours(pool, CAT.data)
    made = []
    for name in ("starry", "glass"):
        [image], usage = await answered(style, edit(CAT, style=name))
        assert sniff(image.data) == "image/png"
        assert (image.width, image.height) == (before.shape[1], before.shape[0])
        assert (usage.images, usage.pixels) == (1, before.shape[0] * before.shape[1])
        made.append(await colours(pool, image.data))
        assert made[-1].shape == before.shape
        assert difference(before, made[-1]) > 15
    assert difference(*made) > 15


async def test_strength_goes_from_nothing_to_everything(style: StyleTransfer, pool: MediaPool) -> None:
    before = await colours(pool, CAT.data)
    far = []
    for strength in (0.0, 0.5, 1.0):
        [image], _ = await answered(style, edit(CAT, style="3", strength=strength))
        far.append(difference(before, await colours(pool, image.data)))
    assert far[0] < 0.01
    assert far[0] < far[1] < far[2]


async def test_any_second_picture_is_a_style(style: StyleTransfer, pool: MediaPool) -> None:
    before = await colours(pool, CAT.data)
    made = {}
    for strength in (0.0, 1.0):
        [image], _ = await answered(style, edit(CAT, COFFEE, strength=strength))
        made[strength] = await colours(pool, image.data)
        assert made[strength].shape == before.shape
    assert difference(before, made[0.0]) < 0.01
    assert difference(before, made[1.0]) > 10


async def test_colours_can_be_kept(style: StyleTransfer, pool: MediaPool) -> None:
    """Red against blue: what a style turns upside down, and the original's is."""
    before = await colours(pool, CAT.data)

    def warmth(pixels: Colours) -> Colours:
        return pixels[..., 0] - pixels[..., 2]

    far = {}
    for keep in (False, True):
        [image], _ = await answered(style, edit(CAT, style="starry", preserve_color=keep))
        far[keep] = float(np.abs(warmth(before) - warmth(await colours(pool, image.data))).mean())
    assert far[True] < far[False] / 3


@pytest.mark.parametrize(("format", "kind"), [("jpeg", "image/jpeg"), ("webp", "image/webp")])
async def test_size_and_format_are_as_asked(style: StyleTransfer, format: str, kind: str) -> None:  # noqa: A002
    call = edit(CAT, style="ink", size="320x256", output_format=format, output_compression=40)
    [image], usage = await answered(style, call)
    assert (sniff(image.data), image.width, image.height) == (kind, 320, 256)
    assert usage.pixels == 320 * 256


async def test_what_is_transparent_stays_so(style: StyleTransfer, pool: MediaPool) -> None:
    alpha = np.full((64, 80), 255, np.uint8)
    alpha[:32] = 0
    file = await png(pool, np.full((64, 80, 3), 90, np.uint8), alpha)
    [image], _ = await answered(style, edit(file, style="ink"))
    found = await pool.decode_image(image.data)
    assert found.alpha == alpha.tobytes()
    [image], _ = await answered(style, edit(file, style="ink", output_format="jpeg"))
    assert (await pool.decode_image(image.data)).alpha is None


async def test_a_large_picture_keeps_its_size(style: StyleTransfer, pool: MediaPool) -> None:
    wide = np.tile((await colours(pool, COFFEE.data)).astype(np.uint8)[:300], (1, 3, 1))
    [image], _ = await answered(style, edit(await png(pool, wide), style="oil"))
    assert (image.width, image.height) == (wide.shape[1], 300)


async def test_what_a_style_cannot_do_is_refused(style: StyleTransfer, pool: MediaPool) -> None:
    small = await png(pool, np.zeros((8, 8, 3), np.uint8))
    bomb = Media("image", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, "image/png")
    for call, kind, param in (
        (edit(), Invalid, "image"),
        (edit(CAT, CAT, CAT), Invalid, "image"),
        (edit(CAT, Media("mask", CAT.data), style="ink"), Unsupported, "mask"),
        (edit(CAT, prompt="nothing known"), Invalid, "prompt"),
        (edit(small, style="ink"), Invalid, "image"),
        (edit(bomb, style="ink"), Invalid, "image"),
    ):
        with pytest.raises(kind) as refusal:
            await answered(style, call)
        assert refusal.value.param == param


async def test_what_it_offers_is_known_before_it_is_loaded(style: StyleTransfer) -> None:
    assert StyleTransfer.offers(style.spec) == style.capabilities
    assert "edit" in style.capabilities[0].features


# --- larger ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
async def test_a_picture_gets_larger_and_stays_itself(
    upscaler: RealEsrgan, pool: MediaPool, scale: int
) -> None:
    file = await cut(pool, CAT, 200, 140)
    before = await colours(pool, file.data)
    deltas, usage = await answered(upscaler, edit(file, scale=scale))
    *steps, image = deltas
    assert (image.kind, image.width, image.height) == ("image", 200 * scale, 140 * scale)
    assert usage.pixels == 200 * scale * 140 * scale
    assert [delta.step for delta in steps] == list(range(len(steps)))
    assert {delta.steps for delta in steps} == {len(steps) - 1}
    made = await colours(pool, image.data)
    small = made.reshape(140, scale, 200, scale, 3).mean(axis=(1, 3))
    assert difference(before, small.astype(np.int16)) < 6


@pytest.mark.parametrize(("name", "scale"), [("animevideov3-x2", 2), ("animevideov3-x4", 4)])
async def test_tiles_leave_no_seam(realesrgan_path: Path, pool: MediaPool, name: str, scale: int) -> None:
    """In tiles as the backend cuts them, a picture is what it is in one piece."""
    pixels = (await colours(pool, CAT.data)).astype(np.uint8)[60:210, 100:250]
    network = Network(realesrgan_path, name, 1)
    whole = network.enlarged(pixels)
    made = np.zeros_like(whole)
    parts = tiles(*pixels.shape[:2], Tiling(128, 20))
    assert len(parts) == 4
    for tile in parts:
        tile.place(network.enlarged(tile.cut(pixels)), made, scale)
    assert int(np.abs(whole.astype(np.int16) - made).max()) <= 1


async def test_photographs_have_a_network_of_their_own(upscaler: RealEsrgan, pool: MediaPool) -> None:
    """Its reach is unbounded, so tiles differ from the whole; yet no step is to be seen where they meet."""
    file = await cut(pool, CAT, 64, 48)
    deltas, _ = await answered(upscaler, edit(file, style="photo"))
    image = deltas[-1]
    assert (image.width, image.height) == (256, 192)
    made = await colours(pool, image.data)
    drawn, _ = await answered(upscaler, edit(file, style="drawing"))
    assert difference(made, await colours(pool, drawn[-1].data)) > 0.5
    steps = np.abs(np.diff(made, axis=1)).mean(axis=(0, 2))
    seam = tiles(48, 64, Tiling(56, 8))[0].columns.own_end * 4 - 1
    nearby = steps[seam - 24 : seam + 24]
    assert nearby.max() < 2 * np.median(nearby)


async def test_a_cancelled_call_stops_between_two_tiles(upscaler: RealEsrgan, pool: MediaPool) -> None:
    """The thread is free again long before all tiles are done, and answers the next call."""
    big = await png(pool, np.tile((await colours(pool, COFFEE.data)).astype(np.uint8), (2, 2, 1)))
    seen = []
    async with aclosing(upscaler.run(edit(big, scale=2))) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            assert isinstance(chunk, Delta)
            seen.append(chunk.payload.step)
            if len(seen) == 2:
                break
    total = chunk.payload.steps
    assert total > 50
    small = await cut(pool, CAT, 40, 40)
    async with asyncio.timeout(30):
        deltas, _ = await answered(upscaler, edit(small, scale=2))
    assert deltas[-1].width == 80


async def test_what_cannot_be_enlarged_is_refused(upscaler: RealEsrgan, pool: MediaPool) -> None:
    big = await png(pool, np.zeros((1200, 1200, 3), np.uint8))
    for call, kind, param in (
        (edit(), Invalid, "image"),
        (edit(big, scale=4), Invalid, "image"),
        (edit(CAT, style="photo", scale=2), Unsupported, "scale"),
        (edit(CAT, style="starry"), Invalid, "style"),
        (edit(CAT, size="64x64"), Unsupported, "size"),
        (edit(CAT, Media("mask", CAT.data)), Unsupported, "mask"),
    ):
        with pytest.raises(kind) as refusal:
            await answered(upscaler, call)
        assert refusal.value.param == param


async def test_weights_that_are_none_are_refused_when_it_loads(tmp_path: Path) -> None:
    backend = RealEsrgan(ModelSpec("realesrgan", "realesrgan"), tmp_path)
    with pytest.raises(SetupError) as refusal:
        await backend.load()
    assert "animevideov3-x4.param" in refusal.value.message
    (tmp_path / "animevideov3-x4.param").write_text("7767517\n", encoding="ascii")
    (tmp_path / "animevideov3-x4.bin").write_bytes(b"")
    with pytest.raises(SetupError):
        await backend.load()
