"""Responses with OpenAI's own client: created whole and streamed, stored, continued, read and deleted."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from inferhub.testing.backing import Postgres
from inferhub.testing.parties import make_key, make_party
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.strict import validate, validate_type
from inferhub.testing.talk import Talk
from inferhub.testing.upstream_process import Upstream

RESPONSES = "/v1/responses"
SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
  - {{name: sees, backend: echo, options: {{pictures: true}}}}
  - {{name: slow, backend: echo, options: {{gap_s: 0.2}}}}
  - {{name: breaks-late, backend: echo, options: {{fail_every: 1, fail_at: 2}}}}
  - {{name: remote, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
  - {{name: native, backend: openai_compatible,
     options: {{base_url: "{upstream}", responses: true, remote_urls: true}}}}
"""
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DOT = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("responses")
    settings = {"head_hold_s": 0.2, "breaker_failures": 0}
    with running_hub("serve", folder, SPEC.format(upstream=upstream_url), settings) as running:
        yield running


@pytest.fixture
def talk(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


@asynccontextmanager
async def client_of(talk: Talk) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{talk.url}/v1", api_key=talk.key, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def client(talk: Talk) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(talk) as made:
        yield made


def checked(answer: Answer) -> dict[str, Any]:
    """A whole response, held to the document and to the SDK."""
    assert answer.status == 200, answer.body
    body: dict[str, Any] = answer.json
    assert validate("Response", body) == []
    assert validate_type(Response, body) == []
    return body


async def streamed(talk: Talk, **body: Any) -> list[dict[str, Any]]:
    """Every event of a stream, each held to the document and to the SDK, in order and well numbered."""
    events = await talk.stream_of(RESPONSES, {"input": "one two three", **body, "stream": True})
    found = []
    for text in (event.text for event in events if not event.text.startswith(":")):
        name, _, data = text.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    for event in found:
        assert validate("ResponseStreamEvent", event) == [], event
        assert validate_type(ResponseStreamEvent, event) == [], event
    numbers = [event["sequence_number"] for event in found]
    assert numbers == sorted(set(numbers)), "strictly increasing"
    return found


def files(folder: Path, pattern: str) -> list[bytes]:
    found = [file.read_bytes() for file in folder.rglob(pattern)]
    assert found
    return found


def said(response: dict[str, Any]) -> str:
    return "".join(p["text"] for i in response["output"] if i["type"] == "message" for p in i["content"])


# --- creating --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["echo", "remote"])
async def test_whole_and_streamed_say_the_same(talk: Talk, model: str) -> None:
    asked = {"model": model, "input": "one two three", "user": "script:n=3,think=2"}
    whole = checked(await talk.post(RESPONSES, asked))
    events = await streamed(talk, **asked)
    assert events[0]["type"] == "response.created"
    assert events[1]["type"] == "response.in_progress"
    assert events[-1]["type"] == "response.completed"
    final = events[-1]["response"]
    pieces = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert said(whole) == said(final) == "".join(pieces) != ""
    if model == "echo":
        assert whole["usage"] == final["usage"]
    assert [item["type"] for item in whole["output"]] == [item["type"] for item in final["output"]]
    assert len({whole["id"], final["id"]}) == 2
    if model == "remote":
        assert whole["output"][0]["type"] == "reasoning"


async def test_contract_051_the_official_client_creates_and_streams(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="echo", input="hello world", metadata={"a": "b"})
    assert (made.output_text, made.status, made.metadata) == ("hello world", "completed", {"a": "b"})
    assert made.usage is not None
    assert made.usage.output_tokens == 2
    async with client.responses.stream(model="echo", input="hello world") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == "hello world"
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_a_stream_ends_with_its_terminal_event_and_no_done(talk: Talk) -> None:
    body = {"model": "echo", "input": "a", "stream": True}
    async with talk.opened(RESPONSES, body) as call:
        head = await call.head()
        raw = (await call.connection.body(head)).decode()
    assert head["content-type"] == "text/event-stream; charset=utf-8"
    assert "[DONE]" not in raw
    assert raw.rstrip().rpartition("\n\n")[2].startswith("event: response.completed\n")


@pytest.mark.parametrize("model", ["echo", "remote"])
async def test_a_tool_loop_goes_on_by_the_previous_id(client: AsyncOpenAI, model: str) -> None:
    first = await client.responses.create(
        model=model,
        input="Weather in Rome?",
        tools=[TOOL],
        user="script:tools=1",  # type: ignore[list-item]
    )
    [call] = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments) is not None
    second = await client.responses.create(
        model=model,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        user="script:echo=1",
    )
    assert second.previous_response_id == first.id
    assert second.status == "completed"
    third = await client.responses.create(model="echo", previous_response_id=second.id, input="and now?")
    assert third.output_text == "and now?"
    assert third.usage is not None
    # The whole conversation was sent: three words of the first question, one of the tool, …
    assert third.usage.input_tokens > 3 + 1 + 2


async def test_parallel_tool_calls_stream_to_the_client(talk: Talk) -> None:
    events = await streamed(talk, model="remote", tools=[TOOL], user="script:tools=2")
    final = events[-1]["response"]
    calls = [item for item in final["output"] if item["type"] == "function_call"]
    assert len(calls) == 2
    for place, call in enumerate(final["output"]):
        pieces = [
            e["delta"]
            for e in events
            if e["type"] == "response.function_call_arguments.delta" and e["output_index"] == place
        ]
        assert "".join(pieces) == call["arguments"]
        json.loads(call["arguments"])


async def test_structured_output_is_parsed_by_the_client(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="echo", input="x y", text={"format": {"type": "json_object"}})
    assert json.loads(made.output_text) == {"echo": "x y"}


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]


async def test_llama_answers_in_the_clients_own_type(tmp_path: Path, cache_dir: Path) -> None:
    """An engine of our own, held to a schema that the SDK made of a class; nothing the model says is luck."""
    spec = "models:\n  - {name: smollm2, backend: llamacpp, weights: smollm2-135m, slots: 1}\n"
    with running_hub("serve", tmp_path, spec, {"cache_dir": cache_dir}) as hub:
        async with client_of(Talk(hub.url, hub.admin_key)) as client:
            made = await client.responses.parse(model="smollm2", input="Plan a trip.", text_format=Trip)
            assert made.status == "completed"
            assert isinstance(made.output_parsed, Trip)
            async with client.responses.stream(
                model="smollm2", input="And another.", previous_response_id=made.id, text_format=Trip
            ) as stream:
                async for _ in stream:
                    pass
                final = await stream.get_final_response()
            assert isinstance(final.output_parsed, Trip)
            assert final.previous_response_id == made.id


async def test_a_picture_and_a_file_reach_the_model(client: AsyncOpenAI) -> None:
    made = await client.responses.create(
        model="sees",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": DOT, "detail": "low"},
                    {
                        "type": "input_file",
                        "file_data": "data:application/pdf;base64,JVBERi0xLjQ=",
                        "filename": "a",
                    },
                ],
            }
        ],
    )
    assert made.output_text == "see [image/png, 70 bytes] [application/pdf, 8 bytes]"


async def test_a_limit_makes_the_answer_incomplete(talk: Talk) -> None:
    words = " ".join(f"w{n}" for n in range(30))
    whole = checked(await talk.post(RESPONSES, {"model": "echo", "input": words, "max_output_tokens": 16}))
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    events = await streamed(talk, model="echo", input=words, max_output_tokens=16)
    assert events[-1]["type"] == "response.incomplete"


async def test_logprobs_are_given_to_who_asked(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="echo", input="a b", include=["message.output_text.logprobs"])
    part: Any = made.output[0].content[0]  # type: ignore[union-attr]
    assert "".join(token.token for token in part.logprobs) == "a b"


async def test_input_tokens_are_counted_with_the_history(client: AsyncOpenAI) -> None:
    counted = await client.responses.input_tokens.count(model="echo", input="one two three")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 3)
    first = await client.responses.create(model="echo", input="one two three")
    more = await client.responses.input_tokens.count(
        model="echo", input="four", previous_response_id=first.id, instructions="be brief"
    )
    assert more.input_tokens == 3 + 3 + 1 + 2


# --- stored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_response_is_read_again_as_it_was_given(talk: Talk, is_stream: bool) -> None:
    asked = {"model": "echo", "input": "keep me"}
    if is_stream:
        given = (await streamed(talk, **asked))[-1]["response"]
    else:
        given = checked(await talk.post(RESPONSES, asked))
    assert given["store"] is True
    found = await talk.get(f"{RESPONSES}/{given['id']}")
    assert found.json == given


async def test_the_official_client_reads_lists_and_deletes(client: AsyncOpenAI) -> None:
    made = await client.responses.create(
        model="echo",
        input=[
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "three"}]},
        ],
    )
    found = await client.responses.retrieve(made.id)
    assert found.output_text == "three"
    page = await client.responses.input_items.list(made.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["three", "two"]  # type: ignore[union-attr]
    assert page.has_more
    for order in ("asc", "desc"):
        whole = await client.responses.input_items.list(made.id, limit=3, order=order)
        assert (len(whole.data), whole.has_more) == (3, False)
    every = [item.id async for item in client.responses.input_items.list(made.id, limit=2, order="asc")]
    assert len(every) == len(set(every)) == 3
    await client.responses.delete(made.id)
    for gone in (client.responses.retrieve(made.id), client.responses.delete(made.id)):
        with pytest.raises(NotFoundError):
            await gone


async def test_input_items_are_as_the_document_says(talk: Talk) -> None:
    asked = {
        "model": "sees",
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": DOT}],
            },
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "id": "rs_1"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "b"},
        ],
    }
    made = checked(await talk.post(RESPONSES, asked))
    answer = await talk.get(f"{RESPONSES}/{made['id']}/input_items?order=asc")
    assert validate("ResponseItemList", answer.json) == []
    assert [item["type"] for item in answer.json["data"]] == [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    bad = await talk.get(f"{RESPONSES}/{made['id']}/input_items?after=nothing")
    assert (bad.status, bad.error["param"]) == (400, "after")


async def test_what_was_not_to_be_stored_is_not(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="echo", input="forget me", store=False)
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(made.id)
    with pytest.raises(BadRequestError) as caught:
        await client.responses.create(model="echo", input="more", previous_response_id=made.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_an_item_is_referred_to_by_its_id(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="echo", input="one two")
    item_id: Any = first.output[0].id
    made = await client.responses.create(
        model="echo", input=[{"type": "item_reference", "id": item_id}, {"role": "user", "content": "three"}]
    )
    assert made.usage is not None
    assert made.usage.input_tokens == 3
    with pytest.raises(NotFoundError) as caught:
        await client.responses.create(model="echo", input=[{"type": "item_reference", "id": "msg_nowhere"}])
    assert caught.value.param == "input[0].id"


async def test_instructions_are_not_carried_over(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="echo", input="one", instructions="a b c d e f g h")
    second = await client.responses.create(model="echo", input="two", previous_response_id=first.id)
    assert second.usage is not None
    assert second.usage.input_tokens == 3


async def test_responses_of_others_do_not_exist(talk: Talk) -> None:
    alpha, beta = await make_party(talk), await make_party(talk)
    made = checked(await alpha.admin.post(RESPONSES, {"model": "echo", "input": "a secret"}))
    item_id = made["output"][0]["id"]
    _, sibling = await make_key(alpha.admin, project_id=alpha.project_id)
    other = (await alpha.admin.post("/admin/v1/projects", {"name": "another"})).json
    _, cousin = await make_key(alpha.admin, project_id=other["id"])
    assert (await sibling.get(f"{RESPONSES}/{made['id']}")).status == 200
    for stranger in (beta.admin, cousin, talk):
        absent = await stranger.get(f"{RESPONSES}/resp_never")
        for method, path in (
            ("GET", made["id"]),
            ("DELETE", made["id"]),
            ("POST", f"{made['id']}/cancel"),
            ("GET", f"{made['id']}/input_items"),
        ):
            answer = await stranger.ask(method, f"{RESPONSES}/{path}")
            assert answer.status == 404, (method, path)
            assert answer.error["message"] == absent.error["message"].replace("resp_never", made["id"])
        for body, status in (
            ({"input": "and?", "previous_response_id": made["id"]}, 400),
            ({"input": [{"type": "item_reference", "id": item_id}]}, 404),
        ):
            answer = await stranger.post(RESPONSES, {"model": "echo", **body})
            assert answer.status == status, answer.body
            assert b"secret" not in answer.body
    assert (await alpha.admin.get(f"{RESPONSES}/{made['id']}")).status == 200


async def test_an_idempotency_key_makes_one_response(talk: Talk) -> None:
    asked = {"model": "echo", "input": "once"}
    first = await talk.post(RESPONSES, asked, idempotency_key="once-0001")
    again = await talk.post(RESPONSES, asked, idempotency_key="once-0001")
    assert first.body == again.body
    assert again.head["idempotent-replayed"] == "true"


async def test_a_broken_stream_is_not_kept_for_an_idempotency_key(talk: Talk) -> None:
    asked = {"model": "breaks-late", "input": "one two three", "stream": True}
    ids = []
    for _ in range(2):
        answer = await talk.post(RESPONSES, asked, idempotency_key="broken-0001")
        assert b"event: response.failed" in answer.body
        ids.append(answer.body.partition(b'"id":"')[2].partition(b'"')[0])
    assert ids[0] != ids[1], "executed again"


# --- an upstream that speaks it too ------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_upstreams_own_answer_is_passed_on_and_stored(talk: Talk, is_stream: bool) -> None:
    party = await make_party(talk)
    asked = {
        "model": "native",
        "input": "hi",
        "user": "script:n=3,think=1",
        "tools": [{"type": "web_search"}],
    }
    answer = await party.admin.post(RESPONSES, {**asked, "stream": is_stream})
    assert answer.status == 200, answer.body
    # A field that nobody here knows, and a number as it was written.
    assert b'"of_the_future":1.5' in answer.body
    assert b'"id":"resp_up-1"' in answer.body
    found = await party.admin.get(f"{RESPONSES}/resp_up-1")
    assert found.status == 200
    assert (found.json["status"], found.json["of_the_future"]) == ("completed", 1.5)
    assert said(found.json) == "word0 word1 word2 "
    assert (await talk.get(f"{RESPONSES}/resp_up-1")).json != found.json


async def test_a_native_conversation_is_sent_whole(talk: Talk) -> None:
    party = await make_party(talk)
    first = checked(await party.admin.post(RESPONSES, {"model": "echo", "input": "one two"}))
    asked = {
        "model": "native",
        "input": "three",
        "previous_response_id": first["id"],
        "user": "script:echo=1",
    }
    second = await party.admin.post(RESPONSES, asked)
    assert second.status == 200, second.body
    assert said(second.json) == "three"
    stored = (await party.admin.get(f"{RESPONSES}/resp_up-1")).json
    assert stored["previous_response_id"] == first["id"]
    third = {"model": "echo", "input": "four", "previous_response_id": "resp_up-1"}
    # one two, one two, three, three, four
    assert checked(await party.admin.post(RESPONSES, third))["usage"]["input_tokens"] == 7


@pytest.mark.parametrize("mode", ["cut", "rst", "clean_cut", "noterm", "garbage", "half_json", "error"])
async def test_a_native_stream_that_breaks_goes_on_in_its_own_numbers(talk: Talk, mode: str) -> None:
    events = await streamed(talk, model="native", user=f"script:fail_at=2,gap_ms=100,mode={mode}")
    assert [event["type"] for event in events].count("response.failed") == 1
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["id"] == "resp_up-1"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    spoken = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert said(events[-1]["response"]) == spoken != ""


async def test_a_thought_that_was_written_here_is_not_sent_to_an_upstream(tmp_path: Path) -> None:
    """No vendor knows it; one of the vendor's own goes back to it."""
    thoughts = [{"type": "reasoning", "id": name, "summary": []} for name in ("rs_ih_1", "rs_of_theirs")]
    async with Upstream() as upstream:
        with running_hub("serve", tmp_path, SPEC.format(upstream=upstream.url)) as hub:
            said_last = {"role": "user", "content": "hi"}
            asked = {"model": "native", "input": [*thoughts, said_last]}
            answer = await Talk(hub.url, hub.admin_key).post(RESPONSES, asked)
        assert answer.status == 200, answer.body
        [record] = await upstream.log()
    assert json.loads(record.body)["input"] == [thoughts[1], said_last]


async def test_a_native_response_that_failed_is_kept_with_what_was_said(talk: Talk) -> None:
    party = await make_party(talk)
    first = checked(await party.admin.post(RESPONSES, {"model": "echo", "input": "one"}))
    asked = {"user": "script:fail_at=3,mode=cut", "previous_response_id": first["id"]}
    events = await streamed(party.admin, model="native", **asked)
    found = (await party.admin.get(f"{RESPONSES}/resp_up-1")).json
    assert (found["status"], found["previous_response_id"]) == ("failed", first["id"])
    assert said(found) == said(events[-1]["response"]) == "word0 word1 word2 "


# --- refused ---------------------------------------------------------------------------------------

PART = {"type": "input_text", "text": "a"}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": []}, "empty_array", "input"),
        ({"input": 1}, "invalid_type", "input"),
        ({"input": [{"type": "nonsense"}]}, "invalid_value", "input[0].type"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
        ({"input": [{"role": "robot", "content": "a"}]}, "invalid_value", "input[0].role"),
        (
            {"input": [{"role": "user", "content": [PART, {"type": "text", "text": "a"}]}]},
            "invalid_value",
            "input[0].content[1]",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "missing_required_parameter", "input[0].content[0].text"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "a"}]},
            "invalid_value",
            "input[0].call_id",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
            "invalid_value",
            "input",
        ),
        ({"input": "a", "max_output_tokens": 1}, "invalid_value", "max_output_tokens"),
        ({"input": "a", "tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
        ({"input": "a", "tools": [{"type": "nonsense"}]}, "invalid_value", "tools[0].type"),
        (
            {"input": "a", "tools": [{**TOOL, "parameters": {"type": "nonsense"}}]},
            None,
            "tools[0].parameters",
        ),
        ({"input": "a", "tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "invalid_value", "tool_choice.name"),
        ({"input": "a", "stream_options": {}}, "invalid_value", "stream_options"),
        ({"input": "a", "background": True}, "unsupported_parameter", "background"),
        ({"input": "a", "conversation": "conv_1"}, "unsupported_parameter", "conversation"),
        ({"input": "a", "prompt": {"id": "p"}}, "unsupported_parameter", "prompt"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0]"),
        ({"input": "a", "tools": [{"type": "custom", "name": "c"}]}, "unsupported_parameter", "tools[0]"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}, {"role": "user", "content": "a"}]}, "unsupported_parameter", "input[0]"),
        ({"input": "a", "truncation": "auto"}, "unsupported_parameter", "truncation"),
        ({"input": "a", "include": ["everything"]}, "invalid_value", None),
        ({"input": "a", "api_base": "http://evil.example"}, None, "api_base"),
        ({"input": "a", "previous_response_id": "../etc"}, "previous_response_not_found", "previous_response_id"),
    ],
)  # fmt: skip
async def test_a_bad_request_is_told_where_it_is_bad(
    talk: Talk, body: dict[str, Any], code: str | None, param: str | None
) -> None:
    for is_stream in (False, True):
        asked = {"model": "echo", **body, **({"stream": True} if is_stream else {})}
        answer = await talk.post(RESPONSES, asked)
        if param == "stream_options" and is_stream:
            continue
        assert answer.status == 400, answer.body
        error = answer.error
        assert set(error) == {"message", "type", "param", "code"}
        assert code is None or error["code"] == code, error
        assert param is None or error["param"] == param, error


async def test_a_place_in_the_input_is_the_clients_own_also_behind_a_history(talk: Talk) -> None:
    first = checked(await talk.post(RESPONSES, {"model": "echo", "input": "a"}))
    asked = {"model": "echo", "previous_response_id": first["id"], "input": [{"role": "user", "content": 1}]}
    answer = await talk.post(RESPONSES, asked)
    assert answer.error["param"] == "input[0].content"
    assert "input[0].content" in answer.error["message"]


async def test_a_picture_that_is_refused_is_named_where_its_client_put_it(talk: Talk) -> None:
    def picture(url: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}

    first = checked(await talk.post(RESPONSES, {"model": "sees", "input": [picture(DOT)]}))
    for url in ("http://169.254.169.254/p.png", "data:image/png;base64,AAAA"):
        for is_stream in (False, True):
            asked = {"model": "sees", "input": [picture(DOT), picture(url)], "stream": is_stream}
            for body in (asked, {**asked, "previous_response_id": first["id"]}):
                answer = await talk.post(RESPONSES, body)
                assert (answer.status, answer.error["param"]) == (400, "input[1].content[0].image_url")
                assert "messages" not in answer.error["message"]
    part = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    message = {"model": "sees", "max_tokens": 9, "messages": [{"role": "user", "content": [part]}]}
    answer = await talk.post("/v1/messages", message)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("'messages.0.content.0.source.data' is not a picture")


async def test_nothing_runs_in_the_background_so_nothing_is_cancelled(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="echo", input="a")
    with pytest.raises(BadRequestError):
        await client.responses.cancel(made.id)


async def test_a_stored_response_is_not_streamed_again(talk: Talk) -> None:
    made = checked(await talk.post(RESPONSES, {"model": "echo", "input": "a"}))
    answer = await talk.get(f"{RESPONSES}/{made['id']}?stream=true")
    assert (answer.status, answer.error["param"]) == (400, "stream")


async def test_an_unknown_model_is_a_status_also_for_a_stream(client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.responses.create(model="nobody", input="a", stream=True)
    assert caught.value.code == "model_not_found"


# --- broken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["breaks-late", "remote"])
async def test_a_stream_that_breaks_ends_with_response_failed(talk: Talk, model: str) -> None:
    events = await streamed(talk, model=model, user="script:fail_at=2,mode=cut")
    failed = events[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    stored = await talk.get(f"{RESPONSES}/{failed['response']['id']}")
    assert (stored.status, stored.json["status"]) == (200, "failed")
    assert said(stored.json) == said(failed["response"])
    answer = await talk.post(
        RESPONSES, {"model": "echo", "input": "go on", "previous_response_id": stored.json["id"]}
    )
    assert (answer.status, answer.error["param"]) == (400, "previous_response_id")


async def test_an_upstream_that_is_killed_mid_stream_is_a_failed_response(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        with running_hub("serve", tmp_path, SPEC.format(upstream=upstream.url)) as hub:
            async with client_of(Talk(hub.url, hub.admin_key)) as client:
                stream = await client.responses.create(
                    model="remote", input="a", user="script:n=500,gap_ms=20", stream=True
                )
                kinds: list[str] = []
                async for event in stream:
                    kinds.append(event.type)
                    if len(kinds) == 8:
                        upstream._process.kill()
    assert kinds[-1] == "response.failed"


async def test_a_client_that_hangs_up_leaves_nothing_behind(talk: Talk) -> None:
    words = " ".join(f"w{n}" for n in range(200))
    async with client_of(talk) as client:
        stream = await client.responses.create(model="slow", input=words, stream=True)
        first: Any = await anext(aiter(stream))
        await stream.close()
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(first.response.id)


async def test_an_error_before_the_first_word_has_its_status(client: AsyncOpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        await client.responses.create(model="remote", input="a", user="script:mode=500", stream=True)
    assert caught.value.status_code == 502


async def test_a_store_that_is_down_is_said_and_answers_go_on(tmp_path: Path, postgres: Postgres) -> None:
    spec = SPEC.format(upstream="http://127.0.0.1:9")
    with running_hub("serve", tmp_path, spec, {"responses_url": postgres.fresh()}) as hub:
        talk = Talk(hub.url, hub.admin_key)
        kept = checked(await talk.post(RESPONSES, {"model": "echo", "input": "a"}))
        postgres.freeze()
        try:
            for _ in range(2):
                answer = await talk.post(RESPONSES, {"model": "echo", "input": "b"})
                assert answer.head["x-inferhub-stored"] == "false"
                assert checked(answer)["store"] is False
            assert (await streamed(talk, model="echo"))[-1]["response"]["store"] is False
            asked = {"model": "echo", "input": "b", "previous_response_id": kept["id"]}
            for answer in (await talk.post(RESPONSES, asked), await talk.get(f"{RESPONSES}/{kept['id']}")):
                assert (answer.status, answer.error["code"]) == (503, "store_failed")
        finally:
            postgres.thaw()
        deadline_s = time.monotonic() + 60
        while (await talk.get(f"{RESPONSES}/{kept['id']}")).status != 200:
            assert time.monotonic() < deadline_s
        while (
            checked(answer := await talk.post(RESPONSES, {"model": "echo", "input": "c"}))["store"] is False
        ):
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.2)
        assert answer.head["x-inferhub-stored"] is None


async def test_a_killed_hub_still_has_what_it_stored(tmp_path: Path) -> None:
    spec = SPEC.format(upstream="http://127.0.0.1:9")
    with running_hub("serve", tmp_path, spec) as hub:
        talk = Talk(hub.url, hub.admin_key)
        made = (await streamed(talk, model="echo", input="remember me"))[-1]["response"]
        hub.processes[0].kill()
    assert not any(b"remember me" in kept for kept in files(tmp_path, "responses.db*")), "sealed"
    with running_hub("serve", tmp_path, spec) as hub:
        talk = Talk(hub.url, hub.admin_key)
        assert (await talk.get(f"{RESPONSES}/{made['id']}")).json == made
        asked = {"model": "echo", "input": "more", "previous_response_id": made["id"]}
        assert checked(await talk.post(RESPONSES, asked))["usage"]["input_tokens"] == 5
