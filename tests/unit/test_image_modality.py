"""The image modality: what is refused before any model, what needs which feature, and how answers are written."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.gateway.dialects import dialects
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.image import MAX_PIXELS, MODALITY, ImageDelta, ImageRequest, check, wants_url

ENVELOPE = Envelope("image-1", 1_700_000_000, "m", "http://hub:8000")


def asked(**params: Any) -> ImageRequest:
    return msgspec.convert({"prompt": "a circle", "model": "m", **params}, ImageRequest)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"size": "9999x9999"}, "size"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "jpeg", "background": "transparent"}, "background"),
        ({"model": "gpt-image-1", "response_format": "url"}, "response_format"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"partial_images": 2}, "partial_images"),
    ],
)
def test_what_no_model_can_do_is_refused(params: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check(asked(**params))
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"task": "variation", "prompt": ""},
        {"size": "4096x4096"},
        {"output_format": "webp", "output_compression": 50, "background": "transparent"},
        {"output_compression": 100},
        {"model": "gpt-image-1", "response_format": "b64_json"},
        {"stream": True, "partial_images": 3},
    ],
)
def test_what_some_model_can_do_is_not(params: dict[str, Any]) -> None:
    check(asked(**params))


def test_models_answer_in_the_form_that_their_name_promises() -> None:
    assert wants_url(asked(model="dall-e-3"))
    assert not wants_url(asked(model="dall-e-3", response_format="b64_json"))
    assert not wants_url(asked(model="dall-e-2", stream=True))
    assert not wants_url(asked(model="gpt-image-1"))
    assert not wants_url(asked(model="style"))
    assert wants_url(asked(model="style", response_format="url"))


def test_each_control_needs_its_feature_and_names_its_parameter() -> None:
    assert MODALITY.requires(asked()) == {"generate": "prompt"}
    request = asked(task="edit", seed=1, scale=2, n=2, background="transparent")
    needed = {"edit": "image", "seed": "seed", "scale": "scale", "n": "n", "transparent": "background"}
    assert MODALITY.requires(request) == needed
    assert MODALITY.wishes is not None
    assert MODALITY.wishes(asked(quality="hd", style="vivid")) == {
        "quality": frozenset({"quality"}),
        "style": frozenset({"style"}),
    }
    assert set(needed) <= set(MODALITY.features)


def test_the_estimate_is_never_less_than_what_is_made() -> None:
    assert MODALITY.estimate(asked(size="100x200", n=3), 10).pixels == 60_000
    assert MODALITY.estimate(asked(task="edit"), 10).pixels == MAX_PIXELS
    assert MODALITY.estimate(asked(n=4), 10).images == 4


def test_an_answer_has_the_pictures_in_order_and_counts_them() -> None:
    deltas = [
        ImageDelta("progress", step=1, steps=2),
        ImageDelta("image", 1, b"two"),
        ImageDelta("image", 0, b"one", revised_prompt="nicer"),
    ]
    body = json.loads(MODALITY.fold(asked(n=2), ENVELOPE, deltas, Usage(images=2, pixels=8)))
    assert [base64.b64decode(image["b64_json"]) for image in body["data"]] == [b"one", b"two"]
    assert body["data"][0]["revised_prompt"] == "nicer"
    assert "url" not in body["data"][0]
    assert body["created"] == ENVELOPE.created
    assert body["usage"]["images"] == 2
    assert body["usage"]["pixels"] == 8


def test_addresses_without_a_host_get_the_one_that_the_client_called() -> None:
    deltas = [ImageDelta("image", 0, url="/v1/blobs/x"), ImageDelta("image", 1, url="https://cdn.example/y")]
    body = json.loads(MODALITY.fold(asked(n=2), ENVELOPE, deltas, Usage()))
    assert [image["url"] for image in body["data"]] == ["http://hub:8000/v1/blobs/x", "https://cdn.example/y"]


def _events(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in raw.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        ("image", "image_generation"),
        ("openai_image_edits", "image_edit"),
        ("openai_image_variations", "image_variation"),
    ],
)
def test_a_stream_tells_progress_previews_and_each_picture(dialect: str, name: str) -> None:
    make = dialects()[dialect].writer
    assert make is not None
    writer = make(asked(stream=True, n=2, quality="high", output_format="webp"), ENVELOPE)
    raw = b"".join(
        [
            writer.delta(ImageDelta("progress", step=1, steps=4)),
            writer.delta(ImageDelta("partial", 0, b"blur", 64, 32)),
            writer.delta(ImageDelta("image", 0, b"one", 64, 32)),
            writer.delta(ImageDelta("image", 1, b"two", 64, 32)),
            writer.end(Usage(input_tokens=3, images=2, pixels=4096)),
        ]
    )
    events = _events(raw)
    kinds = ["progress", "partial_image", "completed", "completed"]
    assert [event for event, _ in events] == [f"{name}.{kind}" for kind in kinds]
    assert all(body["type"] == event for event, body in events)
    assert (events[0][1]["step"], events[0][1]["steps"]) == (1, 4)
    partial = events[1][1]
    assert partial["partial_image_index"] == 0
    assert base64.b64decode(partial["b64_json"]) == b"blur"
    assert (partial["size"], partial["quality"], partial["output_format"]) == ("64x32", "high", "webp")
    assert events[2][1]["usage"]["images"] == 0
    assert events[3][1]["usage"]["images"] == 2
    assert events[3][1]["usage"]["input_tokens_details"] == {"text_tokens": 3, "image_tokens": 0}


def test_a_stream_that_breaks_says_so() -> None:
    assert MODALITY.writer is not None
    raw = MODALITY.writer(asked(stream=True), ENVELOPE).fail(Problem("no", "api_error", None, "x"))
    assert raw is not None
    assert _events(raw) == [
        (
            "error",
            {"type": "error", "error": {"message": "no", "type": "api_error", "param": None, "code": "x"}},
        )
    ]


@pytest.mark.parametrize(
    ("dialect", "task"), [("openai_image_edits", "edit"), ("openai_image_variations", "variation")]
)
def test_the_address_says_what_is_to_be_done(dialect: str, task: str) -> None:
    record = dialects()[dialect]
    assert record.translate is not None
    translated = record.translate(asked(prompt="x"), b'{"prompt":"x","future":1}')
    assert translated.request.task == task
    assert json.loads(translated.body) == {"prompt": "x", "future": 1, "task": task}
    # No prompt is needed where there is a picture.
    record.check(asked(prompt=""))
