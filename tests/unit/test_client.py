"""The typed client against a real server, and against upstreams that misbehave."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from inferhub.client import ChatChunk, Client, Timeouts, base_address
from inferhub.client.session import encode
from inferhub.core import errors
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatRequest, FunctionSpec, Message, TextPart, Tool
from inferhub.modalities.completion import CompletionRequest
from inferhub.modalities.embedding import EmbeddingRequest
from inferhub.testing.servers import Hub, Process, environment, running_hub

SPEC = """\
models:
  - {name: echo, backend: echo}
  - {name: "lab/echo:v1@2", backend: echo}
  - {name: slow, backend: echo, options: {gap_s: 0.05}}
  - {name: breaks-late, backend: echo, options: {fail_every: 1, fail_at: 2}}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub("serve", tmp_path_factory.mktemp("client"), SPEC) as running:
        yield running


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[Client]:
    async with Client(hub.url, hub.admin_key) as opened:
        yield opened


def said(text: str, model: str = "echo", **more: Any) -> ChatRequest:
    return ChatRequest(model=model, messages=[Message(role="user", content=text)], **more)


async def test_chat(client: Client) -> None:
    answer = await client.chat(said("one two"))
    assert answer.choices[0].message.content == "one two"
    assert answer.usage.completion_tokens == 2


async def test_stream_chat(client: Client) -> None:
    async with client.stream_chat(said("one two three")) as stream:
        chunks = [chunk async for chunk in stream]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == "one two three"
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


async def test_complete(client: Client) -> None:
    request = CompletionRequest(model="echo", prompt="one two")
    assert (await client.complete(request)).choices[0].text == "one two"
    async with client.stream_complete(request) as stream:
        texts = [choice.text async for chunk in stream for choice in chunk.choices]
    assert "".join(texts) == "one two"


async def test_embed(client: Client) -> None:
    answer = await client.embed(EmbeddingRequest(model="echo", input=["a", "b"], encoding_format="float"))
    assert [item.index for item in answer.data] == [0, 1]
    assert all(len(item.embedding) == 8 for item in answer.data)


async def test_models_and_a_name_that_needs_quoting(client: Client) -> None:
    cards = {card.id: card for card in await client.models()}
    assert {"echo", "lab/echo:v1@2"} <= set(cards)
    assert set(cards["echo"].modalities) == set(modalities())
    assert (await client.model("lab/echo:v1@2")).id == "lab/echo:v1@2"


async def test_platform(client: Client, hub: Hub) -> None:
    assert (await client.ready())["ready"] is True
    assert (await client.version()).count(".") == 2
    assert any(model["name"] == "echo" for worker in await client.workers() for model in worker["models"])


async def test_put_spec_guards_the_revision(client: Client) -> None:
    before = await client.spec()
    after = await client.put_spec(
        SPEC + "routes: [{name: alias, model: echo}]\n", if_revision=before.revision
    )
    assert after.revision is not None
    with pytest.raises(errors.Conflict):
        await client.put_spec(SPEC, if_revision=after.revision - 1)
    assert (await client.spec()).revision == after.revision
    with pytest.raises(errors.SetupError, match="nonsense"):
        await client.put_spec("models: [{name: x, backend: nonsense}]")
    assert "alias" in (await client.spec()).text


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("ekho", errors.ModelNotFound, "model_not_found"),
        ("breaks-late", errors.UpstreamFailed, "upstream_error"),
    ],
)
async def test_refusals_are_the_errors_the_server_raised(
    client: Client, model: str, kind: type[errors.InferHubError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        await client.chat(said("one two three", model))
    assert caught.value.wire_code == code


async def test_a_finer_code_keeps_its_status_class(client: Client) -> None:
    with pytest.raises(errors.Invalid) as caught:
        await client.chat(ChatRequest(model="echo", messages=[]))
    assert caught.value.wire_code == "empty_array"
    assert caught.value.param == "messages"


async def test_an_error_inside_a_stream_is_raised_after_what_came_before(client: Client) -> None:
    seen: list[ChatChunk] = []
    with pytest.raises(errors.UpstreamFailed, match="on purpose"):
        await collect(client, said("one two three four", "breaks-late"), seen)
    assert text_of(seen) == "one two"


async def collect(client: Client, request: ChatRequest, into: list[ChatChunk]) -> None:
    async with client.stream_chat(request) as stream:
        async for chunk in stream:
            into.append(chunk)  # noqa: PERF401 - what came before an error counts


def text_of(chunks: list[ChatChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def test_leaving_a_stream_frees_the_slot(client: Client) -> None:
    async with client.stream_chat(said("word " * 1000, "slow")) as stream:
        await anext(stream)
        await until_running(client, "slow", 1)
    await until_running(client, "slow", 0)


async def until_running(client: Client, model: str, count: int) -> None:
    """The gateway asks its workers twice a second; a whole answer of this test would take 50 s."""
    async with asyncio.timeout(20):
        while True:
            models = [m for worker in await client.workers() for m in worker["models"]]
            if sum(m["running"] for m in models if m["name"] == model) == count:
                return
            await asyncio.sleep(0.05)


async def test_the_callers_own_exceptions_pass_unchanged(client: Client) -> None:
    async def stop_with(own: Exception) -> None:
        async with client.stream_chat(said("one two")) as stream:
            await anext(stream)
            raise own

    for own in (ValueError("mine"), TimeoutError("mine")):
        with pytest.raises(type(own), match="mine"):
            await stop_with(own)


async def test_wrong_keys(hub: Hub) -> None:
    for key in (None, "ih_wrong", "sk-of-somebody-else"):
        async with Client(hub.url, key) as stranger:
            with pytest.raises(errors.Unauthenticated):
                await stranger.models()
    with pytest.raises(errors.Unauthenticated) as caught:
        Client(hub.url, "ih_secret\r\nX-Evil: 1")
    assert "secret" not in str(caught.value)


def test_the_key_is_not_shown() -> None:
    assert "ih_secret" not in repr(Client("http://localhost", "ih_secret"))


async def test_nobody_there() -> None:
    async with Client("http://127.0.0.1:9", timeouts=Timeouts(connect_s=5)) as client:
        with pytest.raises(errors.ServerUnreachable, match=r"http://127\.0\.0\.1:9"):
            await client.version()


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://h/base/v1", "https://h/base"),
        ("h:8000", "http://h:8000"),
        ("http://[::1]:80/v1", "http://[::1]:80"),
    ],
)
def test_base_address(given: str, address: str) -> None:
    assert base_address(given) == address


@pytest.mark.parametrize(
    "given", ["", "ftp://h", "http://", "http://user:pw@h", "http://h?x=1", "h:99999", "not an address"]
)
def test_base_address_refuses(given: str) -> None:
    with pytest.raises(errors.Invalid):
        base_address(given)


def test_requests_lose_their_unset_fields_and_nothing_else() -> None:
    schema = {"type": "object", "properties": {"a": {"default": None}}}
    request = ChatRequest(
        model="m",
        messages=[Message(role="user", content=[TextPart(text="t")])],
        tools=[Tool(type="function", function=FunctionSpec(name="f", parameters=schema))],
        stream=True,
    )
    body = msgspec.json.decode(encode(request, stream=False))
    assert set(body) == {"model", "messages", "tools"}
    assert body["messages"][0]["content"][0] == {"type": "text", "text": "t"}
    assert body["tools"][0]["function"]["parameters"] == schema
    assert msgspec.json.decode(encode(request, stream=True), type=ChatRequest) == request


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The scripted upstream, asked without an InferHub before it."""
    arguments = [sys.executable, "-m", "inferhub.testing.upstream", "--port", "0", "--until-eof"]
    with Process(arguments, tmp_path_factory.mktemp("upstream"), "upstream", environment({})) as process:
        yield process.announcement()["url"]


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("mode=rst", errors.EndpointLost),
        ("mode=rst,fail_at=3", errors.EndpointLost),
        ("mode=noterm", errors.EndpointLost),
        ("mode=noterm,fail_at=2", errors.EndpointLost),
        ("mode=garbage,fail_at=1", errors.UpstreamFailed),
        ("mode=html", errors.UpstreamFailed),
        ("mode=429,retry_after_s=7", errors.UpstreamRateLimited),
        ("mode=hang,fail_at=2", errors.DeadlineExceeded),
    ],
)
async def test_a_stream_from_a_server_that_misbehaves(
    upstream: str, script: str, kind: type[errors.InferHubError]
) -> None:
    async with Client(upstream, timeouts=Timeouts(silence_s=1)) as client:
        seen: list[ChatChunk] = []
        with pytest.raises(kind) as caught:
            await collect(client, said("hello", "scripted", user=f"script:{script}"), seen)
    assert caught.value.retry_after_s == (7 if "retry_after" in script else None)
    assert bool(seen) == ("fail_at" in script or script == "mode=noterm")


@pytest.mark.parametrize("script", ["split=1", "split=3,odd=1", "echo=1,split=1", "gap_ms=1,n=200"])
async def test_unusual_framing_is_read(upstream: str, script: str) -> None:
    text = "zwölf 👩‍👩‍👧 é"
    async with Client(upstream) as client:
        seen: list[ChatChunk] = []
        await collect(client, said(text, "scripted", user=f"script:{script}"), seen)
    if "echo" in script:
        assert text_of(seen) == text
    assert [c.finish_reason for chunk in seen for c in chunk.choices if c.finish_reason] == ["stop"]
