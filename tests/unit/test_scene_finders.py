"""The pure parts of the finders: sizes, colours, shapes, boxes, reading order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from inferhub.backends.scene import colors, shapes
from inferhub.backends.scene.objects import Found, decode, overlap, tidy
from inferhub.backends.scene.ocr import Line, in_order, is_text
from inferhub.backends.scene.pixels import on_white, resized, thinned

Pixels = NDArray[np.uint8]


def plain(color: tuple[int, int, int], height: int = 60, width: int = 80) -> Pixels:
    return np.full((height, width, 3), color, np.uint8)


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "gray"),
        ((220, 20, 30), "red"),
        ((140, 0, 0), "red"),
        ((255, 140, 0), "orange"),
        ((139, 69, 19), "brown"),
        ((160, 110, 70), "brown"),
        ((250, 220, 20), "yellow"),
        ((30, 160, 60), "green"),
        ((0, 200, 200), "cyan"),
        ((30, 60, 220), "blue"),
        ((10, 10, 90), "blue"),
        ((130, 40, 180), "purple"),
        ((255, 120, 190), "pink"),
        ((255, 182, 193), "pink"),
    ],
)
def test_names_of_colors(color: tuple[int, int, int], name: str) -> None:
    [found] = colors.palette(plain(color))
    assert (found.name, found.hex, found.share) == (name, "#{:02x}{:02x}{:02x}".format(*color), 1.0)


def test_a_palette_is_ordered_and_leaves_out_specks() -> None:
    pixels = plain((255, 255, 255))
    pixels[:20] = (220, 20, 30)
    pixels[59, :10] = (30, 60, 220)
    assert [(c.name, c.share) for c in colors.palette(pixels)] == [("white", 0.665), ("red", 0.333)]


def test_a_thing_has_its_own_color_and_not_that_of_the_ground() -> None:
    pixels = plain((255, 255, 255), 100, 100)
    pixels[30:70, 30:70] = (220, 20, 30)
    assert colors.color_in(pixels, (25, 25, 75, 75)) == "red"
    assert colors.color_in(pixels, (50, 50, 50, 50)) is None


def drawing() -> Pixels:
    pixels = plain((255, 255, 255), 300, 400)
    row, column = np.ogrid[:300, :400]
    pixels[(row - 60) ** 2 + (column - 60) ** 2 <= 40**2] = (220, 20, 30)
    pixels[20:90, 150:220] = (30, 60, 220)
    pixels[20:60, 260:380] = (30, 160, 60)
    pixels[(row >= 160) & (row < 260) & (np.abs(column - 100) * 2 <= row - 160)] = (250, 220, 20)
    return pixels


def test_shapes_of_a_drawing() -> None:
    found = shapes.find(drawing())
    assert sorted(shape.name for shape in found) == ["circle", "rectangle", "square", "triangle"]
    named = {shape.name: shape.box for shape in found}
    assert np.allclose(named["square"], (150, 20, 220, 90), atol=3)
    assert {s.name: colors.color_in(drawing(), s.box) for s in found} == {
        "circle": "red", "square": "blue", "rectangle": "green", "triangle": "yellow",
    }  # fmt: skip


def test_noise_has_no_shapes() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)
    assert shapes.find(noise) == []
    assert shapes.find(plain((255, 255, 255))) == []


def test_a_checkerboard_takes_a_bounded_time_and_memory() -> None:
    row, column = np.ogrid[:2000, :2000]
    board = np.where(((row // 7 + column // 7) % 2)[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    assert len(shapes.find(board)) <= 50


def test_one_entry_for_each_thing() -> None:
    cup = Found("cup", 0.8, (0, 0, 10, 10))
    same = Found("cup", 0.7, (1, 1, 11, 11))
    other_kind = Found("bowl", 0.6, (0, 0, 10, 11))
    beside = Found("cup", 0.5, (20, 0, 30, 10))
    assert tidy([same, cup, other_kind, beside], {}, 0.4) == [cup, beside]
    assert tidy([cup, beside], {}, 0.6) == [cup]


def test_other_evidence_speaks_for_one_thing_only() -> None:
    cat, second, person = (
        Found("cat", 0.4, (0, 0, 10, 10)),
        Found("cat", 0.3, (50, 0, 60, 10)),
        Found("person", 0.6, (0, 0, 10, 10)),
    )
    [found] = tidy([person, cat, second], {"cat": 0.9}, 0.42)
    assert found.name == "cat"
    assert found.score == pytest.approx(0.94)


def test_overlap() -> None:
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0


def test_decoding_finds_the_box_that_the_network_means() -> None:
    outputs = []
    for stride in (8, 16, 32):
        places = (416 // stride) ** 2
        outputs += [np.zeros((1, places, 80), np.float32), np.full((1, places, 44), -20, np.float32)]
    outputs[4][0, 6 * 13 + 6, 41] = 0.9
    for edge in range(4):
        outputs[5][0, 6 * 13 + 6, edge * 11 + 2] = 20
    scores, boxes = decode(outputs, 80)
    place = int(scores.max(axis=1).argmax())
    assert scores[place].argmax() == 41
    centre, reach = 6.5 * 32 / 416, 2 * 32 / 416
    assert np.allclose(
        boxes[place], [centre - reach, centre - reach, centre + reach, centre + reach], atol=1e-4
    )


def test_lines_are_read_row_by_row() -> None:
    lines = [
        Line("world", 0.9, (60, 12, 100, 30)),
        Line("below", 0.9, (0, 40, 50, 60)),
        Line("hello", 0.9, (0, 10, 50, 30)),
    ]
    assert [line.text for line in in_order(lines)] == ["hello", "world", "below"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (Line("word", 0.61, (0, 0, 10, 10)), True),
        (Line("word", 0.59, (0, 0, 10, 10)), False),
        (Line("", 0.99, (0, 0, 10, 10)), False),
        (Line("8", 0.9, (0, 0, 10, 10)), False),
        (Line("8", 0.99, (0, 0, 10, 10)), True),
        (Line("8", 0.99, (0, 0, 90, 90)), False),
    ],
)
def test_what_counts_as_text(line: Line, expected: bool) -> None:
    assert is_text(line, 10_000) is expected


def test_sizes() -> None:
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
    small = resized(ramp, 50, 25)
    assert small.shape == (25, 50, 3)
    assert np.allclose(small[0, :, 0], np.arange(50) * 4 + 1.5, atol=0.01)
    assert resized(ramp, 400, 400).shape == (400, 400, 3)
    assert thinned(ramp, 50).shape == (25, 50, 3)
    assert on_white(1, 1, b"\0\0\0", b"\x80").tolist() == [[[127, 127, 127]]]
