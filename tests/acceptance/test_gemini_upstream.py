"""OpenAI's own client → InferHub → the gemini backend → a strict upstream that speaks Gemini and misbehaves.

Every request that reaches the upstream is checked by Google's own types; one violation fails the module.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI
from pydantic import BaseModel

from inferhub.testing.servers import SHAPES, Hub, Process, environment, running_hub
from inferhub.testing.talk import CHAT, Talk, chunks, content
from inferhub.testing.upstream_dialects.gemini import SIGNATURE
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import PROMPT_TOKENS

# One white pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = base64.b64encode(b"RIFF....WAVE").decode()
PDF = base64.b64encode(b"%PDF-1.7\n%%EOF\n").decode()
WORDS = "".join(f"word{i} " for i in range(8))
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": f"tool{i}", "parameters": {"type": "object"}}} for i in range(2)
]
ABORT_SEEN_WITHIN_S = 1.0

# (script, status, code, message holds): what a client is told when nothing was said yet.
REFUSALS: list[tuple[str, int, str, str]] = [
    ("mode=400", 400, "backend_refused", "The scripted upstream says no."),
    ("mode=400,code=context_length_exceeded", 400, "context_length_exceeded", "1048576"),
    ("mode=400,code=API_KEY_INVALID", 502, "upstream_denied", "credentials"),
    ("mode=401", 502, "upstream_denied", "credentials"),
    ("mode=403", 502, "upstream_denied", "credentials"),
    ("mode=404", 400, "backend_refused", "says no"),
    ("mode=429,retry_after_s=7", 429, "upstream_rate_limited", "rate limit"),
    ("mode=429,code=GenerateRequestsPerDay", 429, "upstream_quota_exhausted", "quota"),
    ("mode=500", 502, "upstream_error", "HTTP 500"),
    ("mode=503", 503, "overloaded", "overloaded"),
    ("mode=504", 504, "endpoint_stalled", "time"),
    ("finish=blocked", 400, "content_filter", "PROHIBITED_CONTENT"),
    ("finish=MALFORMED_FUNCTION_CALL,n=0", 502, "upstream_error", "MALFORMED_FUNCTION_CALL"),
    ("mode=html", 502, "upstream_error", ""),
    ("mode=empty", 502, "upstream_error", ""),
    ("mode=drop", 502, "upstream_error", ""),
    ("mode=bomb", 502, "upstream_error", ""),
    ("mode=garbage", 502, "upstream_error", ""),
    ("mode=half_json", 502, "upstream_error", ""),
    ("mode=rst", 502, "upstream_error", ""),
    ("mode=cut", 502, "upstream_error", ""),
    ("mode=clean_cut", 502, "upstream_error", ""),
    ("mode=bad_chunk", 502, "upstream_error", ""),
    ("mode=endless", 502, "upstream_error", ""),
    ("mode=oversize", 502, "upstream_error", ""),
    ("mode=error", 502, "upstream_error", "It broke."),
    ("mode=slowhdr", 504, "endpoint_stalled", "headers timeout"),
]
# What breaks a stream that has begun.
BREAKS = ["rst", "cut", "clean_cut", "bad_chunk", "garbage", "half_json", "error", "endless", "noterm"]

SPEC = """\
models:
  - {{name: gemini, backend: gemini, slots: 64, options: {{upstream_model: gemini-3-flash, {common}}}}}
  - {{name: budgeted, backend: gemini, options: {{upstream_model: gemini-2.5-flash, {common}}}}}
  - {{name: plain, backend: gemini, options: {{upstream_model: gemini-2.0-flash, {common}}}}}
  - {{name: gemini-embedding-001, backend: gemini, options: {{{common}}}}}
"""
# Each has its own model: an endpoint that failed is left alone for a while.
FAILING = """\
  - {{name: {name}, backend: gemini, options: {{upstream_model: gemini-3-flash, headers_timeout_s: 2, \
answer_timeout_s: 2, {common}}}}}
"""


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    arguments = [sys.executable, "-m", "inferhub.testing.upstream", "--port", "0", "--until-eof", "--strict"]
    with Process(arguments, tmp_path_factory.mktemp("upstream"), "upstream", environment({})) as process:
        scripted = Upstream()
        scripted.url = process.announcement()["url"]
        yield scripted
        broken = asyncio.run(scripted.violations())
        assert not broken, broken


@pytest.fixture(scope="module", params=SHAPES)
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Hub]:
    common = f'base_url: "{upstream.url}", api_key: AIzaCanary0123456789'
    names = [f"refused-{i}-{stream}" for i in range(len(REFUSALS)) for stream in (0, 1)]
    names += [f"breaks-{mode}" for mode in BREAKS]
    spec = SPEC.format(common=common) + "".join(FAILING.format(name=n, common=common) for n in names)
    # Longer than any limit here: what fails before it speaks has a status.
    settings = {"head_hold_s": 10}
    folder = tmp_path_factory.mktemp(f"gemini-{request.param}")
    with running_hub(request.param, folder, spec, settings) as running:
        yield running


@pytest.fixture
def talk(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[AsyncOpenAI]:
    headers = {"x-inferhub-cache": "off"}
    async with AsyncOpenAI(
        base_url=hub.api, api_key=hub.admin_key, max_retries=0, default_headers=headers
    ) as openai:
        yield openai


def ask(script: str, said: Any = "Hello") -> list[Any]:
    return [{"role": "system", "content": f"script:{script}"}, {"role": "user", "content": said}]


async def sent(upstream: Upstream) -> Any:
    """The body of the newest request."""
    return json.loads((await upstream.log())[-1].body)


# --- answers ---------------------------------------------------------------------------------------


async def test_whole_and_streamed_text_agree(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="gemini", messages=ask("n=8"))
    assert whole.choices[0].message.content == WORDS
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (PROMPT_TOKENS, 8)
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 3
    stream = await client.chat.completions.create(
        model="gemini", messages=ask("n=8,split=3"), stream=True, stream_options={"include_usage": True}
    )
    seen = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in seen if c.choices) == WORDS
    assert [c.choices[0].finish_reason for c in seen if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert seen[-1].usage == whole.usage


async def test_unicode_survives_every_cut(client: AsyncOpenAI) -> None:
    text = "naïve 🌊 👩‍👩‍👧 наступил день \\u00e9"
    stream = await client.chat.completions.create(
        model="gemini", messages=ask("echo=1,split=1", text), stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text


@pytest.mark.parametrize("is_stream", [False, True])
async def test_tools_over_two_turns(client: AsyncOpenAI, upstream: Upstream, is_stream: bool) -> None:
    """The client sends back what it was given; the signature that Google wants comes with it."""
    messages = ask("tools=2,think=1")
    if is_stream:
        async with client.chat.completions.stream(model="gemini", messages=messages, tools=TOOLS) as stream:
            choice = (await stream.get_final_completion()).choices[0]
    else:
        whole = await client.chat.completions.create(model="gemini", messages=messages, tools=TOOLS)
        choice = whole.choices[0]  # type: ignore[assignment]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [(c.function.name, c.function.arguments) for c in calls if c.type == "function"] == [
        ("tool0", '{"x":0}'),
        ("tool1", '{"x":1}'),
    ]
    answers: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": f'{{"call": "{call.id}"}}'} for call in calls
    ]
    messages += [choice.message.model_dump(exclude_none=True), *answers[::-1]]
    after = await client.chat.completions.create(
        model="gemini", messages=[{"role": "system", "content": "script:n=1"}, *messages[1:]], tools=TOOLS
    )
    assert after.choices[0].message.content == "word0 "
    _, said, results = (await sent(upstream))["contents"]
    assert [part.get("thoughtSignature") for part in said["parts"] if "functionCall" in part] == [
        SIGNATURE,
        None,
    ]
    assert [part["functionResponse"]["name"] for part in results["parts"]] == ["tool0", "tool1"]


async def test_a_named_tool_is_called(client: AsyncOpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "tool1"}}
    answer = await client.chat.completions.create(
        model="gemini", messages=ask(""), tools=TOOLS, tool_choice=named
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"] == ["tool1"]


async def test_pictures_sound_and_documents(client: AsyncOpenAI, upstream: Upstream) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
    ]
    await client.chat.completions.create(model="gemini", messages=ask("n=1", parts))
    body = await sent(upstream)
    assert [part["inlineData"] for part in body["contents"][0]["parts"][1:]] == [
        {"mimeType": "image/png", "data": PNG},
        {"mimeType": "audio/wav", "data": WAV},
        {"mimeType": "application/pdf", "data": PDF},
    ]
    assert body["generationConfig"]["mediaResolution"] == "MEDIA_RESOLUTION_LOW"


class Echoed(BaseModel):
    echo: str


async def test_structured_answers(client: AsyncOpenAI, upstream: Upstream) -> None:
    parsed = await client.chat.completions.parse(
        model="gemini", messages=ask("echo=1", "Rome"), response_format=Echoed
    )
    assert parsed.choices[0].message.parsed == Echoed(echo="Rome")
    config = (await sent(upstream))["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"]["required"] == ["echo"]


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("gemini", {"includeThoughts": True, "thinkingLevel": "LOW"}),
        ("budgeted", {"includeThoughts": True, "thinkingBudget": 1024}),
    ],
)
async def test_reasoning(client: AsyncOpenAI, upstream: Upstream, model: str, thinking: Any) -> None:
    answer = await client.chat.completions.create(
        model=model, messages=ask("think=2,n=3"), reasoning_effort="low"
    )
    message = answer.choices[0].message.model_dump()
    assert message["content"] == "word0 word1 word2 "
    assert message["reasoning_content"] == "thought0 thought1 "
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    assert (await sent(upstream))["generationConfig"]["thinkingConfig"] == thinking
    # What was signed is given back, and Google gets it again.
    history: list[Any] = [
        *ask("n=1"),
        {**message, "role": "assistant"},
        {"role": "user", "content": "Go on."},
    ]
    history[2] = {key: value for key, value in history[2].items() if value is not None}
    await client.chat.completions.create(model=model, messages=history)
    said = (await sent(upstream))["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in said] == [SIGNATURE, None]


async def test_choices_logprobs_and_limits(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="gemini", messages=ask("n=8"), n=2, max_tokens=3, logprobs=True, top_logprobs=1, seed=7
    )
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    for choice in answer.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert "".join(token.token for token in tokens) == choice.message.content == "word0 word1 word2 "
        assert [len(token.top_logprobs) for token in tokens] == [1, 1, 1]


async def test_a_filtered_answer_says_so(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="gemini", messages=ask("n=2,finish=content_filter"))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "word0 word1 ",
        "content_filter",
    )


async def test_embeddings(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="gemini-embedding-001", input=["a", "b"], dimensions=8)
    assert [item.index for item in answer.data] == [0, 1]
    for item in answer.data:
        assert math.isclose(math.hypot(*item.embedding), 1, abs_tol=1e-6)
    assert answer.usage.prompt_tokens == 2 * PROMPT_TOKENS


async def test_token_counts(talk: Talk) -> None:
    body = {"model": "gemini", "messages": [{"role": "user", "content": "one two three"}]}
    answer = await talk.post(f"{CHAT}/input_tokens", body)
    assert (answer.status, answer.json) == (200, {"input_tokens": PROMPT_TOKENS + 3})


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "params", "param"),
    [
        ("gemini", {"logit_bias": {"1": 1}}, "logit_bias"),
        ("gemini", {"service_tier": "scale"}, "service_tier"),
        ("gemini", {"store": True}, "store"),
        ("gemini", {"verbosity": "low"}, "verbosity"),
        ("gemini", {"modalities": ["text", "audio"]}, "modalities"),
        ("gemini", {"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ("gemini", {"web_search_options": {}}, "web_search_options"),
        ("gemini", {"n": 9}, "n"),
        ("gemini", {"seed": 2**40}, "seed"),
        ("gemini", {"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ("gemini", {"reasoning_effort": "none"}, "reasoning_effort"),
        ("plain", {"reasoning_effort": "low"}, "reasoning_effort"),
    ],
)
async def test_what_it_cannot_honour_is_refused_by_name(
    talk: Talk, model: str, params: dict[str, Any], param: str
) -> None:
    answer = await talk.chat(model, **params)
    assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported_parameter")
    assert answer.json["error"]["param"] == param


async def test_ids_of_tokens_cannot_be_embedded(talk: Talk) -> None:
    answer = await talk.post("/v1/embeddings", {"model": "gemini-embedding-001", "input": [1, 2]})
    assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported_parameter")


async def test_what_nobody_knows_is_ignored_and_named(talk: Talk, upstream: Upstream) -> None:
    answer = await talk.post(CHAT, {"model": "gemini", "messages": ask("n=1"), "sparkle": 1})
    assert answer.status == 200
    assert answer.head["x-inferhub-ignored-params"] == "sparkle"
    assert "sparkle" not in (await upstream.log())[-1].body


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("case", range(len(REFUSALS)), ids=[script for script, *_ in REFUSALS])
async def test_every_failure_has_its_outcome(client: AsyncOpenAI, case: int, is_stream: bool) -> None:
    """Before anything was said: a status, also for a stream."""
    script, status, code, message = REFUSALS[case]
    with pytest.raises(APIStatusError) as caught:
        await client.chat.completions.create(
            model=f"refused-{case}-{is_stream:d}", messages=ask(f"leak=1,{script}"), stream=is_stream
        )
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert message in error.message
    assert "AIzaCanary" not in error.message
    assert "Welcome" not in error.message
    if "retry_after" in script:
        assert int(error.response.headers["retry-after"]) >= 7


@pytest.mark.parametrize("mode", BREAKS)
async def test_a_stream_that_breaks_never_ends_cleanly(talk: Talk, mode: str) -> None:
    messages = ask(f"mode={mode},fail_at=3,gap_ms=20")
    body = {"model": f"breaks-{mode}", "messages": messages, "stream": True}
    events = await talk.stream_of(CHAT, body)
    assert content(events) == "word0 word1 word2 "
    assert chunks(events)[-1]["error"]["code"] == "upstream_error"
    assert not [c for c in chunks(events) if any(x.get("finish_reason") for x in c.get("choices", ()))]
    assert "[DONE]" not in [event.data for event in events]


# --- cancellation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("script", ["hdr_ms=60000", "ttft_ms=60000", "gap_ms=50,n=2000"])
async def test_who_hangs_up_stops_gemini(
    talk: Talk, upstream: Upstream, script: str, is_stream: bool
) -> None:
    body = {"model": "gemini", "messages": ask(script), "stream": is_stream}
    async with talk.opened(CHAT, body) as call:
        seen = await upstream.wait_for(call.request_id)
        if "gap_ms" in script and is_stream:
            await call.head()
    gone = await upstream.wait_for(call.request_id, lambda record: record.abort_s is not None)
    assert gone.abort_s is not None
    assert gone.abort_s > seen.read_s
    assert len(await upstream.records(call.request_id)) == 1
