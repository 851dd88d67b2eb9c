"""Contract items 20, 27, 30, 38 to 41 and 78 to 80: HTTP itself, its limits, health and slow readers."""

from __future__ import annotations

import asyncio
import re
import time

import psutil
import pytest
from openai import AsyncOpenAI

from inferhub.testing.raw_http import chunked, connect, exchange, request_bytes
from inferhub.testing.servers import Hub, wait_for
from inferhub.testing.talk import CHAT, COMPLETIONS, EMBEDDINGS, Talk, chat_body, content

POSTS = {
    CHAT: chat_body("echo"),
    COMPLETIONS: {"model": "echo", "prompt": "a b"},
    EMBEDDINGS: {"model": "minilm-l6-v2", "input": "a b"},
}


async def test_contract_020_head_and_options_then_a_stream(talk: Talk) -> None:
    async with connect(talk.url) as connection:
        for method in ("HEAD", "OPTIONS"):
            await connection.send(talk.request(method, CHAT))
            head = await connection.head()
            assert head.status == 405
            if method == "OPTIONS":
                await connection.body(head)
        await connection.send(talk.request("POST", CHAT, body=chat_body("echo", stream=True)))
        head = await connection.head()
        assert content([event async for event in connection.events(head)]) == "one two three"


async def test_contract_020_http_1_0(talk: Talk) -> None:
    """A plain answer works; a stream, which needs chunks, is refused in words."""
    whole = await exchange(talk.url, talk.request("POST", CHAT, body=chat_body("echo"), version="HTTP/1.0"))
    assert whole.json["choices"][0]["message"]["content"] == "one two three"
    body = chat_body("echo", stream=True)
    streamed = await exchange(talk.url, talk.request("POST", CHAT, body=body, version="HTTP/1.0"))
    assert (streamed.status, streamed.error["param"]) == (400, "stream")


async def test_contract_020_connection_close(talk: Talk) -> None:
    async with talk.opened(CHAT, chat_body("echo", stream=True), connection="close") as call:
        head = await call.head()
        assert content([event async for event in call.connection.events(head)]) == "one two three"
        assert await call.connection.is_closed(timeout_s=5)


async def test_contract_027_request_id_everywhere(talk: Talk) -> None:
    seen = set()
    for path in ("/v1/models", "/livez", "/nothing", "/v1/models/none", "/docs"):
        seen.add((await talk.get(path)).head["x-request-id"])
    for body in (chat_body("echo"), chat_body("none"), chat_body("broken"), {}):
        seen.add((await talk.post(CHAT, body)).head["x-request-id"])
    seen.add((await talk.get("/v1/models", authorization="Bearer x")).head["x-request-id"])
    async with connect(talk.url) as connection:
        await connection.send(talk.request("POST", CHAT, body=chat_body("echo", stream=True)))
        seen.add((await connection.head())["x-request-id"])
    assert len(seen) == 11
    assert all(found and re.fullmatch(r"req_[0-9a-f]{24}", found) for found in seen)


async def test_contract_027_a_client_s_id_is_kept_when_it_is_harmless(talk: Talk, hub: Hub) -> None:
    good = "trace-0123_ABC"
    answer = await talk.post(CHAT, chat_body("broken"), x_request_id=good)
    assert answer.head["x-request-id"] == good
    assert good in hub.front.stderr, "the id of a failed call is in the log"
    for bad in (
        "short",
        "x" * 129,
        "semi;colon1",
        "new line 12",
        "ünïcödé-123",
        "<script>alert</script>",
        "",
    ):
        kept = (await talk.get("/livez", x_request_id=bad)).head["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{24}", kept or ""), bad


async def test_contract_027_the_official_client_reads_the_id(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x"}])
    assert answer._request_id
    assert answer._request_id.startswith("req_")


async def test_contract_030_openai_headers(talk: Talk) -> None:
    for answer in (await talk.chat("echo"), await talk.chat("none"), await talk.get("/v1/models")):
        assert int(answer.head["openai-processing-ms"] or "-1") >= 0
        assert answer.head["openai-version"]
        assert "x-request-id" in (answer.head["access-control-expose-headers"] or "").lower()


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 415),
        ("", 415),
    ],
)
async def test_contract_038_content_type(talk: Talk, media: str, status: int) -> None:
    answer = await talk.post(CHAT, chat_body("echo"), content_type=media)
    assert answer.status == status
    if status == 415:
        assert "application/json" in answer.error["message"]


async def test_contract_038_expect_100_continue(talk: Talk) -> None:
    body = b'{"model": "echo", "messages": [{"role": "user", "content": "hi"}]}'
    headers = {"expect": "100-continue", "content-length": str(len(body)), "content-type": "application/json"}
    async with connect(talk.url) as connection:
        await connection.send(talk.request("POST", CHAT, headers))
        assert (await connection.head(timeout_s=5)).status == 100
        await connection.send(body)
        assert (await connection.head()).status == 200


async def test_contract_039_too_large_by_content_length(talk: Talk) -> None:
    """Refused from the header alone: none of the body is sent."""
    headers = {"content-length": str(2**40), "content-type": "application/json"}
    async with connect(talk.url) as connection:
        await connection.send(talk.request("POST", CHAT, headers))
        head = await connection.head(timeout_s=5)
        body = await connection.body(head)
    assert head.status == 413
    assert str(2**40) in body.decode()
    assert str(2**20) in body.decode()


async def test_contract_039_too_large_while_reading_chunks(talk: Talk, hub: Hub) -> None:
    """The chunks do not say how many will come; memory stays flat however many do."""
    headers = {"transfer-encoding": "chunked", "content-type": "application/json"}
    piece = chunked([b" " * 2**18]).removesuffix(b"0\r\n\r\n")
    process = psutil.Process(hub.front.pid)
    before = process.memory_info().rss
    async with connect(talk.url) as connection:
        await connection.send(talk.request("POST", CHAT, headers))
        head_task = asyncio.create_task(connection.head(timeout_s=20))
        try:
            for _ in range(400):
                await connection.send(piece)
        except ConnectionError:
            pass  # the server has closed; what it said before that counts
        head = await head_task
    assert head.status == 413
    assert process.memory_info().rss - before < 32 * 2**20


async def test_contract_039_exactly_the_limit_is_accepted(talk: Talk) -> None:
    body = b'{"model": "none", "messages": [{"role": "user", "content": "hi"}]}'
    assert (await talk.post(CHAT, body.ljust(2**20))).status == 404
    assert (await talk.post(CHAT, body.ljust(2**20 + 1))).status == 413


@pytest.mark.parametrize("path", POSTS)
async def test_contract_040_slashes_and_base_urls(talk: Talk, path: str) -> None:
    """With and without a slash at the end, with and without `/v1`: never a redirect."""
    for form in (path, f"{path}/", path.removeprefix("/v1"), path.removeprefix("/v1") + "/"):
        assert (await talk.post(form, POSTS[path])).status == 200, form


async def test_contract_040_models_with_a_slash(talk: Talk) -> None:
    plain, slashed = await talk.get("/v1/models"), await talk.get("/v1/models/")
    assert plain.status == slashed.status == 200
    assert [card["id"] for card in plain.json["data"]] == [card["id"] for card in slashed.json["data"]]


async def test_contract_041_cors_for_the_console_only(talk: Talk) -> None:
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    ours = await talk.ask("OPTIONS", CHAT, {"origin": "https://console.example", **preflight})
    assert ours.status == 200
    assert ours.head["access-control-allow-origin"] == "https://console.example"
    other = await talk.ask("OPTIONS", CHAT, {"origin": "https://evil.example", **preflight})
    assert other.head["access-control-allow-origin"] is None
    actual = await talk.get("/v1/models", origin="https://console.example")
    assert actual.head["access-control-allow-origin"] == "https://console.example"
    assert (await talk.get("/v1/models", origin="https://evil.example")).head[
        "access-control-allow-origin"
    ] is None


async def test_contract_078_quick_refusals(talk: Talk) -> None:
    """Under 5 ms each: the best of several, because this machine has other things to do."""
    for method, path in (("HEAD", "/livez"), ("OPTIONS", CHAT), ("GET", "/nothing"), ("GET", "/livez")):
        times_ms = []
        async with connect(talk.url) as connection:
            for _ in range(15):
                begin = time.perf_counter()
                await connection.send(talk.request(method, path))
                head = await connection.head()
                times_ms.append(1000 * (time.perf_counter() - begin))
                if method != "HEAD":
                    await connection.body(head)
        assert min(times_ms) < 5, (method, path, times_ms)


async def test_contract_078_health_needs_no_key_and_calls_no_model(hub: Hub) -> None:
    before = hub.metric("inferhub_requests_total")
    for path in ("/livez", "/readyz", "/healthz", "/version", "/readyz?verbose"):
        answer = await exchange(hub.url, request_bytes("GET", path))
        assert answer.status == 200, path
    state = hub.get("/readyz?verbose")
    assert state["ready"] is True
    assert state["models"]["smollm2-135m"] == 1
    assert hub.metric("inferhub_requests_total") == before
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await exchange(hub.ops_url, request_bytes("GET", path))).status == 200, path


LONG = "x" * 40_000


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (f"GET /livez HTTP/1.1\r\nhost: a\r\nx-long: {LONG}\r\n\r\n", 431),
        (f"GET /livez HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {LONG}\r\n\r\n", 431),
        ("GET /livez HTTP/1.1\r\nhost: a\r\n" + "".join(f"x-{i}: 1\r\n" for i in range(150)) + "\r\n", 431),
        (f"GET /{'y' * 9000} HTTP/1.1\r\nhost: a\r\n\r\n", 414),
        (f"GET /livez?{'y' * 9000} HTTP/1.1\r\nhost: a\r\n\r\n", 414),
        (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
            400,
        ),
        (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n"
            "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("GET /livez HTTP/1.1\r\nhost: a\r\nx-folded: a\r\n b\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost: a\r\nx-bad: a\rb\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost: a\r\nx bad: a\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
        ("POST /livez HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        ("NONSENSE\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01", 400),
    ],
    ids=lambda value: str(value)[:60].encode("unicode_escape").decode() if isinstance(value, str) else "",
)
async def test_contract_079_bad_heads_are_refused_and_closed(
    talk: Talk, request_text: str, status: int
) -> None:
    async with connect(talk.url) as connection:
        await connection.send(request_text.encode("latin-1"))
        head = await connection.head(timeout_s=10)
        assert head.status == status
        assert b'"error"' in await connection.body(head)
        assert await connection.is_closed(timeout_s=10)


async def test_contract_079_a_head_without_end_is_cut_off(talk: Talk) -> None:
    """Bounded in bytes, not only in time."""
    async with connect(talk.url) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\nhost: a\r\nx-endless: ")
        sent = 0
        try:
            while sent < 8 * 2**20:
                await connection.send(b"y" * 2**16)
                sent += 2**16
        except ConnectionError:
            pass
        assert sent < 8 * 2**20


async def test_contract_079_slow_heads_and_bodies_are_cut_off(tight: Talk) -> None:
    async with connect(tight.url) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\nhost: a\r\n")
        assert (await connection.head(timeout_s=10)).status == 408
    headers = {"content-length": "100", "content-type": "application/json"}
    async with connect(tight.url) as connection:
        await connection.send(tight.request("POST", CHAT, headers))
        await connection.send(b"{")
        head = await connection.head(timeout_s=10)
        assert head.status in (400, 408)


async def test_contract_080_a_slow_reader_pauses_the_upstream_and_is_dropped(
    tight: Talk, tight_hub: Hub
) -> None:
    """A client that never reads costs a bounded amount of memory, and only for a while."""
    process = psutil.Process(tight_hub.front.pid)
    before = process.memory_info().rss
    body = chat_body("remote", stream=True, user="script:n=2000000")
    async with connect(tight.url) as connection:
        connection.pause_reading()
        await connection.send(tight.request("POST", CHAT, body=body))
        await asyncio.to_thread(
            wait_for, lambda: tight_hub.metric("inferhub_requests_inflight") == 1, 5, "the call to begin"
        )
        await asyncio.to_thread(
            wait_for,
            lambda: tight_hub.metric("inferhub_requests_inflight") == 0,
            15,
            "the call to be given up",
        )
        grown = process.memory_info().rss - before
    assert grown < 32 * 2**20, f"{grown / 2**20:.1f} MiB"
