"""`POST /infer` and `POST /v1/llm/chat`: the plain ways in lead to the same calls as the long ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferhub.testing.servers import Hub
from inferhub.testing.talk import CHAT, EMBEDDINGS, Talk

TURNS = [{"role": "user", "content": "one two three"}]


@pytest.fixture
def ask(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


def events(body: bytes) -> list[Any]:
    data = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(line) for line in data]


async def answer(talk: Talk, path: str, body: dict[str, Any]) -> Any:
    found = await talk.post(path, body, **{"x-inferhub-cache": "off"})
    assert found.status == 200, found.body
    return json.loads(found.body)


async def test_a_message_in_a_text_out(ask: Talk) -> None:
    long = await answer(ask, CHAT, {"model": "echo", "messages": TURNS})
    for body in ({"message": "one two three"}, {"messages": TURNS}):
        short = await answer(ask, "/v1/llm/chat", {"model": "echo", **body})
        assert short["text"] == long["choices"][0]["message"]["content"]
        assert short["usage"] == {
            "input_tokens": long["usage"]["prompt_tokens"],
            "output_tokens": long["usage"]["completion_tokens"],
        }
        assert (short["model"], short["finish_reason"]) == ("echo", "stop")


async def test_a_stream_of_texts_ends_with_the_record(ask: Talk) -> None:
    streamed = await ask.post("/v1/llm/chat", {"model": "echo", "message": "one two three", "stream": True})
    *pieces, last = events(streamed.body)
    whole = await answer(ask, "/v1/llm/chat", {"model": "echo", "message": "one two three"})
    assert len(pieces) > 1
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert {**last, "id": "", "text": whole["text"]} == {**whole, "id": ""}


async def test_the_longest_answer_is_capped(ask: Talk) -> None:
    short = await answer(ask, "/v1/llm/chat", {"model": "echo", "message": "one two three", "max_tokens": 1})
    assert short["finish_reason"] == "length"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"message": "a", "messages": TURNS},
        {"messages": []},
        {"message": 1},
        {"messages": [{"role": "tool"}]},
    ],
)
async def test_an_unclear_message_is_refused(ask: Talk, body: dict[str, Any]) -> None:
    found = await ask.post("/v1/llm/chat", {"model": "echo", **body})
    assert found.status == 400, found.body


async def test_a_text_is_a_conversation_where_the_model_can_have_one(ask: Talk) -> None:
    long = await answer(ask, CHAT, {"model": "echo", "messages": TURNS})
    for given in ("one two three", TURNS, {"messages": TURNS}):
        found = await answer(ask, "/infer", {"model": "echo", "input": given})
        assert found["choices"] == long["choices"]


async def test_the_task_or_the_model_says_what_a_text_is_for(ask: Talk) -> None:
    long = await answer(ask, EMBEDDINGS, {"model": "minilm-l6-v2", "input": "a cat"})
    for body in ({}, {"task": "embedding"}, {"parameters": {"encoding_format": "float"}}):
        found = await answer(ask, "/infer", {"model": "minilm-l6-v2", "input": "a cat", **body})
        assert found["data"][0]["embedding"] == pytest.approx(long["data"][0]["embedding"], abs=1e-5)
    ranked = await answer(
        ask,
        "/infer",
        {"model": "minilm-l6-v2", "task": "rerank", "input": "cats", "parameters": {"documents": ["a", "b"]}},
    )
    assert len(ranked["results"]) == 2


async def test_without_a_model_the_first_one_answers(plain_hub: Hub) -> None:
    talk = Talk(plain_hub.url, plain_hub.admin_key)
    found = await answer(talk, "/infer", {"input": "Say hello."})
    assert (found["object"], found["model"]) == ("chat.completion", "echo")
    assert (await answer(talk, "/v1/llm/chat", {"message": "Say hello."}))["model"] == "echo"


async def test_infer_streams_when_asked(ask: Talk) -> None:
    found = await ask.post("/infer", {"model": "echo", "input": "one two", "stream": True})
    assert (found.head["content-type"] or "").startswith("text/event-stream")
    assert events(found.body)[0]["object"] == "chat.completion.chunk"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "a", "task": "cook"}, "task"),
        ({"input": "a", "temperature": 1}, "temperature"),
        ({"input": "a", "parameters": {"temperature": "hot"}}, "temperature"),
        ({"input": "a", "parameters": {"api_base": "http://127.0.0.1"}}, "api_base"),
        ({"input": 5}, "input"),
    ],
)
async def test_what_is_wrong_is_named(ask: Talk, body: dict[str, Any], param: str) -> None:
    found = await ask.post("/infer", {"model": "echo", **body})
    assert found.status == 400, found.body
    assert json.loads(found.body)["error"]["param"] == param
