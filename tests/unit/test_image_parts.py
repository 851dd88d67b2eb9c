"""The pure parts of the engines for pictures: tiles, styles, sizes, masks, previews."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from inferhub.backends.diffusers.backend import _mask, _Previews
from inferhub.backends.diffusers.folder import family_of
from inferhub.backends.pictures import Canvas, covering, flattened
from inferhub.backends.realesrgan.tiles import Tiling, tiles
from inferhub.backends.style_transfer.styles import STYLES, chosen
from inferhub.core.errors import Invalid, SetupError


@pytest.mark.parametrize("height", [1, 40, 41, 97, 128, 129, 300])
@pytest.mark.parametrize("tiling", [Tiling(40, 8), Tiling(128, 20), Tiling(56, 8)])
def test_tiles_cover_each_pixel_once_with_their_overlap_around(height: int, tiling: Tiling) -> None:
    width = 111
    pixels = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3).astype(np.uint8)
    made = np.zeros_like(pixels)
    count = np.zeros((height, width), int)
    for tile in tiles(height, width, tiling):
        for span, length in ((tile.rows, height), (tile.columns, width)):
            assert span.end - span.begin <= tiling.side
            assert span.own_begin - span.begin >= (tiling.overlap if span.own_begin else 0)
            assert span.end - span.own_end >= (tiling.overlap if span.own_end < length else 0)
        count[tile.rows.own_begin : tile.rows.own_end, tile.columns.own_begin : tile.columns.own_end] += 1
        tile.place(tile.cut(pixels), made, 1)
    assert (count == 1).all()
    assert (made == pixels).all()


@pytest.mark.parametrize("shape", [(97, 130), (41, 300), (40, 40), (300, 57)])
def test_tiles_that_differ_go_over_into_each_other(shape: tuple[int, int]) -> None:
    """Each tile a little brighter than the one before: no two neighbours differ by as much as two tiles do."""
    tiling = Tiling(40, 8, blend=6)
    same = np.full((*shape, 3), 100, np.uint8)
    made = np.zeros((shape[0] * 2, shape[1] * 2, 3), np.uint8)
    for tile in tiles(*shape, tiling):
        tile.place(np.repeat(np.repeat(tile.cut(same), 2, 0), 2, 1), made, 2, tiling.blend)
    assert (made == 100).all()
    for number, tile in enumerate(tiles(*shape, tiling)):
        grey = np.full(
            (tile.rows.end * 2 - tile.rows.begin * 2, tile.columns.end * 2 - tile.columns.begin * 2, 3),
            100 + number % 2 * 24,
            np.uint8,
        )
        tile.place(grey, made, 2, tiling.blend)
    for axis in (0, 1):
        assert np.abs(np.diff(made.astype(int), axis=axis)).max(initial=0) <= 8


def test_there_are_26_styles_by_name_and_by_number() -> None:
    assert len(set(STYLES)) == 26
    for number, name in enumerate(STYLES):
        assert chosen(name, "") == chosen(str(number), "") == chosen(f" {name.upper()} ", "") == number
        assert chosen(None, f"Paint it like {name}, please!") == number


@pytest.mark.parametrize(
    ("style", "prompt", "param"),
    [
        ("vivid", "starry", "style"),
        ("26", "", "style"),
        ("-1", "", "style"),
        ("", "", "style"),
        (None, "", "prompt"),
        (None, "make it nice", "prompt"),
        (None, "starry or glass", "prompt"),
        (None, "starrynight", "prompt"),
        (None, "9" * 500, "prompt"),
    ],
)
def test_a_style_that_is_none_is_answered_with_all(style: str | None, prompt: str, param: str) -> None:
    with pytest.raises(Invalid) as refusal:
        chosen(style, prompt)
    assert refusal.value.param == param
    assert all(f"{number} {name}" in refusal.value.message for number, name in enumerate(STYLES))


def test_a_picture_is_cut_to_a_shape_and_never_stretched() -> None:
    colours = np.zeros((100, 300, 3), np.uint8)
    colours[:, 100:200] = 255
    square = covering(Canvas(colours, np.full((100, 300), 255, np.uint8)), 50, 50)
    assert (square.width, square.height) == (50, 50)
    assert square.alpha is not None
    assert square.alpha.shape == (50, 50)
    assert square.colours[:, 5:45].min() > 250


def test_what_is_transparent_becomes_white() -> None:
    alpha = np.array([[0, 255]], np.uint8)
    flat = flattened(Canvas(np.zeros((1, 2, 3), np.uint8), alpha))
    assert flat.colours.tolist() == [[[255] * 3, [0] * 3]]
    assert flat.alpha is None


def test_a_mask_opens_where_it_is_transparent_or_else_bright() -> None:
    colours = np.array([[[255] * 3, [0] * 3]], np.uint8)
    assert _mask(Canvas(colours)).tolist() == [[255, 0]]
    assert _mask(Canvas(colours, np.array([[255, 0]], np.uint8))).tolist() == [[0, 255]]


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 4, 25])
def test_previews_are_spread_over_the_steps_and_not_the_end(wanted: int, steps: int) -> None:
    previews = _Previews(wanted)
    shown = [(done, previews.taken()) for done in range(1, steps + 1) if previews.is_due(done, steps)]
    assert len(shown) == min(wanted, steps - 1)
    assert [index for _, index in shown] == list(range(len(shown)))
    assert all(done < steps for done, _ in shown)


SD = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": [None, None],
}


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (None, "model_index.json"),
        ({**SD, "_class_name": "WeirdPipeline"}, "WeirdPipeline"),
        ({**SD, "_class_name": ["pipeline", "MyPipeline"]}, "MyPipeline"),
        ({**SD, "unet": ["my_unet", "MyUnet"]}, "own code"),
        (SD, "safetensors"),
    ],
)
def test_models_with_code_or_unsafe_files_are_not_loaded(
    tmp_path: Path, index: dict[str, object] | None, says: str
) -> None:
    if index is not None:
        (tmp_path / "model_index.json").write_bytes(msgspec.json.encode(index))
        (tmp_path / "unet.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SetupError) as refusal:
        family_of(tmp_path, "painter")
    assert says in refusal.value.message
    assert refusal.value.param == "weights"


def test_the_family_is_told_by_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes(msgspec.json.encode(SD))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "x.safetensors").write_bytes(b"")
    assert family_of(tmp_path, "painter") == "sd"


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    """In a process that cannot import it, whether it is installed here or not."""
    (tmp_path / "model_index.json").write_bytes(msgspec.json.encode(SD))
    (tmp_path / "x.safetensors").write_bytes(b"")
    code = (
        "import sys, asyncio; from pathlib import Path; sys.modules['torch'] = None; "
        "from inferhub.core.errors import SetupError; from inferhub.core.models import ModelSpec; "
        "from inferhub.backends.diffusers import BACKEND\n"
        "try: asyncio.run(BACKEND(ModelSpec('p', 'diffusers', device='cpu'), Path(sys.argv[1])).load())\n"
        "except SetupError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "inferhub[diffusion]" in done.stdout
