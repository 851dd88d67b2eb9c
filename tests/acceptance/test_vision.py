"""Pictures through the door, in both shapes: looked at, asked about, and talked about by a model that cannot see."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from openai import BadRequestError, OpenAI

from inferhub.testing.servers import SHAPES, Hub, running_hub, wait_for

DATA = Path(__file__).parents[1] / "data"
INVOICE, COFFEE, CAT = (DATA / name for name in ("invoice.png", "coffee.png", "chelsea.png"))
ANALYZE = "/vision/analyze"
SPEC = """\
models:
  - {name: talker, backend: llamacpp, weights: smollm2-135m, slots: 2}
  - {name: parrot, backend: echo}
  - {name: seeing, backend: echo, options: {pictures: true}}
  - {name: scene, backend: scene}
routes:
  - {name: any, model: parrot}
"""


@pytest.fixture(scope="module", params=SHAPES)
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp(f"vision-{request.param}")
    with running_hub(request.param, folder, SPEC, {"cache_dir": cache_dir}) as running:
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub) -> Iterator[OpenAI]:
    headers = {"x-inferhub-cache": "off"}
    with OpenAI(base_url=hub.api, api_key=hub.admin_key, default_headers=headers, max_retries=0) as made:
        yield made


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def about(text: str, *pictures: str) -> list[Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return [{"role": "user", "content": parts}]


def post(hub: Hub, **sent: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {hub.admin_key}", "x-inferhub-cache": "off"}
    return httpx.post(f"{hub.api}{ANALYZE}", headers=headers, timeout=120, **sent)


# --- POST /v1/vision/analyze -------------------------------------------------------------------


def test_a_form_is_looked_at_and_its_question_answered(hub: Hub) -> None:
    answer = post(
        hub,
        files={"image": ("../a.exe", INVOICE.read_bytes())},
        data={"model": "scene", "question": "What is the total?"},
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["object"], body["model"], body["width"], body["height"]) == (
        "vision.analysis",
        "scene",
        900,
        420,
    )
    assert body["usage"] == {"images": 1, "pixels": 900 * 420}
    assert body["answer"]["value"] == "$1,249.50"
    assert body["text"][0]["text"] == "INVOICE #2026-1187 Total: $1,249.50"
    assert body["objects"] == []


def test_json_with_a_data_url_and_chosen_features(hub: Hub) -> None:
    sent = {"model": "scene", "image": data_url(COFFEE.read_bytes()), "features": ["objects", "labels"]}
    body = post(hub, json=sent).json()
    assert [seen["name"] for seen in body["objects"]] == ["cup"]
    assert body["labels"][0]["name"] == "espresso"
    assert not {"text", "colors", "description", "answer"} & set(body)


def png(width: int, height: int) -> bytes:
    """Its header says so; its pixels are few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(b"\0" * 1000)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


HOSTILE = {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "zip": b"PK\x03\x04" + bytes(200),
    "100 megapixels": png(10_000, 10_000),
    "cut off": COFFEE.read_bytes()[:3000],
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_400(hub: Hub, name: str) -> None:
    form = post(hub, files={"image": ("a.png", HOSTILE[name], "image/png")}, data={"model": "scene"})
    body = post(hub, json={"model": "scene", "image": data_url(HOSTILE[name])})
    assert [form.status_code, body.status_code] == [400, 400], (form.text, body.text)
    assert form.json()["error"]["param"] == body.json()["error"]["param"] == "image"


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({}, "image"),
        ({"image": ""}, "image"),
        ({"image": "http://169.254.169.254/latest/a.png"}, "image"),
        ({"image": "http://127.0.0.1:9/a.png"}, "image"),
        ({"image": "file:///etc/passwd"}, "image"),
        ({"image": data_url(b""), "features": ["smell"]}, "features[0]"),
        ({"image": data_url(b""), "features": []}, "features"),
        ({"image": data_url(b""), "question": " "}, "question"),
        ({"image": data_url(b""), "question": "x" * 4097}, "question"),
        ({"image": data_url(b""), "min_score": 2}, "min_score"),
    ],
)
def test_what_is_wrong_is_named(hub: Hub, sent: dict[str, Any], param: str) -> None:
    answer = post(hub, json={"model": "scene"} | sent)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


# --- chat with a model that cannot see ---------------------------------------------------------


def ask(client: OpenAI, text: str, *pictures: Path, model: str = "talker", **more: Any) -> tuple[str, Any]:
    urls = [data_url(picture.read_bytes()) for picture in pictures]
    raw = client.chat.completions.with_raw_response.create(model=model, messages=about(text, *urls), **more)
    return raw.parse().choices[0].message.content or "", raw.headers


@pytest.mark.parametrize(
    ("picture", "question", "value"),
    [
        (INVOICE, "What is the invoice number?", "2026-1187"),
        (INVOICE, "What is the total?", "$1,249.50"),
        (CAT, "What animal is this?", "cat"),
        (COFFEE, "Is there a dog?", "No"),
    ],
)
def test_the_answer_has_what_the_rules_found(
    client: OpenAI, picture: Path, question: str, value: str
) -> None:
    said, headers = ask(client, question, picture, max_tokens=60)
    assert value in said
    assert headers["x-inferhub-described-by"] == "scene"
    assert headers["x-inferhub-model"] == "talker"


def test_a_stream_says_the_same(client: OpenAI) -> None:
    messages = about("What is the total?", data_url(INVOICE.read_bytes()))
    raw = client.chat.completions.with_raw_response.create(
        model="talker", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(raw.parse())
    assert "$1,249.50" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert raw.headers["x-inferhub-described-by"] == "scene"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None


def test_a_model_that_only_repeats_is_overruled(client: OpenAI) -> None:
    """The echo says all that it was told, so nothing that it says is an answer."""
    said, headers = ask(client, "How many cups are there?", COFFEE, model="any")
    assert said == "There is one cup on the picture."
    assert headers["x-inferhub-model"] == "parrot"


def test_what_no_rule_answers_is_said_by_the_model_from_facts(client: OpenAI) -> None:
    said, headers = ask(client, "Why is it sad?", CAT, model="parrot")
    assert "Why is it sad?" in said
    assert "brown cat" in said
    assert headers["x-inferhub-described-by"] == "scene"


def test_several_pictures_are_described_in_order(client: OpenAI) -> None:
    said, _ = ask(client, "Which is older?", COFFEE, CAT, model="parrot")
    assert said.index("Picture 1") < said.index("cup") < said.index("Picture 2") < said.index("cat")


def test_tools_and_formats_are_left_to_the_model(client: OpenAI) -> None:
    said, headers = ask(
        client, "How many cups are there?", COFFEE, model="talker", max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {
            "type": "object", "properties": {"cups": {"type": "integer"}}, "required": ["cups"]}}},
    )  # fmt: skip
    assert isinstance(json.loads(said)["cups"], int)
    assert headers["x-inferhub-described-by"] == "scene"


def test_a_model_that_sees_is_shown_the_picture(client: OpenAI) -> None:
    said, headers = ask(client, "What is this?", COFFEE, model="seeing")
    assert "[image/png" in said
    assert "x-inferhub-described-by" not in headers


def test_anthropic_and_responses_are_described_to_as_well(hub: Hub, client: OpenAI) -> None:
    data = base64.b64encode(INVOICE.read_bytes()).decode()
    with anthropic.Anthropic(base_url=hub.url, api_key=hub.admin_key, max_retries=0) as other:
        source: Any = {"type": "base64", "media_type": "image/png", "data": data}
        content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is the total?"}]
        message = other.messages.create(
            model="parrot", max_tokens=50, messages=[{"role": "user", "content": content}]
        )
    assert [part.text for part in message.content if part.type == "text"] == ["The total is $1,249.50."]
    picture: Any = {"type": "input_image", "image_url": f"data:image/png;base64,{data}", "detail": "auto"}
    asked: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is the total?"}, picture]}
    ]
    answer = client.responses.create(model="parrot", input=asked, store=False)
    assert answer.output_text == "The total is $1,249.50."


def test_one_call_is_billed_with_its_picture(hub: Hub, client: OpenAI) -> None:
    ask(client, "What colour is the cat?", CAT, model="any", user="billed")
    headers = {"authorization": f"Bearer {hub.admin_key}"}
    address = f"{hub.api.removesuffix('/v1')}/admin/v1/usage/events"

    def billed() -> list[dict[str, Any]]:
        events = httpx.get(address, headers=headers).json()["data"]
        return [event for event in events if event["requested_model"] == "any"]

    # The store is told a moment after the client.
    wait_for(lambda: any(event["pixels"] == 451 * 300 for event in billed()), 10, "the call on the bill")
    found = billed()
    assert {(event["modality"], event["model"]) for event in found} == {("chat", "parrot")}
    assert {event["images"] for event in found} == {1}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_in_a_chat_are_400(client: OpenAI, name: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="talker", messages=about("What?", data_url(HOSTILE[name])))
    assert caught.value.param == "messages[0].content[1].image_url.url"


def test_an_internal_address_in_a_chat_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="not a public address"):
        client.chat.completions.create(
            model="talker", messages=about("What?", "http://169.254.169.254/a.png")
        )


# --- without a model for vision ----------------------------------------------------------------


def test_with_nobody_who_sees_the_error_says_so(tmp_path: Path) -> None:
    spec = "models:\n  - {name: parrot, backend: echo}\n"
    messages = about("?", data_url(CAT.read_bytes()))
    with (
        running_hub("serve", tmp_path, spec, {}) as hub,
        OpenAI(base_url=hub.api, api_key=hub.admin_key, max_retries=0) as client,
        pytest.raises(BadRequestError, match="vision"),
    ):
        client.chat.completions.create(model="parrot", messages=messages)
