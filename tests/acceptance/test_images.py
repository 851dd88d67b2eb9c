"""Pictures over HTTP with OpenAI's own client, in both shapes: edits, variations, streams, addresses, refusals."""

from __future__ import annotations

import base64
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai
import pytest
from openai import OpenAI

from inferhub.media import sniff
from inferhub.testing.servers import SHAPES, Hub, fetch, running_hub, wait_for

DATA = Path(__file__).parents[1] / "data"
CAT = ("cat.png", (DATA / "chelsea.png").read_bytes(), "image/png")
COFFEE = ("coffee.png", (DATA / "coffee.png").read_bytes(), "image/png")
SPEC = """\
models:
  - {name: style, backend: style_transfer}
  - {name: realesrgan, backend: realesrgan, weights: realesrgan}
routes:
  - {name: gpt-image-1, model: style}
"""


@pytest.fixture(scope="module", params=SHAPES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(request.param, tmp_path_factory.mktemp("images"), SPEC) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub) -> Iterator[OpenAI]:
    with OpenAI(base_url=hub.api, api_key=hub.admin_key, max_retries=0, timeout=90) as client:
        yield client


def decoded(image: Any) -> bytes:
    assert image.url is None
    return base64.b64decode(image.b64_json)


def size_of(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_an_edit_paints_the_picture_anew(client: OpenAI) -> None:
    answer = client.images.edit(model="style", image=CAT, prompt="starry")
    png = decoded(answer.data[0])
    assert sniff(png) == "image/png"
    assert size_of(png) == size_of(CAT[1])
    assert png != CAT[1]
    assert answer.usage is not None
    assert answer.usage.model_extra == {"images": 1, "pixels": size_of(png)[0] * size_of(png)[1]}


def test_a_second_picture_is_the_style_and_formats_are_honoured(client: OpenAI) -> None:
    answer = client.images.edit(
        model="style", image=[CAT, COFFEE], prompt="", output_format="webp", size="256x256"
    )
    assert sniff(decoded(answer.data[0])) == "image/webp"
    assert answer.output_format == "webp"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_variation_is_larger(client: OpenAI) -> None:
    answer = client.images.create_variation(model="realesrgan", image=CAT, extra_body={"scale": 2})
    width, height = size_of(CAT[1])
    assert size_of(decoded(answer.data[0])) == (2 * width, 2 * height)


def test_a_stream_tells_how_far_it_is(client: OpenAI) -> None:
    events = list(client.images.edit(model="realesrgan", image=CAT, prompt="", stream=True))
    kinds = [event.type for event in events]
    assert set(kinds[:-1]) == {"image_edit.progress"}
    assert kinds[-1] == "image_edit.completed"
    last: Any = events[-1]
    assert sniff(base64.b64decode(last.b64_json)) == "image/png"
    assert last.size == "1804x1200"
    assert last.usage.model_extra["images"] == 1


def test_an_address_opens_the_picture_without_a_key(hub: Hub, client: OpenAI) -> None:
    whole = client.images.edit(model="style", image=CAT, prompt="ink")
    linked = client.images.edit(model="style", image=CAT, prompt="ink", response_format="url")
    url = linked.data[0].url
    assert linked.data[0].b64_json is None
    assert url is not None
    assert url.startswith(f"{hub.url}/v1/blobs/")
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the test's own hub
        assert answer.read() == decoded(whole.data[0])
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert re.fullmatch(r'inline; filename="[0-9a-f]{32}\.png"', answer.headers["content-disposition"])


def test_an_address_that_was_changed_opens_nothing(hub: Hub, client: OpenAI) -> None:
    url = client.images.edit(model="style", image=CAT, prompt="ink", response_format="url").data[0].url
    assert url is not None
    parts = urlsplit(url)
    tenant = parts.path.split("/")[3]
    for changed in (
        parts._replace(query=parts.query[:-1] + ("A" if parts.query[-1] != "A" else "B")),
        parts._replace(query=re.sub(r"expires=\d+", "expires=9999999999", parts.query)),
        parts._replace(path=parts.path.replace(tenant, "ten_other")),
        parts._replace(path=parts.path.replace(".png", ".webp")),
        parts._replace(query=""),
    ):
        status, body = fetch(urlunsplit(changed), {"Authorization": f"Bearer {hub.admin_key}"})
        assert status == 404
        assert json.loads(body)["error"]["code"] == "not_found"
    assert fetch(url)[0] == 200


def test_an_address_ends(tmp_path: Path) -> None:
    spec = "models: [{name: style, backend: style_transfer}]\n"
    settings = {"blobs_ttl_s": 2, "public_url": "https://hub.example.com"}
    with running_hub("serve", tmp_path, spec, settings) as hub:
        with OpenAI(base_url=hub.api, api_key=hub.admin_key, max_retries=0, timeout=90) as client:
            url = (
                client.images.edit(model="style", image=CAT, prompt="ink", response_format="url").data[0].url
            )
        assert url is not None
        assert url.startswith("https://hub.example.com/v1/blobs/")
        local = url.replace("https://hub.example.com", hub.url)
        folder = hub.data_dir / "blobs"
        assert wait_for(lambda: fetch(local)[0] == 404, 60, "the address to end")
        assert wait_for(lambda: not list(folder.rglob("*.png")), 60, "the file to go")


@pytest.mark.parametrize("model", ["dall-e-3", ""])
def test_without_a_model_for_text_the_answer_says_how_to_add_one(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.images.generate(model=model, prompt="A red circle")
    assert "docs/howto/draw.md" in refusal.value.message
    assert refusal.value.code == "model_not_found"


def test_a_model_that_only_edits_says_what_it_cannot_do(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.generate(model="style", prompt="A red circle")
    assert refusal.value.code == "unsupported_parameter"
    assert refusal.value.param == "prompt"


def test_names_of_openai_answer_as_their_clients_expect(client: OpenAI) -> None:
    answer = client.images.edit(model="gpt-image-1", image=CAT, prompt="ink", response_format="b64_json")
    assert decoded(answer.data[0])
    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.edit(model="gpt-image-1", image=CAT, prompt="ink", response_format="url")
    assert refusal.value.param == "response_format"


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\x03\x04" + b"\x00" * 200,
        CAT[1][:2000],
        # A header that promises 20,000 pixels at each side.
        CAT[1][:16] + (20_000).to_bytes(4, "big") * 2 + CAT[1][24:],
    ],
    ids=["svg", "zip", "cut off", "bomb"],
)
def test_what_is_no_picture_is_refused(client: OpenAI, data: bytes) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.edit(model="style", image=("cat.png", data, "image/png"), prompt="ink")
    assert refusal.value.param == "image"


def test_an_unknown_style_is_answered_with_all_of_them(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.edit(model="style", image=CAT, prompt="x", extra_body={"style": "nope"})
    assert refusal.value.param == "style"
    assert "19 starry" in refusal.value.message
