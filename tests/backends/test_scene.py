"""The scene backend with its real networks on the samples: facts, answers, sizes, formats, and its end."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from inferhub.backends.scene.backend import Scene
from inferhub.core.call import Call, Delta, Finished, Media
from inferhub.core.errors import Invalid, SetupError
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.media import MediaPool, Picture
from inferhub.modalities.vision import VisionDelta
from inferhub.registry.index import shipped_folder
from inferhub.testing.calls import make_call

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLES = Path(__file__).parents[1] / "data"
WEIGHTS = {"objects": str(shipped_folder("nanodet")), "labels": str(shipped_folder("efficientnet-lite0"))}


def scene_of(**options: Any) -> Scene:
    return Scene(ModelSpec("scene", "scene", options=WEIGHTS | options), None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    backend = scene_of()
    await backend.load()
    yield backend
    await backend.unload()


def looking_at(data: bytes, **params: Any) -> Call:
    return make_call("vision", media=(Media("image", data, "image/png"),), **params)


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


async def facts(scene: Scene, call: Call) -> tuple[VisionDelta, Usage]:
    delta, end = [chunk async for chunk in scene.run(call)]
    assert isinstance(delta, Delta)
    assert isinstance(end, Finished)
    return delta.payload, end.usage


async def test_a_cup_of_coffee(scene: Scene) -> None:
    found, usage = await facts(scene, looking_at(sample("coffee.png")))
    [cup] = found.objects
    assert cup.name == "cup"
    assert cup.score > 0.9
    left, top, right, bottom = cup.box
    assert left < 300 < right
    assert top < 200 < bottom
    assert (found.labels[0].name, found.labels[0].score > 0.9) == ("espresso", True)
    assert {"brown", "red"} <= {color.name for color in found.colors}
    assert "cup" in found.description
    assert "espresso" in found.description
    assert found.text == []
    assert (usage.images, usage.pixels, found.width, found.height) == (1, 240_000, 600, 400)


async def test_two_opinions_make_it_a_cat_and_no_person(scene: Scene) -> None:
    found, _ = await facts(scene, looking_at(sample("chelsea.png")))
    assert [(seen.name, seen.color) for seen in found.objects] == [("cat", "brown")]


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("What is the invoice number?", "2026-1187"),
        ("What is the total?", "$1,249.50"),
        ("Does it say 'Müller & Söhne'?", "yes"),
        ("How many people are there?", "0"),
    ],
)
async def test_the_invoice_is_read_exactly(scene: Scene, question: str, value: str) -> None:
    found, _ = await facts(scene, looking_at(sample("invoice.png"), question=question, features=["text"]))
    assert found.reply is not None
    assert found.reply.value == value
    lines = [line.text for line in found.text]
    assert lines[:2] == ["INVOICE #2026-1187 Total: $1,249.50", "Kunde: Müller & Söhne GmbH, Straße 12"]
    assert (found.objects, found.colors, found.description) == ([], [], "")


async def test_a_large_picture_is_made_smaller_and_its_places_are_not(scene: Scene) -> None:
    pool = MediaPool()
    try:
        small = await pool.decode_image(sample("coffee.png"))
        pixels = np.frombuffer(small.rgb, np.uint8).reshape(400, 600, 3).repeat(4, axis=0).repeat(4, axis=1)
        data = await pool.encode_image(Picture(2400, 1600, pixels.tobytes()), "jpeg")
    finally:
        await pool.close()
    found, usage = await facts(scene, looking_at(data, features=["objects"]))
    assert (found.width, found.height, usage.pixels) == (2400, 1600, 2400 * 1600)
    [cup] = found.objects
    assert cup.box[2] > 1300


async def test_the_tiniest_picture_and_the_emptiest(scene: Scene) -> None:
    found, usage = await facts(scene, make_call("vision", question="What colour is it?"))
    assert usage.pixels == 1
    assert found.reply is not None
    assert found.objects == []


async def test_a_data_url_is_the_same_as_a_file(scene: Scene) -> None:
    url = f"data:image/png;base64,{base64.b64encode(sample('chelsea.png')).decode()}"
    by_url, _ = await facts(scene, make_call("vision", image=url))
    assert by_url == (await facts(scene, looking_at(sample("chelsea.png"))))[0]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(99), b"<svg/>", sample("coffee.png")[:999]])
async def test_what_is_no_picture_is_refused(scene: Scene, data: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        await facts(scene, looking_at(data))
    assert caught.value.param == "image"


async def test_a_cancelled_call_frees_the_thread(scene: Scene) -> None:
    begun = asyncio.create_task(facts(scene, looking_at(sample("invoice.png"))))
    queued = asyncio.create_task(facts(scene, looking_at(sample("invoice.png"))))
    await asyncio.sleep(0)
    begun.cancel()
    queued.cancel()
    await asyncio.wait([begun, queued])
    begin = time.monotonic()
    await facts(scene, looking_at(sample("coffee.png"), features=["colors"]))
    assert time.monotonic() - begin < 10


async def test_the_first_facts_of_a_closed_call_are_the_last(scene: Scene) -> None:
    async with aclosing(scene.run(looking_at(sample("coffee.png"), features=["colors"]))) as answer:
        assert isinstance(await anext(answer), Delta)


async def test_only_what_was_chosen_is_offered_and_loaded() -> None:
    backend = scene_of(text=False, labels="")
    [offered] = backend.offers(backend.spec)
    assert offered.features == {"objects", "colors", "description", "question"}
    assert backend.capabilities == (offered,)
    await backend.load()
    try:
        found, _ = await facts(backend, looking_at(sample("coffee.png")))
    finally:
        await backend.unload()
    assert (found.labels, found.text) == ([], [])
    assert "cup" in {seen.name for seen in found.objects}


async def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="must hold one"):
        await scene_of(objects=str(tmp_path)).load()
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "a-names.json").write_text("{}")
    with pytest.raises(SetupError, match="list of names"):
        await scene_of(objects=str(tmp_path)).load()
