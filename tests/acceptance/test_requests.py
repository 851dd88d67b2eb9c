"""Contract items 31 to 37, 48, 81 and 82: what a request may hold, and what becomes of it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from openai import AsyncOpenAI

from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import Hub
from inferhub.testing.talk import CHAT, COMPLETIONS, EMBEDDINGS, Talk, chat_body, chunks
from inferhub.testing.upstream_process import Upstream


async def asked_upstream(
    talk: Talk, upstream: Upstream, **more: Any
) -> tuple[dict[str, str], dict[str, Any]]:
    """(headers, body) that the upstream received for a chat with `remote`."""
    async with talk.opened(CHAT, chat_body("remote", **more)) as call:
        head = await call.head()
        assert head.status == 200, await call.connection.body(head)
        record = await upstream.wait_for(call.request_id, lambda r: r.done_s)
    return record.headers, json.loads(record.body)


def refused(answer: Answer, param: str | None = None) -> dict[str, Any]:
    assert answer.status == 400, answer
    if param is not None:
        assert answer.error["param"] == param, answer.error
    return answer.error


async def test_contract_031_sdk_headers_are_accepted_and_stay_here(talk: Talk, upstream: Upstream) -> None:
    ours = {
        "x_stainless_retry_count": "1",
        "x_stainless_lang": "python",
        "openai_organization": "org-1",
        "openai_project": "proj-1",
        "openai_beta": "assistants=v2",
        "cookie": "session=secret",
        "x_forwarded_for": "10.0.0.1",
    }
    async with talk.opened(CHAT, chat_body("remote"), **ours) as call:
        assert (await call.head()).status == 200
        record = await upstream.wait_for(call.request_id)
    sent = {name.replace("_", "-"): value for name, value in ours.items()}
    for name, value in {**sent, "authorization": talk.key}.items():
        assert value not in record.headers.get(name, ""), name
    assert record.headers["authorization"] == "Bearer sk-upstream-canary"


async def test_contract_032_unknown_parameters_are_named_where_they_are_ignored(talk: Talk) -> None:
    answer = await talk.chat("echo", frobnicate=1, min_p=0.1)
    assert answer.status == 200
    assert set((answer.head["x-inferhub-ignored-params"] or "").split(",")) == {"frobnicate", "min_p"}
    # Known, and nothing that this model could honour.
    assert refused(await talk.chat("echo", top_k=40), "top_k")["code"] == "unsupported_parameter"
    assert (await talk.chat("echo")).head["x-inferhub-ignored-params"] is None
    async with talk.opened(CHAT, chat_body("echo", stream=True, frobnicate=1)) as call:
        assert (await call.head())["x-inferhub-ignored-params"] == "frobnicate"


async def test_contract_032_unknown_parameters_reach_an_upstream_as_they_are(
    talk: Talk, upstream: Upstream
) -> None:
    _, body = await asked_upstream(talk, upstream, top_k=40, guided={"a": [1, None]})
    assert body["top_k"] == 40
    assert body["guided"] == {"a": [1, None]}
    assert (await talk.chat("remote", top_k=40)).head["x-inferhub-ignored-params"] is None


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers"])
async def test_contract_032_a_client_cannot_steer_the_upstream(
    talk: Talk, upstream: Upstream, name: str
) -> None:
    async with talk.opened(CHAT, chat_body("remote", **{name: "http://127.0.0.1:1/evil"})) as call:
        head = await call.head()
        error = json.loads(await call.connection.body(head))["error"]
    assert (head.status, error["code"], error["param"]) == (400, "unsupported_parameter", name)
    assert not await upstream.records(call.request_id)


async def test_contract_033_both_names_of_the_limit(talk: Talk, upstream: Upstream) -> None:
    text = "a b c d e f"

    async def words(**more: int) -> int:
        return len((await talk.chat("echo", text, **more)).json["choices"][0]["message"]["content"].split())

    assert await words(max_tokens=2) == 2
    assert await words(max_completion_tokens=3) == 3
    assert await words(max_tokens=2, max_completion_tokens=4) == 4
    _, body = await asked_upstream(talk, upstream, max_tokens=5)
    assert body["max_tokens"] == 5


async def test_contract_033_the_limit_binds_the_real_model(talk: Talk) -> None:
    usage = (await talk.chat("smollm2-135m", "Tell me a story.", max_completion_tokens=4)).json["usage"]
    assert usage["completion_tokens"] == 4


async def test_contract_034_forwarded_or_refused_never_ignored(talk: Talk, upstream: Upstream) -> None:
    every = {
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "seed": 7,
        "stop": ["END", "STOP"],
        "logit_bias": {"50256": -100},
        "user": "script:n=3",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "scale",
        "reasoning_effort": "low",
        "parallel_tool_calls": False,
        "temperature": 0.25,
        "top_p": 0.5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "verbosity": "low",
        "prediction": {"type": "content", "content": "x"},
    }
    _, body = await asked_upstream(talk, upstream, **every)
    for name, value in every.items():
        assert body[name] == value, name
    for model in ("echo", "smollm2-135m"):
        for name in (
            "store",
            "service_tier",
            "reasoning_effort",
            "verbosity",
            "prediction",
            "web_search_options",
        ):
            value: Any = every.get(name, {})
            error = refused(await talk.chat(model, **{name: value}), name)
            assert error["code"] == "unsupported_parameter"


async def test_contract_034_stop_as_text_and_as_list(talk: Talk) -> None:
    for stop in ("three", ["zzz", "three"]):
        answer = (await talk.chat("echo", "one two three four", stop=stop)).json["choices"][0]
        assert answer["message"]["content"].strip() == "one two"
        assert answer["finish_reason"] == "stop"


async def test_contract_034_seed_repeats_the_real_model(talk: Talk) -> None:
    said = [
        (await talk.chat("smollm2-135m", "Write a sentence.", seed=11, temperature=1, max_tokens=12)).json
        for _ in range(2)
    ]
    assert len({answer["choices"][0]["message"]["content"] for answer in said}) == 1


@pytest.mark.parametrize("model", ["echo", "smollm2-135m"])
async def test_contract_035_logprobs_spell_the_content(talk: Talk, model: str) -> None:
    more: dict[str, Any] = {"logprobs": True, "max_tokens": 6, "temperature": 0}
    if model != "echo":
        more["top_logprobs"] = 3
    choice = (await talk.chat(model, "Say: one two three", **more)).json["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == choice["message"]["content"]
    assert all(token["logprob"] <= 0 for token in tokens)
    assert all(len(token["top_logprobs"]) <= 3 for token in tokens)
    streamed = chunks(await talk.stream(model, "Say: one two three", **more))
    pieces = [c["choices"][0]["logprobs"]["content"] for c in streamed if c["choices"][0]["logprobs"]]
    assert "".join(token["token"] for piece in pieces for token in piece) == choice["message"]["content"]


async def test_contract_035_bounds_of_top_logprobs(talk: Talk) -> None:
    refused(await talk.chat("echo", logprobs=True, top_logprobs=21), "top_logprobs")
    refused(await talk.chat("echo", top_logprobs=2), "top_logprobs")


SAMPLING = (
    *("temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "max_tokens", "logit_bias"),
    *("max_completion_tokens", "presence_penalty", "frequency_penalty", "user", "metadata", "store"),
)


async def test_contract_036_null_is_absent(talk: Talk) -> None:
    nothing = dict.fromkeys(
        (*SAMPLING, "tools", "tool_choice", "stream", "stream_options", "response_format")
    )
    answer = await talk.chat("echo", **nothing)
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"] == "one two three"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"n": True}, "n"),
        ({"stop": 5}, "stop"),
        ({"model": 5}, "model"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"tools": {}}, "tools"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
async def test_contract_036_wrong_types_are_not_coerced(talk: Talk, more: dict[str, Any], param: str) -> None:
    error = refused(await talk.post(CHAT, chat_body("echo") | more))
    assert error["param"] == param, error
    assert error["code"] == "invalid_type", error


async def test_contract_036_missing_parameters(talk: Talk) -> None:
    assert refused(await talk.post(CHAT, {"messages": []}), "model")["code"] == "missing_required_parameter"
    assert (
        refused(await talk.post(CHAT, {"model": "echo"}), "messages")["code"] == "missing_required_parameter"
    )
    assert refused(await talk.post(EMBEDDINGS, {"model": "minilm-l6-v2"}), "input")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"[]",
        b'"x"',
        b"1",
        b"null",
        b"{",
        b'{"model": "echo",}',
        b"{'model': 'echo'}",
        b'{"model": "echo", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "echo", "temperature": NaN}',
        b'{"model": "echo", "temperature": Infinity}',
        b'{"model": "echo", "model": "slow"}',
        b'{"model": "echo", "messages": [], "messages": []}',
        b'\xef\xbb\xbf{"model": "echo"}',
        b'{"model": "echo", "n": ' + b"9" * 5000 + b"}",
        b'{"a": ' * 65 + b"1" + b"}" * 65,
        b"[" * 100_000,
        b'{"model": "echo", "messages": ' + b"[" * 64 + b"]" * 64 + b"}",
    ],
)
async def test_contract_037_malformed_bodies(talk: Talk, path: str, body: bytes) -> None:
    begin = time.monotonic()
    error = refused(await talk.post(path, body))
    # Refused for its form, not for what it happens to lack.
    assert error["code"] in ("invalid_json", "duplicate_name", "too_deep"), error
    assert time.monotonic() - begin < 5


async def test_contract_037_the_place_of_a_mistake_is_told(talk: Talk) -> None:
    assert "line 2, column 3" in refused(await talk.post(CHAT, b'{"model":\n  oops}'))["message"]
    assert "NaN" in refused(await talk.post(CHAT, b'{"temperature": NaN}'))["message"]
    assert refused(await talk.post(CHAT, b'{"model": "a", "model": "b"}'))["code"] == "duplicate_name"
    assert refused(await talk.post(CHAT, b"[" * 1000))["code"] == "too_deep"
    assert refused(await talk.post(CHAT, b'{"model": "echo", "messages": [], "n": 1e400}'), "n")


async def test_contract_037_depth_is_counted_outside_of_texts(talk: Talk) -> None:
    braces = "{[" * 500
    assert (await talk.chat("echo", braces)).json["choices"][0]["message"]["content"] == braces


@pytest.mark.parametrize("model", ["echo", "smollm2-135m"])
async def test_contract_048_roles_names_and_parts(talk: Talk, model: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "Hello", "name": "ann"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]},
    ]
    answer = await talk.post(CHAT, {"model": model, "messages": messages, "max_tokens": 4})
    assert answer.status == 200, answer.body
    if model == "echo":
        assert answer.json["choices"][0]["message"]["content"] == "one two"


PARTS: list[dict[str, Any]] = [
    {
        "type": "image_url",
        "image_url": {
            "url": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
            "detail": "low",
        },
    },
    {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
]


@pytest.mark.parametrize("part", PARTS)
async def test_contract_048_media_parts(talk: Talk, upstream: Upstream, part: dict[str, Any]) -> None:
    """Passed on to an upstream unchanged; refused, not dropped, by a model that cannot see or hear."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]
    _, body = await asked_upstream(talk, upstream, messages=messages)
    assert body["messages"] == messages
    for model in ("echo", "smollm2-135m"):
        error = refused(await talk.post(CHAT, {"model": model, "messages": messages}), "messages[0].content")
        assert error["code"] == "unsupported_parameter"


async def test_contract_048_unknown_part_type(talk: Talk) -> None:
    messages = [{"role": "user", "content": [{"type": "hologram", "hologram": {}}]}]
    error = refused(await talk.post(CHAT, {"model": "echo", "messages": messages}))
    assert "hologram" in error["message"]
    assert (error["param"] or "").startswith("messages[0].content")


async def test_contract_081_alias_is_echoed_and_resolved_in_a_header(talk: Talk, client: AsyncOpenAI) -> None:
    whole = await talk.chat("chat")
    assert whole.json["model"] == "chat"
    assert whole.head["x-inferhub-model"] == "echo"
    async with talk.opened(CHAT, chat_body("chat", stream=True)) as call:
        head = await call.head()
        events = [event async for event in call.connection.events(head)]
    assert {chunk["model"] for chunk in chunks(events)} == {"chat"}
    assert head["x-inferhub-model"] == "echo"
    raw = await client.chat.completions.with_raw_response.create(
        model="lab/alias", messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )
    assert raw.headers["x-inferhub-model"] == "smollm2-135m"
    assert raw.parse().model == "lab/alias"


async def test_contract_082_clocks(talk: Talk, hub: Hub) -> None:
    before = int(time.time())
    created = (await talk.chat("echo")).json["created"]
    assert type(created) is int
    assert before <= created <= time.time() + 1
    times = [json.loads(line)["time"] for line in hub.front.stderr.splitlines() if line.startswith("{")]
    assert times
    assert all(stamp.endswith("Z") and len(stamp) == 24 and stamp[10] == "T" for stamp in times)
