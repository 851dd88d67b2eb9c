"""Contract items 21, 23 to 25 and 29: refusals are OpenAI's envelope with the right status, always."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from inferhub.testing.raw_http import chunked, connect, exchange, request_bytes
from inferhub.testing.servers import Hub
from inferhub.testing.talk import CHAT, COMPLETIONS, EMBEDDINGS, Talk, chat_body

HELLO: Any = [{"role": "user", "content": "hello"}]


async def test_contract_021_envelope_of_every_refusal(talk: Talk) -> None:
    """All four keys, whichever part of the server refuses."""
    cases = [
        ("GET", "/v1/nothing/here", {}, b"", 404),
        ("POST", "/v1/nothing", {}, b"{}", 404),
        ("GET", "/admin/v1/nothing", {}, b"", 404),
        ("GET", CHAT, {}, b"", 405),
        ("DELETE", "/v1/models", {}, b"", 405),
        ("POST", CHAT, {"content-type": "text/plain"}, b"hello", 415),
        ("POST", CHAT, {"content-encoding": "gzip"}, b"hello", 415),
        ("POST", CHAT, {}, b"{", 400),
        ("POST", CHAT, {}, b'{"model": 1, "messages": []}', 400),
        ("POST", CHAT, {"authorization": "Bearer wrong"}, b"{}", 401),
        ("GET", "/v1/models", {"authorization": "Basic eDp5"}, b"", 401),
        ("GET", "/v1/models/none", {}, b"", 404),
        ("PUT", "/admin/v1/spec", {"if-match": "x"}, b"models: []", 400),
        ("PUT", "/admin/v1/spec", {}, b"models: [", 400),
        ("POST", CHAT, {}, b'{"model": "broken", "messages": [{"role": "user", "content": "x"}]}', 502),
    ]
    for method, path, headers, body, status in cases:
        answer = await talk.ask(method, path, headers, body)
        assert answer.status == status, (method, path, answer)
        assert answer.error
        assert answer.head["content-type"] == "application/json", (method, path)
        assert answer.head["x-request-id"], (method, path)


async def test_contract_021_never_fastapi_s_detail(talk: Talk) -> None:
    for path in ("/nothing", "/v1/chat", "/docs/nothing", "/v1/models/a/b/c"):
        assert "detail" not in (await talk.get(path)).json


async def test_contract_023_unknown_model(talk: Talk) -> None:
    for path, body in (
        (CHAT, chat_body("smolm2-135m")),
        (COMPLETIONS, {"model": "smolm2-135m", "prompt": "x"}),
        (EMBEDDINGS, {"model": "smolm2-135m", "input": "x"}),
    ):
        answer = await talk.post(path, body)
        assert answer.status == 404
        error = answer.error
        assert (error["type"], error["code"], error["param"]) == (
            "invalid_request_error",
            "model_not_found",
            None,
        )
        assert "'smolm2-135m'" in error["message"]
        assert "Did you mean 'smollm2-135m'" in error["message"]


async def test_contract_024_empty_and_bad_values(talk: Talk) -> None:
    empty = await talk.post(CHAT, {"model": "echo", "messages": []})
    assert (empty.status, empty.error["code"], empty.error["param"]) == (400, "empty_array", "messages")
    for more, param, value, allowed in (
        ({"temperature": 3}, "temperature", "3", "2"),
        ({"n": 0}, "n", "0", "1"),
        ({"top_p": -0.5}, "top_p", "-0.5", "0"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "5 strings", "4"),
        ({"max_tokens": 0}, "max_tokens", "0", "1"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort", '"extreme"', "reasoning_effort"),
    ):
        answer = await talk.chat("echo", **more)
        error = answer.error
        assert answer.status == 400, more
        assert error["param"] == param, error
        assert value in error["message"], error
        assert allowed in error["message"], error
    nested = await talk.post(CHAT, {"model": "echo", "messages": [{"role": "robot", "content": "x"}]})
    assert nested.status == 400
    assert nested.error["param"] == "messages[0].role"
    assert '"robot"' in nested.error["message"]


async def test_contract_024_unsupported_is_told_apart(talk: Talk) -> None:
    answer = await talk.chat("echo", logit_bias={"5": 1})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "unsupported_parameter",
        "logit_bias",
    )
    embedding = await talk.post(CHAT, chat_body("minilm-l6-v2"))
    assert (embedding.status, embedding.error["param"]) == (400, "model")
    assert "/v1/embeddings" in embedding.error["message"]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer sk-1234567890abcdef1234",
        "Basic aWg6eA==",
        "bearer ' OR '1'='1",
        "Bearer ih_" + "x" * 12 + "_" + "y" * 32,
        "Bearer \xff\xfe",
        "Bearer " + "A" * 5000,
    ],
)
async def test_contract_025_bad_keys(talk: Talk, authorization: str) -> None:
    for answer in (
        await talk.get("/v1/models", authorization=authorization),
        await talk.post(CHAT, chat_body("echo"), authorization=authorization),
    ):
        assert answer.status == 401
        assert answer.head["www-authenticate"] == "Bearer"
        assert answer.error["code"] == "invalid_api_key"
        presented = authorization.partition(" ")[2]
        assert len(presented) < 6 or presented not in answer.body.decode()
        assert len(presented) < 6 or presented[:-4] not in answer.body.decode()


async def test_contract_025_no_key_at_all(hub: Hub) -> None:
    for request in (
        request_bytes("GET", "/v1/models"),
        request_bytes("POST", CHAT, body=b"{}"),
        request_bytes("GET", "/admin/v1/spec"),
    ):
        answer = await exchange(hub.url, request)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_contract_025_the_key_is_asked_before_the_body(hub: Hub) -> None:
    """A stranger's megabytes are not read."""
    async with connect(hub.url) as connection:
        await connection.send(
            request_bytes("POST", CHAT, {"content-length": "900000", "content-type": "application/json"})
        )
        head = await connection.head(timeout_s=5)
    assert head.status == 401


@pytest.mark.parametrize(
    ("error", "ask"),
    [
        (openai.NotFoundError, {"model": "nope", "messages": HELLO}),
        (openai.BadRequestError, {"model": "echo", "messages": []}),
        (openai.BadRequestError, {"model": "echo", "messages": HELLO, "temperature": 9}),
        (openai.InternalServerError, {"model": "broken", "messages": HELLO}),
        (openai.RateLimitError, {"model": "limited-1", "messages": HELLO, "user": "script:mode=429"}),
        (openai.BadRequestError, {"model": "remote", "messages": HELLO, "user": "script:mode=400"}),
        (openai.InternalServerError, {"model": "remote-dead", "messages": HELLO}),
    ],
)
async def test_contract_029_error_classes_of_the_official_client(
    client: AsyncOpenAI, error: type[openai.APIStatusError], ask: dict[str, Any]
) -> None:
    with pytest.raises(error) as raised:
        await client.chat.completions.create(**ask)
    assert raised.value.request_id
    assert raised.value.code
    assert raised.value.message


async def test_contract_029_wrong_key_with_the_official_client(hub: Hub) -> None:
    async with AsyncOpenAI(base_url=hub.api, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_contract_029_what_a_retry_cannot_mend_is_not_retried(talk: Talk) -> None:
    """The official client asks again after 429 and 5xx unless it is told not to."""
    quota = await talk.chat("limited-2", user="script:mode=429,code=insufficient_quota")
    assert (quota.status, quota.head["x-should-retry"]) == (429, "false")
    busy = await talk.chat("limited-3", user="script:mode=429,retry_after_s=7")
    assert busy.status == 429
    assert busy.head["x-should-retry"] is None
    assert 7 <= int(busy.head["retry-after"] or 0) <= 8


async def test_contract_029_retry_after_of_a_full_queue(talk: Talk) -> None:
    """`glacial` has two slots and a queue of two: the fifth is refused, and told when to come back."""
    async with (
        talk.opened(CHAT, chat_body("glacial", stream=True)) as one,
        talk.opened(CHAT, chat_body("glacial", stream=True)) as two,
        talk.opened(CHAT, chat_body("glacial", stream=True)) as three,
        talk.opened(CHAT, chat_body("glacial", stream=True)) as four,
    ):
        for call in (one, two, three, four):
            assert (await call.head()).status == 200
        fifth = await talk.chat("glacial")
    assert (fifth.status, fifth.error["code"]) == (503, "overloaded")
    assert int(fifth.head["retry-after"] or 0) >= 1


async def test_oversized_chunked_body_is_cut_while_it_is_read(talk: Talk) -> None:
    headers = {"transfer-encoding": "chunked", "content-type": "application/json"}
    async with connect(talk.url) as connection:
        await connection.send(talk.request("POST", CHAT, headers))
        for _ in range(20):
            await connection.send(chunked([b" " * 2**16]).removesuffix(b"0\r\n\r\n"))
        head = await connection.head(timeout_s=10)
    assert head.status == 413
