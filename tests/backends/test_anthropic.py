"""The Anthropic backend against the strict scripted upstream, a real process that really misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from inferhub.backends import backend_class
from inferhub.backends.base import Backend, check_options
from inferhub.core.call import Call, Delta, Finished, Native
from inferhub.core.errors import (
    BackendRefused,
    ContextOverflow,
    EndpointStalled,
    InferHubError,
    Overloaded,
    SetupError,
    Unsupported,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.testing.calls import make_call
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import PROMPT_TOKENS

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-ant-canary-0123456789"
WORDS = "".join(f"word{i} " for i in range(8))
COUNTED = Usage(input_tokens=PROMPT_TOKENS, output_tokens=8, cached_tokens=3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(strict=True) as running:
        yield running
        assert await running.violations() == []


def spec(url: str, **options: Any) -> ModelSpec:
    keys = {} if {"api_keys", "api_key_file"} & options.keys() else {"api_key": KEY}
    return ModelSpec("claude", "anthropic", options={"base_url": url, **keys, **options})


@asynccontextmanager
async def loaded(upstream: Upstream, **options: Any) -> AsyncIterator[Backend]:
    backend = backend_class("anthropic")(spec(upstream.url, **options), None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


@pytest_asyncio.fixture(loop_scope="module")
async def backend(upstream: Upstream) -> AsyncIterator[Backend]:
    async with loaded(upstream) as found:
        yield found


def call(script: str = "", *, stream: bool = True, **params: Any) -> Call:
    user = {"user": f"script:{script}"} if script else {}
    return make_call("chat", stream=stream, **user, **params)


def native(script: str = "", *, stream: bool = True, **params: Any) -> Call:
    """As a client that speaks Messages itself would have sent it."""
    body = {
        "model": "shown",
        "max_tokens": 32,
        "messages": [{"role": "user", "content": "Hi"}],
        "metadata": {"user_id": f"script:{script}"},
        "stream": stream,
        **params,
    }
    return replace(
        call(script, stream=stream), native=Native("anthropic_messages", msgspec.json.encode(body))
    )


async def run(backend: Backend, asked: Call) -> tuple[list[Delta], Finished]:
    chunks = [chunk async for chunk in backend.run(asked)]
    finished = chunks.pop()
    assert isinstance(finished, Finished)
    deltas = [chunk for chunk in chunks if isinstance(chunk, Delta)]
    assert len(deltas) == len(chunks)
    return deltas, finished


def text(deltas: list[Delta]) -> str:
    return "".join(delta.payload.content or "" for delta in deltas)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_read_to_its_end(backend: Backend, stream: bool) -> None:
    deltas, finished = await run(backend, call(stream=stream, messages=[{"role": "user", "content": "Hi"}]))
    assert text(deltas) == WORDS
    assert [delta.payload.finish_reason for delta in deltas if delta.payload.finish_reason] == ["stop"]
    assert finished.usage == COUNTED
    assert all(delta.raw is None for delta in deltas)
    assert finished.raw is None


@pytest.mark.parametrize("script", ["split=1", "split=3", "odd=1", "split=7,odd=1", "echo=1,split=1"])
async def test_however_the_network_cuts_it(backend: Backend, script: str) -> None:
    said = "né👩‍👩‍👧 \u0301"
    turns = [{"role": "user", "content": said}]
    deltas, _ = await run(backend, call(script, messages=turns))
    assert text(deltas) == (said if "echo" in script else WORDS)
    assert "\ufffd" not in text(deltas)


@pytest.mark.parametrize("script", ["n=3", "think=2,n=2", "tools=2", "split=2,n=2", "odd=1,n=1"])
async def test_events_pass_through_as_they_came(backend: Backend, script: str) -> None:
    deltas, finished = await run(backend, native(script))
    raw = b"".join(delta.raw or b"" for delta in deltas) + (finished.raw or b"")
    events = [event.split(b"\n") for event in raw.removesuffix(b"\n\n").split(b"\n\n")]
    names = [name.removeprefix(b"event: ").decode() for name, _ in events]
    assert [msgspec.json.decode(data.removeprefix(b"data: "))["type"] for _, data in events] == names
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    same, end = await run(backend, call(script))
    assert [delta.payload for delta in deltas] == [delta.payload for delta in same]
    assert finished.usage == end.usage


async def test_a_whole_answer_passes_through(backend: Backend) -> None:
    deltas, finished = await run(backend, native("n=2", stream=False))
    assert msgspec.json.decode(finished.raw or b"")["id"] == "msg_up1"
    assert text(deltas) == "word0 word1 "


async def test_a_request_passes_through_but_for_its_model(backend: Backend, upstream: Upstream) -> None:
    asked = native("n=1")
    raw = b'{"max_tokens":1e1,"model":"shown","stream":true,"messages":[{"role":"user","content":"\\u00e9"}]}'
    await run(backend, replace(asked, native=Native("anthropic_messages", raw)))
    record = await upstream.wait_for(asked.key)
    assert record.body == raw.decode().replace("shown", "claude")
    assert record.headers["x-api-key"] == KEY
    assert record.headers["anthropic-version"] == "2023-06-01"


async def test_other_dialects_do_not_pass_through(backend: Backend) -> None:
    asked = replace(call("n=1"), native=Native("openai_responses", b"{}"))
    deltas, finished = await run(backend, asked)
    assert finished.raw is None
    assert all(delta.raw is None for delta in deltas)


async def test_tokens_are_counted_by_the_upstream(backend: Backend, upstream: Upstream) -> None:
    asked = make_call("token_count", messages=[{"role": "user", "content": "Hi"}], max_tokens=5)
    deltas, _ = await run(backend, asked)
    assert deltas[0].payload.input_tokens == PROMPT_TOKENS
    record = await upstream.wait_for(asked.key)
    assert record.path == "/v1/messages/count_tokens"
    assert "max_tokens" not in json.loads(record.body)


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("mode=400", BackendRefused),
        ("mode=400,code=context_length_exceeded", ContextOverflow),
        ("mode=401", UpstreamDenied),
        ("mode=402", UpstreamExhausted),
        ("mode=403", UpstreamDenied),
        ("mode=404", BackendRefused),
        ("mode=413", BackendRefused),
        ("mode=429,retry_after_s=7", UpstreamRateLimited),
        ("mode=500", UpstreamFailed),
        ("mode=529", Overloaded),
        ("mode=503", Overloaded),
        ("mode=302", UpstreamFailed),
        ("mode=html", UpstreamFailed),
        ("mode=empty", UpstreamFailed),
        ("mode=drop", UpstreamFailed),
        ("mode=garbage,fail_at=2", UpstreamFailed),
        ("mode=half_json,fail_at=2", UpstreamFailed),
        ("mode=cut,fail_at=2", UpstreamFailed),
        ("mode=clean_cut,fail_at=2", UpstreamFailed),
        ("mode=noterm", UpstreamFailed),
        ("mode=noterm,fail_at=3", UpstreamFailed),
        ("mode=rst,fail_at=2", UpstreamFailed),
        ("mode=error,fail_at=2", UpstreamFailed),
    ],
)
async def test_a_failure_is_never_a_clean_end(
    backend: Backend, script: str, kind: type[InferHubError], stream: bool, is_native: bool
) -> None:
    make = native if is_native else call
    with pytest.raises(kind) as error:
        await run(backend, make(f"{script},leak=1", stream=stream))
    assert type(error.value) is kind
    assert KEY not in error.value.message
    assert "<html" not in error.value.message
    if "retry_after_s" in script:
        assert error.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("code", "kind"),
    [("overloaded_error", Overloaded), ("rate_limit_error", UpstreamRateLimited), ("", UpstreamFailed)],
)
async def test_an_error_event_means_what_its_type_says(
    backend: Backend, code: str, kind: type[InferHubError]
) -> None:
    seen: list[Delta] = []

    async def read() -> None:
        async for chunk in backend.run(call(f"mode=error,fail_at=2,code={code}")):
            assert isinstance(chunk, Delta)
            seen.append(chunk)

    with pytest.raises(kind):
        await read()
    assert text(seen) == "word0 word1 "


async def test_silence_ends_in_time(upstream: Upstream) -> None:
    async with loaded(upstream, headers_timeout_s=0.2, answer_timeout_s=0.2) as impatient:
        for stream in (True, False):
            with pytest.raises(EndpointStalled):
                await run(impatient, call("hdr_ms=60000", stream=stream))


@pytest.mark.parametrize("is_native", [False, True])
async def test_leaving_tells_the_upstream_at_once(
    backend: Backend, upstream: Upstream, is_native: bool
) -> None:
    asked = (native if is_native else call)("n=100000,gap_ms=5")
    async with aclosing(backend.run(asked)) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
    assert (await upstream.wait_for(asked.key, lambda r: r.abort_s)).abort_s


async def test_cancelling_while_nothing_came_tells_the_upstream(backend: Backend, upstream: Upstream) -> None:
    asked = call("hdr_ms=60000")
    task = asyncio.create_task(run(backend, asked))
    await upstream.wait_for(asked.key)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await upstream.wait_for(asked.key, lambda r: r.abort_s)).abort_s


async def test_thoughts_and_signatures_are_kept_apart(backend: Backend) -> None:
    deltas, _ = await run(backend, call("think=2,n=1,reasoning=1"))
    details = [detail for delta in deltas for detail in delta.payload.reasoning_details or ()]
    assert "".join(detail.text or "" for detail in details) == "thought0 thought1 "
    assert [detail.signature for detail in details if detail.signature] == ["c2lnbmVk"]
    assert text(deltas) == "word0 "


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("length", "length"),
        ("model_context_window_exceeded", "length"),
        ("stop_sequence", "stop"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("something_new", "stop"),
    ],
)
async def test_every_reason_to_stop_has_a_name_in_chat(backend: Backend, reason: str, finish: str) -> None:
    deltas, _ = await run(backend, call(f"finish={reason}", stop="END"))
    last = deltas[-1].payload
    assert last.finish_reason == finish
    assert last.stop_sequence == ("END" if reason == "stop_sequence" else None)


async def test_an_answer_goes_on_from_a_given_text(upstream: Upstream) -> None:
    """Without the white space at its end, which Anthropic refuses and the model may say again."""
    async with loaded(upstream, prefill=True) as backend:
        [chat, _] = backend.capabilities
        assert "prefill" in chat.features
        turns = [{"role": "user", "content": " \nand so on"}]
        asked = replace(call("echo=1", messages=turns), resume="It begins \n")
        deltas, _ = await run(backend, asked)
        sent = json.loads((await upstream.wait_for(asked.key)).body)
        assert sent["messages"][-1] == {"role": "assistant", "content": "It begins"}
        assert text(deltas) == "and so on"


async def test_a_refused_key_makes_room_for_the_next(upstream: Upstream, tmp_path: Path) -> None:
    async with loaded(upstream, api_keys=["sk-ant-first-00001", {"key": "sk-ant-second-0002"}]) as backend:
        asked = call("mode=429,times=1;keys")
        deltas, _ = await run(backend, asked)
        assert text(deltas) == WORDS
        keys = [record.headers["x-api-key"] for record in await upstream.records(asked.key)]
        assert sorted(keys) == ["sk-ant-first-00001", "sk-ant-second-0002"]
    file = tmp_path / "keys"
    file.write_text("sk-ant-from-a-file\n")
    async with loaded(upstream, api_key_file=str(file)) as backend:
        asked = call("n=1")
        await run(backend, asked)
        assert (await upstream.wait_for(asked.key)).headers["x-api-key"] == "sk-ant-from-a-file"


async def test_betas_are_the_operators(upstream: Upstream) -> None:
    async with loaded(upstream, betas=("a-2026-01-01", "b-2026-01-01")) as backend:
        asked = call("n=1")
        await run(backend, asked)
        assert (await upstream.wait_for(asked.key)).headers["anthropic-beta"] == "a-2026-01-01,b-2026-01-01"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": 1.2}, "temperature"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
    ],
)
async def test_what_anthropic_lacks_is_refused_by_name(
    backend: Backend, params: dict[str, Any], param: str
) -> None:
    with pytest.raises(Unsupported) as error:
        await run(backend, call(**params))
    assert error.value.param == param


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "ftp://x"},
        {"base_url": "https://user:pass@x"},
        {"api_key": ""},
        {"api_key": "a", "api_keys": ["b"]},
        {"betas": ["a,b"]},
        {"anthropic_version": "new"},
        {"max_tokens": 0},
        {"unknown": 1},
    ],
)
async def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    given = {"api_key": KEY, **options}
    with pytest.raises(SetupError) as error:
        check_options(backend_class("anthropic"), ModelSpec("claude", "anthropic", options=given))
    assert KEY not in error.value.message


async def test_the_key_comes_from_the_environment_where_none_is_given() -> None:
    kind = backend_class("anthropic")
    assert kind.default_options(ModelSpec("m", "anthropic")) == {"api_key": "${ANTHROPIC_API_KEY}"}
    assert not kind.default_options(ModelSpec("m", "anthropic", options={"api_key_file": "f"}))
