"""The diffusers backend on tiny random models of each family, made here: shapes, steps, seeds, masks, cancel.

What they paint is noise; that it is painted by the real pipelines is what is tested. Needs the extra `diffusion`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from inferhub.backends.diffusers import Diffusers
from inferhub.core.call import Delta, Finished, Media
from inferhub.core.errors import Invalid, Unsupported
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.media import MediaPool, Picture, sniff
from inferhub.modalities.image import ImageDelta
from inferhub.testing.calls import make_call

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    # The libraries' own.
    pytest.mark.filterwarnings(
        "default::FutureWarning", "default::DeprecationWarning", "default::UserWarning"
    ),
]

WORDS = ["re", "red</w>", "<|startoftext|>", "<|endoftext|>", "a", "a</w>", "r", "e", "d</w>"]
MERGES = "#version: 0.2\nr e\nre d</w>\n"
WIDE, HIGH = 90, 70


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text(MERGES)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = 77
    return tokenizer


def _text_encoder(kind: str = "CLIPTextModel") -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        bos_token_id=2, eos_token_id=3, pad_token_id=3, hidden_size=32, intermediate_size=37,
        num_attention_heads=4, num_hidden_layers=2, vocab_size=1000, projection_dim=32,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def _vae(channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[32, 64], in_channels=3, out_channels=3, latent_channels=channels, sample_size=64,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **more,
    )  # fmt: skip


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip


def _sd(folder: Path) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_vae(), text_encoder=_text_encoder(), tokenizer=_tokenizer(folder / "words"),
        unet=_unet(cross_attention_dim=32), scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = _unet(
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), cross_attention_dim=64,
        projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_text_encoder(), tokenizer=_tokenizer(folder / "words"), unet=unet,
        text_encoder_2=_text_encoder("CLIPTextModelWithProjection"),
        tokenizer_2=_tokenizer(folder / "words2"), scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip


def _flux(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    vae = _vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)
    t5 = T5EncoderModel(T5Config(vocab_size=1000, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4))
    return FluxPipeline(
        vae=vae, text_encoder=_text_encoder(), tokenizer=_tokenizer(folder / "words"), text_encoder_2=t5,
        tokenizer_2=_tokenizer(folder / "words2"), transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sd", "sdxl", "flux"])
async def painter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Diffusers]:
    torch = pytest.importorskip("torch", reason="needs the extra 'diffusion'")
    pytest.importorskip("diffusers", reason="needs the extra 'diffusion'")
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    {"sd": _sd, "sdxl": _sdxl, "flux": _flux}[request.param](folder / "parts").save_pretrained(
        folder / "model"
    )
    backend = Diffusers(ModelSpec("painter", "diffusers", device="cpu"), folder / "model")
    await backend.load()
    yield backend
    await backend.unload()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[MediaPool]:
    pool = MediaPool()
    yield pool
    await pool.close()


async def painted(backend: Diffusers, *media: Media, **params: Any) -> tuple[list[ImageDelta], Usage]:
    deltas: list[ImageDelta] = []
    call = make_call("image", "painter", media=media, **{"prompt": "a red a", **params})
    async for chunk in backend.run(call):
        if isinstance(chunk, Finished):
            return deltas, chunk.usage
        deltas.append(chunk.payload)
    raise AssertionError("no end")


async def pixels(pool: MediaPool, data: bytes) -> Any:
    picture = await pool.decode_image(data)
    return np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3).astype(int)


async def photo(pool: MediaPool, *, hole: bool = False, field: str = "image") -> Media:
    colours = np.random.default_rng(0).integers(0, 255, (HIGH, WIDE, 3), dtype=np.uint8)
    alpha = np.full((HIGH, WIDE), 255, np.uint8)
    alpha[: HIGH // 2] = 0
    picture = Picture(WIDE, HIGH, colours.tobytes(), alpha.tobytes() if hole else None)
    return Media(field, await pool.encode_image(picture, "png"), "image/png")


async def test_a_text_becomes_a_picture_step_by_step(painter: Diffusers) -> None:
    deltas, usage = await painted(painter, size="64x72", steps=4, partial_images=2, stream=True, seed=1)
    kinds = [delta.kind for delta in deltas]
    assert kinds == ["progress", "progress", "partial", "progress", "partial", "progress", "image"]
    assert [(d.step, d.steps) for d in deltas if d.kind == "progress"] == [(n, 4) for n in (1, 2, 3, 4)]
    assert [d.index for d in deltas if d.kind == "partial"] == [0, 1]
    for delta in deltas:
        if delta.kind != "progress":
            assert (sniff(delta.data), delta.width, delta.height) == ("image/png", 64, 72)
    assert (usage.images, usage.pixels) == (1, 64 * 72)


async def test_a_seed_gives_the_same_picture_and_each_of_several_its_own(painter: Diffusers) -> None:
    one, _ = await painted(painter, size="64x64", steps=2, seed=5, n=2)
    again, _ = await painted(painter, size="64x64", steps=2, seed=5)
    first, second = [delta for delta in one if delta.kind == "image"]
    assert first.data == again[-1].data
    assert first.data != second.data
    assert (first.index, second.index) == (0, 1)


async def test_any_size_is_met_to_the_pixel(painter: Diffusers) -> None:
    deltas, _ = await painted(painter, size="101x67", steps=1)
    assert (deltas[-1].width, deltas[-1].height) == (101, 67)
    with pytest.raises(Invalid) as refusal:
        await painted(painter, size="2048x2048")
    assert refusal.value.param == "size"


@pytest.mark.parametrize("task", ["edit", "variation"])
async def test_a_picture_is_changed_as_far_as_its_strength_says(
    painter: Diffusers, pool: MediaPool, task: str
) -> None:
    file = await photo(pool)
    before = await pixels(pool, file.data)
    deltas, _ = await painted(painter, file, task=task, steps=4, seed=1)
    made = await pixels(pool, deltas[-1].data)
    assert made.shape == before.shape
    assert np.abs(made - before).mean() > 5
    deltas, _ = await painted(painter, file, task=task, strength=0)
    assert (await pixels(pool, deltas[-1].data) == before).all()


@pytest.mark.parametrize("where", ["mask", "image"])
async def test_outside_its_mask_a_picture_stays_to_the_last_bit(
    painter: Diffusers, pool: MediaPool, where: str
) -> None:
    if where == "mask":
        files = (await photo(pool), await photo(pool, hole=True, field="mask"))
    else:
        files = (await photo(pool, hole=True),)
    before = await pixels(pool, files[0].data)
    deltas, _ = await painted(painter, *files, task="edit", steps=4, seed=1)
    made = await pixels(pool, deltas[-1].data)
    border = HIGH // 2
    assert (made[border + 8 :] == before[border + 8 :]).all()
    assert np.abs(made[: border - 8] - before[: border - 8]).mean() > 5


async def test_a_mask_of_another_size_is_refused(painter: Diffusers, pool: MediaPool) -> None:
    mask = await pool.encode_image(Picture(8, 8, bytes(192)), "png")
    with pytest.raises(Invalid) as refusal:
        await painted(painter, await photo(pool), Media("mask", mask), task="edit")
    assert refusal.value.param == "mask"


async def test_what_to_avoid_is_understood_or_refused(painter: Diffusers) -> None:
    if painter.weights is not None and "flux" in str(painter.weights):
        with pytest.raises(Unsupported) as refusal:
            await painted(painter, negative_prompt="a", size="64x64", steps=1)
        assert refusal.value.param == "negative_prompt"
        return
    plain, _ = await painted(painter, size="64x64", steps=2, seed=3, guidance=7)
    other, _ = await painted(painter, size="64x64", steps=2, seed=3, guidance=7, negative_prompt="red a")
    assert plain[-1].data != other[-1].data


async def test_a_cancelled_call_stops_between_two_steps(painter: Diffusers) -> None:
    call = make_call("image", "painter", prompt="a", size="128x128", steps=200)
    async with aclosing(painter.run(call)) as chunks:  # type: ignore[type-var]
        chunk = await anext(chunks)
        assert isinstance(chunk, Delta)
        assert chunk.payload.step == 1
    async with asyncio.timeout(30):
        deltas, _ = await painted(painter, size="64x64", steps=1)
    assert deltas[-1].kind == "image"
