"""Errors of the pipeline over pictures and files, told at the place where each dialect's client put them."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from inferhub.core.call import Call, Emit
from inferhub.core.errors import Invalid
from inferhub.gateway.dialects.anthropic_messages import DIALECT as MESSAGES
from inferhub.gateway.dialects.base import Dialect, own_dialect
from inferhub.gateway.dialects.openai_responses import DIALECT as RESPONSES
from inferhub.gateway.places import placing
from inferhub.modalities.chat import MODALITY as CHAT
from inferhub.pipeline.media_parts import places_of
from inferhub.testing.calls import Collector, make_call

URL = "https://a.example/p.png"
DATA = base64.b64encode(b"a picture").decode()
PICTURE = {"type": "input_image", "image_url": URL}


async def told(dialect: Dialect, sent: dict[str, Any], expanded: dict[str, Any] | None = None) -> list[str]:
    """What the client hears of each of its pictures and files, one refused after the other.

    `expanded` is the request with what the gateway put into it.
    """
    body = msgspec.json.encode({"model": "m", **sent})
    full = msgspec.json.encode({"model": "m", **(expanded or sent)})
    assert dialect.translate is not None
    translated = dialect.translate(msgspec.json.decode(full, type=dialect.request), full)
    call = replace(make_call("chat"), request=translated.request, body=translated.body)
    heard: list[str] = []
    for place in places_of(call.request):

        async def refuse(call: Call, emit: Emit, param: str = place.param) -> None:
            raise Invalid(f"'{param}' is bad.", param=param)

        with pytest.raises(Invalid) as caught:
            await placing(refuse, dialect, body)(call, Collector())
        assert caught.value.message == f"'{caught.value.param}' is bad."
        heard.append(caught.value.param or "")
    return heard


async def test_pictures_and_files_of_a_messages_request() -> None:
    picture = {"type": "image", "source": {"type": "url", "url": URL}}
    enclosed = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
    document = {"type": "document", "title": "a", "context": "b", "source": {"type": "url", "url": URL}}
    asked = {"type": "tool_use", "id": "t", "name": "fetch", "input": {"url": URL, "data": DATA}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": URL}, picture, enclosed]},
        {"role": "assistant", "content": [asked]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [picture]}, document]},
    ]  # fmt: skip
    assert await told(MESSAGES, {"max_tokens": 9, "messages": messages}) == [
        "messages.0.content.1.source.url",
        "messages.0.content.2.source.data",
        "messages.2.content.0.content.0.source.url",
        "messages.2.content.1.source.url",
    ]


async def test_pictures_and_files_of_a_responses_request() -> None:
    file = {"type": "input_file", "file_url": URL}
    enclosed = {"type": "input_file", "file_data": f"data:application/pdf;base64,{DATA}", "filename": "a"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": URL}, PICTURE]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": f'{{"url":"{URL}"}}'},
        {"type": "function_call_output", "call_id": "c", "output": [PICTURE]},
        {"role": "user", "content": [file, enclosed]},
    ]
    assert await told(RESPONSES, {"instructions": "Look.", "input": items}) == [
        "input[0].content[1].image_url",
        "input[2].output[0].image_url",
        "input[3].content[0].file_url",
        "input[3].content[1].file_data",
    ]


async def test_what_the_gateway_put_in_front_has_no_place_of_its_own() -> None:
    item = {"role": "user", "content": [PICTURE]}
    other = {"role": "user", "content": [{"type": "input_image", "image_url": f"{URL}?2"}]}
    sent = {"input": [{"role": "user", "content": "and?"}, item], "previous_response_id": "resp_1"}
    expanded = {"input": [item, other, *sent["input"]]}
    assert await told(RESPONSES, sent, expanded) == [
        "previous_response_id",
        "previous_response_id",
        "input[1].content[0].image_url",
    ]
    referred = {"input": [{"type": "item_reference", "id": "msg_1"}]}
    assert await told(RESPONSES, referred, {"input": [item]}) == ["input"]


@pytest.mark.parametrize("param", [None, "model", "input[9].x", "messages[7].content[0].image_url.url"])
async def test_every_other_error_stays_as_it_is(param: str | None) -> None:
    async def refuse(call: Call, emit: Emit) -> None:
        raise Invalid("It is bad.", param=param)

    body = b'{"model":"m","input":"a"}'
    with pytest.raises(Invalid) as caught:
        await placing(refuse, RESPONSES, body)(make_call("chat"), Collector())
    assert (caught.value.param, caught.value.message) == (param, "It is bad.")
    own = own_dialect(CHAT)
    assert placing(refuse, own, body) is refuse
