"""What each kind of upstream is sent, and which of the operator's keys it is sent with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferhub.backends.base import Backend
from inferhub.backends.openai_compatible import OpenAICompatible
from inferhub.core.call import Call, Delta, Finished, Native
from inferhub.core.errors import (
    ContentFiltered,
    ContextOverflow,
    EndpointStalled,
    InferHubError,
    Unsupported,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import Endpoint
from inferhub.pipeline.dispatch import fit
from inferhub.testing.calls import make_call

CHAT = b'{"id":"up-1","choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
A, B, C = "sk-aaaaaaaaaaaaaa-0001", "sk-bbbbbbbbbbbbbb-0002", "sk-cccccccccccccc-0003"


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass
class Server:
    """Answers by a function of the request, and remembers what it was sent."""

    url: str = ""
    seen: list[Request] = field(default_factory=list)


Answer = tuple[int, bytes, str]


@asynccontextmanager
async def serving(answer: Callable[[Request], Answer | bytes]) -> AsyncIterator[Server]:
    state = Server()
    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                body = await reader.readexactly(int(headers["content-length"]))
                request = Request(lines[0].split()[1], headers, msgspec.json.decode(body))
                state.seen.append(request)
                told = answer(request)
                status, content, more = (200, told, "") if isinstance(told, bytes) else told
                reply = f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n{more}\r\n".encode()
                writer.write(reply + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield state
    # The clients have closed their connections by now.
    await asyncio.gather(*(handler for handler in handlers if handler is not None))


@asynccontextmanager
async def loaded(**options: Any) -> AsyncIterator[Backend]:
    backend = OpenAICompatible(ModelSpec("m", "openai_compatible", options=options), None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


async def answer(backend: Backend, call: Call) -> list[Any]:
    return [item async for item in backend.run(call)]


async def failure(backend: Backend, call: Call) -> InferHubError:
    with pytest.raises(InferHubError) as caught:
        await answer(backend, call)
    return caught.value


async def sent_to(vendor: str | None, call: Call, reply: bytes = CHAT, **options: Any) -> Request:
    async with serving(lambda _: reply) as server:
        options = {"base_url": f"{server.url}/v1", **options}
        if vendor is not None:
            options |= {"vendor": vendor}
        async with loaded(**options) as backend:
            await answer(backend, call)
        return server.seen[-1]


# --- parameters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "given", "expected"),
    [
        ("openai", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("openai", {"max_tokens": 5, "max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ("mistral", {"max_completion_tokens": 7}, {"max_tokens": 7}),
        ("mistral", {"max_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}),
        # Nobody knows which one a server without a row obeys, so both say what the newer one says.
        (None, {"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7, "max_completion_tokens": 7}),
        (None, {"max_tokens": 5}, {"max_tokens": 5}),
        (None, {"max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ("mistral", {"seed": 3, "user": "u"}, {"random_seed": 3}),
        ("vllm", {"seed": 3, "user": "u"}, {"seed": 3, "user": "u"}),
    ],
)
async def test_contract_033_parameters_get_the_names_that_the_vendor_reads(
    vendor: str | None, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    request = await sent_to(vendor, make_call("chat", **given))
    del request.body["model"], request.body["messages"]
    assert request.body == expected


SSE = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def test_stream_options_are_kept_and_only_sent_to_who_understands_them() -> None:
    call = make_call(
        "chat", stream=True, stream_options={"include_usage": False, "include_obfuscation": False}
    )
    assert (await sent_to("openai", call, SSE)).body["stream_options"] == {
        "include_usage": True,
        "include_obfuscation": False,
    }
    request = await sent_to("mistral", call, SSE)
    assert request.body["stream"] is True
    assert "stream_options" not in request.body


async def test_fields_of_translated_messages_go_only_to_who_reads_them() -> None:
    cached = {"type": "ephemeral"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": cached}], "cache_control": cached},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": {"a": 1}}]},
        {"role": "tool", "tool_call_id": "x", "content": "c", "is_error": True},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f"}, "cache_control": cached}]
    own = make_call("chat", messages=messages, tools=tools)
    translated = replace(own, native=Native("anthropic_messages", b"{}"))
    assert (await sent_to("openai", own)).body["messages"] == messages
    sent = (await sent_to("openai", translated)).body
    assert sent["messages"][0] == {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert set(sent["messages"][1]) == {"role", "content", "tool_calls"}
    assert "extra_content" not in sent["messages"][1]["tool_calls"][0]
    assert "is_error" not in sent["messages"][2]
    assert sent["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert (await sent_to("vllm", translated)).body["messages"][1]["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    ("vendor", "params", "param"),
    [
        ("groq", {"logprobs": True}, "logprobs"),
        ("groq", {"n": 2}, "n"),
        ("mistral", {"logit_bias": {"1": 1}}, "logit_bias"),
        (
            "deepseek",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format",
        ),
        ("lmstudio", {"response_format": {"type": "json_object"}}, "response_format"),
        ("openai", {"top_k": 3}, "top_k"),
        ("ollama", {"logit_bias": {"1": 1}}, "logit_bias"),
    ],
)
async def test_contract_034_what_a_vendor_does_not_have_is_refused_by_name(
    vendor: str, params: dict[str, Any], param: str
) -> None:
    call = make_call("chat", **params)
    async with loaded(vendor=vendor, api_key="k") as backend:
        status = ModelStatus(backend.spec, backend.capabilities, "remote")
        endpoint = Endpoint("e", status, lambda *_: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(Unsupported) as caught:
            fit(call, "m", endpoint)
        assert caught.value.param == param
        fit(make_call("chat"), "m", endpoint)


async def test_who_may_fetch_pictures_and_who_can_continue_a_text_says_so() -> None:
    for vendor, urls, prefill in (("openai", True, False), ("vllm", False, True), ("mistral", True, True)):
        async with loaded(vendor=vendor, api_key="k") as backend:
            features = next(c.features for c in backend.capabilities if c.modality == "chat")
        assert ("remote_urls" in features, "prefill" in features) == (urls, prefill)


@pytest.mark.parametrize(
    ("vendor", "last", "more"),
    [
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("mistral", {"prefix": True}, {}),
        ("llamacpp_server", {}, {}),
    ],
)
async def test_an_answer_is_continued_in_the_vendors_way(
    vendor: str, last: dict[str, Any], more: dict[str, Any]
) -> None:
    call = replace(make_call("chat"), resume="So far")
    request = await sent_to(vendor, call)
    messages = request.body.pop("messages")
    assert messages[-1] == {"role": "assistant", "content": "So far", **last}
    assert len(messages) == len(call.request.messages) + 1
    del request.body["model"]
    assert request.body == more
    begun = make_call(
        "chat", messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "Oh. "}]
    )
    request = await sent_to(vendor, replace(begun, resume="So far"))
    assert request.body["messages"][1]["content"] == "Oh. So far"


async def test_a_text_is_continued_by_its_prompt() -> None:
    reply = b'{"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}'
    request = await sent_to(None, replace(make_call("completion", prompt="Once"), resume=" upon"), reply)
    assert request.body["prompt"] == "Once upon"


async def test_azure_gets_its_path_its_version_and_its_header() -> None:
    async with serving(lambda _: CHAT) as server:
        options = {"vendor": "azure", "api_key": "azure-key", "upstream_model": "my gpt"}
        async with loaded(base_url=server.url, **options) as backend:
            await answer(backend, make_call("chat"))
        async with loaded(base_url=f"{server.url}/openai/v1", **options) as backend:
            await answer(backend, make_call("chat"))
    older, newer = server.seen
    assert older.path == "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"
    assert newer.path == "/openai/v1/chat/completions"
    for request in server.seen:
        assert request.headers["api-key"] == "azure-key"
        assert "authorization" not in request.headers


# --- other modalities ----------------------------------------------------------------------------------

VERDICT = b'{"id":"modr-1","model":"up","results":[{"flagged":true,"categories":{"hate":true},"category_scores":{"hate":0.9}}]}'


async def test_a_moderation_comes_through_and_mistrals_gets_its_verdict() -> None:
    call = make_call("moderation")
    async with (
        serving(lambda _: VERDICT) as server,
        loaded(base_url=server.url, modalities=["moderation"]) as backend,
    ):
        items = await answer(backend, call)
    assert server.seen[0].path == "/v1/moderations"
    assert items[0].payload.flagged
    assert items[-1].raw == VERDICT
    assert items[-1].usage.source == "estimated"
    bare = VERDICT.replace(b'"flagged":true,', b"")
    async with (
        serving(lambda _: bare) as server,
        loaded(base_url=server.url, modalities=["moderation"]) as backend,
    ):
        items = await answer(backend, call)
    assert (items[0].payload.flagged, items[-1].raw) == (True, None)


RANKING = b'{"id":"r","results":[{"index":1,"relevance_score":0.9},{"index":0,"relevance_score":0.1}],"usage":{"total_tokens":9}}'


async def test_a_ranking_comes_through_unless_the_client_wants_what_it_has_not() -> None:
    async with (
        serving(lambda _: RANKING) as server,
        loaded(base_url=server.url, modalities=["rerank"]) as backend,
    ):
        items = await answer(backend, make_call("rerank"))
        objects = make_call(
            "rerank", documents=[{"text": "a", "id": 1}, {"text": "b"}], return_documents=True
        )
        anew = await answer(backend, objects)
    assert [item.payload.index for item in items[:-1]] == [1, 0]
    assert items[-1].raw == RANKING
    assert items[-1].usage.input_tokens == 9
    assert anew[-1].raw is None
    assert server.seen[0].path == "/v1/rerank"
    assert server.seen[1].body["documents"] == ["a", "b"]


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>",
        b"[]",
        b'{"error":{"message":"m"}}',
        b'{"results":[]}',
        RANKING.replace(b'"index":1', b'"index":0'),
        RANKING.replace(b'"index":1', b'"index":7'),
        RANKING.replace(b'"index":1', b'"index":-1'),
    ],
)
async def test_rankings_and_verdicts_that_do_not_fit_are_failures(reply: bytes) -> None:
    async with (
        serving(lambda _: reply) as server,
        loaded(base_url=server.url, modalities=["rerank", "moderation"]) as backend,
    ):
        assert type(await failure(backend, make_call("rerank"))) is UpstreamFailed
        assert type(await failure(backend, make_call("moderation", input=["a", "b", "c"]))) is UpstreamFailed


async def test_tokens_are_counted_by_vllm_itself_and_estimated_for_others() -> None:
    async with serving(lambda _: b'{"count":17,"tokens":[1]}') as server:
        async with loaded(vendor="vllm", base_url=server.url) as backend:
            counted = await answer(backend, make_call("token_count"))
        async with loaded(base_url=server.url) as backend:
            estimated = await answer(backend, make_call("token_count"))
    assert counted[0].payload.input_tokens == 17
    assert estimated[0].payload.input_tokens > 0
    (request,) = server.seen
    assert request.path == "/tokenize"
    assert request.body["add_generation_prompt"] is True


# --- Responses -----------------------------------------------------------------------------------------

_DONE = b'{"type":"response.completed","response":{"id":"resp_1","status":"completed","output":[],"usage":{"input_tokens":3,"output_tokens":2}}}'
EVENTS = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"},"n":1.0}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a\\u00e9"}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"b"}\n\n',
    b"event: response.completed\ndata: " + _DONE + b"\n\n",
)
NATIVE = Native("openai_responses", b'{"model":"m","input":"x",  "odd":1.0,"api_key":"theirs"}')


@pytest.mark.parametrize("vendor", ["openai", None])
async def test_responses_go_natively_where_the_upstream_answers_them(vendor: str | None) -> None:
    call = replace(make_call("chat", stream=True, max_completion_tokens=9), native=NATIVE)
    reply = b"".join(EVENTS) if vendor else SSE
    async with serving(lambda _: reply) as server:
        options = {"vendor": vendor, "api_key": "k"} if vendor else {}
        async with loaded(base_url=server.url, **options) as backend:
            items = await answer(backend, call)
    if vendor is None:
        assert server.seen[0].path == "/v1/chat/completions"
        assert items[-1].raw is None
        return
    assert server.seen[0].path == "/v1/responses"
    assert server.seen[0].body == {
        "model": "m",
        "input": "x",
        "odd": 1.0,
        "stream": True,
        "max_output_tokens": 9,
    }
    assert b"".join(item.raw for item in items) == b"".join(EVENTS)
    assert "".join(item.payload.content or "" for item in items[:-1]) == "aéb"
    assert [item.more for item in items[:-1]] == [True] * (len(items) - 2) + [False]
    assert (items[-1].usage.input_tokens, items[-1].usage.output_tokens) == (3, 2)


async def test_a_response_that_is_cut_off_is_no_clean_end() -> None:
    call = replace(make_call("chat", stream=True), native=NATIVE)
    async with (
        serving(lambda _: b"".join(EVENTS[:-1])) as server,
        loaded(base_url=server.url, responses=True) as backend,
    ):
        assert type(await failure(backend, call)) is UpstreamFailed


@pytest.mark.parametrize(
    "last",
    [
        b'event: error\ndata: {"type":"error","code":"server_error","message":"out of luck"}\n\n',
        b"event: response.output_text.delta\ndata: {half\n\n",
        b'event: response.failed\ndata: {"type":"response.failed","response":{"status":"failed"}}\n\n',
    ],
)
async def test_what_came_with_a_failing_event_is_not_lost(last: bytes) -> None:
    call = replace(make_call("chat", stream=True), native=NATIVE)
    async with (
        serving(lambda _: b"".join(EVENTS[:-1]) + last) as server,
        loaded(base_url=server.url, responses=True) as backend,
    ):
        stream = backend.run(call)
        said = [await anext(stream), await anext(stream)]
        with pytest.raises(UpstreamFailed):
            await anext(stream)
    assert b"".join(item.raw or b"" for item in said) == b"".join(EVENTS[:-1])
    assert [item.more for item in said if isinstance(item, Delta)] == [True, False]


async def test_nothing_follows_the_end_of_a_response() -> None:
    call = replace(make_call("chat", stream=True), native=NATIVE)
    async with (
        serving(lambda _: b"".join(EVENTS) + b"data: [DONE]\n\n") as server,
        loaded(base_url=server.url, responses=True) as backend,
    ):
        items = await answer(backend, call)
    assert b"".join(item.raw for item in items) == b"".join(EVENTS)


async def test_a_whole_response_comes_through() -> None:
    whole = b'{"id":"resp_1", "status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"hi"}]}]}'
    async with serving(lambda _: whole) as server, loaded(base_url=server.url, responses=True) as backend:
        items = await answer(backend, replace(make_call("chat"), native=NATIVE))
    assert isinstance(items[-1], Finished)
    assert items[-1].raw == whole


# --- keys ----------------------------------------------------------------------------------------------


def refusing(refusals: dict[str, Answer]) -> Callable[[Request], Answer | bytes]:
    return lambda request: refusals.get(request.key, CHAT)


LIMITED: Answer = (429, b'{"error":{"message":"slow down"}}', "retry-after: 30\r\n")


async def test_a_call_goes_on_with_another_key_and_the_limited_one_rests() -> None:
    async with (
        serving(refusing({A: LIMITED})) as server,
        loaded(base_url=server.url, api_keys=[A, B]) as backend,
    ):
        for _ in range(3):
            await answer(backend, make_call("chat"))
    assert [request.key for request in server.seen] == [A, B, B, B]
    keys = {request.headers["idempotency-key"] for request in server.seen[:2]}
    assert len(keys) == 1


async def test_when_every_key_is_limited_the_caller_is_told_how_long() -> None:
    other: Answer = (429, b"{}", "retry-after: 7\r\n")
    async with (
        serving(refusing({A: LIMITED, B: other})) as server,
        loaded(base_url=server.url, api_keys=[A, B]) as backend,
    ):
        error = await failure(backend, make_call("chat"))
        again = await failure(backend, make_call("chat"))
    for told in (error, again):
        assert type(told) is UpstreamRateLimited
        assert told.retry_after_s == pytest.approx(7, abs=3)
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ((401, b"{}", ""), UpstreamDenied),
        ((429, b'{"error":{"code":"insufficient_quota","message":"m"}}', ""), UpstreamExhausted),
        ((402, b'{"error":{"message":"Insufficient Balance"}}', ""), UpstreamExhausted),
    ],
)
async def test_keys_that_are_refused_for_good_are_left_alone(
    refusal: Answer, kind: type[InferHubError]
) -> None:
    refusals = {A: refusal}
    async with serving(refusing(refusals)) as server, loaded(base_url=server.url, api_keys=[A, B]) as backend:
        for _ in range(2):
            await answer(backend, make_call("chat"))
        assert [request.key for request in server.seen] == [A, B, B]
        refusals[B] = refusal
        assert type(await failure(backend, make_call("chat"))) is kind
        assert type(await failure(backend, make_call("chat"))) is kind
    assert len(server.seen) == 4


async def test_a_403_that_every_key_gets_is_the_requests_own_and_rests_nobody() -> None:
    forbidden: Answer = (403, b"{}", "")
    refusals = {A: forbidden, B: forbidden}
    async with serving(refusing(refusals)) as server, loaded(base_url=server.url, api_keys=[A, B]) as backend:
        assert type(await failure(backend, make_call("chat"))) is UpstreamDenied
        assert len(server.seen) == 2
        refusals.clear()
        await answer(backend, make_call("chat"))
        refusals[A] = forbidden
        for _ in range(3):
            await answer(backend, make_call("chat"))
    assert [request.key for request in server.seen[3:]].count(A) <= 1


async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    begun = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: {"error":{"code":429}}\n\n'
    async with serving(lambda _: begun) as server, loaded(base_url=server.url, api_keys=[A, B]) as backend:
        assert type(await failure(backend, make_call("chat", stream=True))) is UpstreamRateLimited
    assert len(server.seen) == 1


async def test_a_key_is_busy_until_its_answer_was_read_or_given_up() -> None:
    keys = [{"key": A, "max_concurrent": 1}, B]
    async with serving(lambda _: SSE) as server, loaded(base_url=server.url, api_keys=keys) as backend:
        async with aclosing(backend.run(make_call("chat", stream=True))) as chunks:  # type: ignore[type-var]
            await anext(chunks)
            for _ in range(2):
                await answer(backend, make_call("chat", stream=True))
        await answer(backend, make_call("chat", stream=True))
    assert [request.key for request in server.seen] == [A, B, B, A]


async def test_a_rotated_file_is_used_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(A)
    async with (
        serving(refusing({A: (401, b"{}", "")})) as server,
        loaded(base_url=server.url, api_key_file=str(file)) as backend,
    ):
        assert type(await failure(backend, make_call("chat"))) is UpstreamDenied
        file.write_text(f"{C}\n")
        await answer(backend, make_call("chat"))
    # The old one may be tried once more, but no client hears of it.
    assert (server.seen[0].key, server.seen[-1].key) == (A, C)


async def test_no_message_holds_any_of_the_keys() -> None:
    told = msgspec.json.encode({"error": {"message": f"not {A} nor {B}", "code": "x"}})
    async with (
        serving(lambda _: (400, told, "")) as server,
        loaded(base_url=server.url, api_keys=[A, B]) as backend,
    ):
        error = await failure(backend, make_call("chat"))
    assert error.message == "not [redacted] nor [redacted]"


# --- refusals by what they say -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"code": "content_filter", "message": "m"}}, ContentFiltered),
        (400, {"error": {"code": "content_policy_violation", "message": "m"}}, ContentFiltered),
        (403, {"error": {"code": 403, "message": "m", "metadata": {"flagged_input": "x"}}}, ContentFiltered),
        (400, {"object": "error", "message": "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens", "code": 400}, ContextOverflow),
        (400, {"error": {"type": "exceed_context_size_error", "message": "the request exceeds the available context size, try increasing it"}}, ContextOverflow),
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5", "error_type": "validation"}, ContextOverflow),
        (422, {"error": "Input validation error: `inputs` must have less than 1000 tokens. Given: 1001"}, ContextOverflow),
        (400, {"error": {"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"}}, ContextOverflow),
        (400, {"error": {"message": "the input length exceeds the context length"}}, ContextOverflow),
        (400, {"error": {"message": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."}}, ContextOverflow),
    ],
)  # fmt: skip
async def test_refusals_are_known_by_their_code_or_by_what_they_say(
    status: int, body: dict[str, Any], kind: type[InferHubError]
) -> None:
    reply = msgspec.json.encode(body)
    async with serving(lambda _: (status, reply, "")) as server, loaded(base_url=server.url) as backend:
        error = await failure(backend, make_call("chat"))
    assert type(error) is kind
    assert not error.retryable


async def test_what_a_validating_server_complains_about_is_told() -> None:
    detail = {
        "detail": [
            {"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}
        ]
    }
    for body in (detail, {"object": "error", "message": detail}):
        async with (
            serving(lambda _, b=body: (422, msgspec.json.encode(b), "")) as server,
            loaded(base_url=server.url) as backend,
        ):
            error = await failure(backend, make_call("chat"))
        assert (error.message, error.param) == ("top_k: Extra inputs are not permitted", "top_k")


async def test_a_stalled_endpoint_may_be_tried_elsewhere() -> None:
    gone = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with (
        server,
        loaded(
            base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", answer_timeout_s=0.2
        ) as backend,
    ):
        error = await failure(backend, make_call("chat"))
        await gone.wait()
    assert type(error) is EndpointStalled
    assert error.retryable
