"""Contract items 76 and 77: what is tried again, what never is, and which limit ends a call."""

from __future__ import annotations

import time

import pytest

from inferhub.testing.talk import CHAT, EMBEDDINGS, Talk, chat_body, chunks, content
from inferhub.testing.upstream_process import Upstream


async def attempts_seen(
    talk: Talk, upstream: Upstream, script: str, *, stream: bool, model: str = "remote"
) -> tuple[int, int]:
    """(how often the upstream was asked, what `x-inferhub-attempts` says)."""
    async with talk.opened(CHAT, chat_body(model, stream=stream, user=f"script:{script}")) as call:
        head = await call.head()
        await call.connection.body(head)
    records = await upstream.records(call.request_id)
    return len(records), int(head["x-inferhub-attempts"] or 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", ["mode=500", "mode=html", "fail_at=0,mode=garbage", "fail_at=0,mode=rst"])
async def test_contract_076_failures_before_the_first_byte_are_tried_again(
    talk: Talk, upstream: Upstream, script: str, stream: bool
) -> None:
    assert await attempts_seen(talk, upstream, script, stream=stream) == (2, 2)


@pytest.mark.parametrize("mode", ["400", "401", "404", "429", "503"])
async def test_contract_076_refusals_are_not_tried_again(talk: Talk, upstream: Upstream, mode: str) -> None:
    """A wrong request stays wrong, and knocking at a full door makes it worse."""
    model = "limited-4" if mode == "429" else "remote"
    seen, _ = await attempts_seen(talk, upstream, f"mode={mode}", stream=False, model=model)
    assert seen == 1


async def test_contract_076_never_after_the_first_byte(talk: Talk, upstream: Upstream) -> None:
    seen, _ = await attempts_seen(talk, upstream, "fail_at=1,gap_ms=100,mode=rst", stream=True)
    assert seen == 1


async def test_contract_076_one_idempotency_key_over_all_attempts(talk: Talk, upstream: Upstream) -> None:
    async with talk.opened(CHAT, chat_body("remote", user="script:mode=500")) as call:
        head = await call.head()
    assert head.status == 502
    records = await upstream.records(call.request_id)
    keys = [record.headers["idempotency-key"] for record in records]
    assert len(keys) == 2
    assert keys[0] == keys[1]
    # Made here: a request id is the client's choice, and upstreams see all clients as one.
    assert keys[0].startswith("call_")
    assert call.request_id not in keys


async def test_contract_076_a_second_try_may_succeed(talk: Talk) -> None:
    """`flaky` fails every other call, so no client ever sees it fail."""
    seen = []
    for stream in (False, True, False, True):
        if stream:
            async with talk.opened(CHAT, chat_body("flaky", stream=True)) as call:
                head = await call.head()
                assert content([event async for event in call.connection.events(head)]) == "one two three"
        else:
            answer = await talk.chat("flaky")
            head = answer.head
            assert answer.json["choices"][0]["message"]["content"] == "one two three"
        assert head.status == 200
        seen.append(head["x-inferhub-attempts"])
        assert head["x-inferhub-upstream"]
    assert "2" in seen


async def test_contract_076_upstream_and_attempts_are_named(talk: Talk) -> None:
    good = await talk.chat("remote")
    assert (good.head["x-inferhub-attempts"], good.head["x-inferhub-upstream"]) == ("1", "remote")
    bad = await talk.chat("remote-dead")
    assert (bad.head["x-inferhub-attempts"], bad.head["x-inferhub-upstream"]) == ("2", "remote-dead")


async def test_contract_077_connection_refused_is_told_at_once(talk: Talk) -> None:
    begin = time.monotonic()
    answer = await talk.chat("remote-dead")
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("script", ["hdr_ms=20000", "mode=slowhdr,gap_ms=200"])
@pytest.mark.parametrize("stream", [False, True])
async def test_contract_077_headers_timeout(talk: Talk, script: str, stream: bool) -> None:
    begin = time.monotonic()
    body = chat_body("remote-impatient", user=f"script:{script}", stream=stream)
    async with talk.opened(CHAT, body) as call:
        head = await call.head(timeout_s=10)
        whole = await call.connection.body(head)
    assert b'"endpoint_stalled"' in whole
    assert b"headers timeout" in whole
    # A stream may have begun to keep the client company before the limit struck.
    assert head.status == (200 if stream and head["content-type"] != "application/json" else 504)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(("model", "script"), [("late", ""), ("remote", "script:ttft_ms=30000")])
async def test_contract_077_time_to_the_first_content(tight: Talk, model: str, script: str) -> None:
    answer = await tight.chat(model, user=script)
    assert (answer.status, answer.error["code"]) == (504, "endpoint_stalled")
    assert "first_token_timeout_s" in answer.error["message"]
    assert answer.head["x-should-retry"] == "false"


async def test_contract_077_keep_alives_are_not_content(tight: Talk) -> None:
    """Neither the upstream's comments nor our own pings."""
    events = await tight.stream("remote", user="script:mode=keepalive,gap_ms=100")
    assert ": ping" in [event.text for event in events]
    assert "first_token_timeout_s" in events[-1].json["error"]["message"]


@pytest.mark.parametrize(("model", "script"), [("stalls", ""), ("remote", "script:fail_at=2,mode=hang")])
async def test_contract_077_silence_between_tokens(tight: Talk, model: str, script: str) -> None:
    events = await tight.stream(model, "a b c d", user=script)
    error = events[-1].json["error"]
    assert error["code"] == "endpoint_stalled"
    assert "idle_timeout_s" in error["message"]
    assert content(events)


async def test_contract_077_the_whole_call_has_a_limit(tight: Talk) -> None:
    """Every word comes in time, but there are too many of them."""
    events = await tight.stream("crawls", " ".join(["word"] * 60))
    error = events[-1].json["error"]
    assert error["code"] == "timeout"
    # Gateway and worker both watch this limit; which of them is first is chance.
    assert "request_timeout_s" in error["message"] or "time was over" in error["message"]
    assert len(content(events).split()) >= 3


async def test_contract_077_a_slow_but_steady_answer_is_let_finish(tight: Talk) -> None:
    events = await tight.stream("crawls", "one two three four")
    assert events[-1].data == "[DONE]"
    assert content(events) == "one two three four"


@pytest.mark.parametrize("mode", ["html", "garbage", "half_json", "bomb", "endless", "302"])
async def test_contract_077_garbage_is_never_passed_on(talk: Talk, mode: str) -> None:
    answer = await talk.chat("remote", user=f"script:mode={mode}")
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    for foreign in ("<html", "Welcome", "not json", "word0"):
        assert foreign not in answer.error["message"]


async def test_contract_077_an_upstream_s_words_are_cleaned(talk: Talk) -> None:
    """Its message may hold our key, terminal codes and addresses of objects."""
    answer = await talk.chat("remote", user="script:mode=400,leak=1")
    message = answer.error["message"]
    assert answer.status == 400
    assert "says no" in message
    for unwanted in ("sk-upstream-canary", "\x1b", "\x00", "\n", "0x7f3a9c0012d0"):
        assert unwanted not in message


@pytest.mark.parametrize("mode", ["401", "403"])
async def test_contract_077_our_credentials_are_not_the_client_s_fault(talk: Talk, mode: str) -> None:
    answer = await talk.chat("remote", user=f"script:mode={mode},leak=1")
    assert (answer.status, answer.error["code"]) == (502, "upstream_denied")
    assert "sk-upstream-canary" not in answer.body.decode()
    assert answer.head["x-should-retry"] == "false"


async def test_contract_077_embeddings_of_the_wrong_shape(talk: Talk) -> None:
    for mode in ("short", "garbage", "half_json", "html"):
        # Texts of their own: vectors that are known are not asked for again.
        body = {"model": "remote", "input": [f"a {mode}", f"b {mode}"], "user": f"script:mode={mode}"}
        answer = await talk.post(EMBEDDINGS, body)
        assert (answer.status, answer.error["code"]) == (502, "upstream_error"), mode


async def test_usage_is_honest_when_the_upstream_does_not_count(talk: Talk) -> None:
    events = await talk.stream(
        "remote", user="script:mode=usage_missing", stream_options={"include_usage": True}
    )
    usage = chunks(events)[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
