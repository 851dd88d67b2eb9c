"""Routes with real upstreams: fallbacks, hedges, breakers, and answers that go on where another one broke off."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferhub.gateway.problems import MAX_JITTER
from inferhub.testing.servers import Hub, Process, running_hub, start_service, wait_for
from inferhub.testing.steady import ledger
from inferhub.testing.talk import CHAT, COMPLETIONS, Opened, Talk, chat_body, chunks, content
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - {{name: shaky, backend: openai_compatible, slots: 64, options: {{base_url: "{upstream}"}}}}
  - {{name: limited, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
  - {{name: doomed, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
  - name: steady
    backend: openai_compatible
    slots: 64
    options: {{base_url: "{upstream}", headers: {{x-script: "n=3"}}}}
  - name: sleepy
    backend: openai_compatible
    options: {{base_url: "{upstream}", headers: {{x-script: "ttft_ms=60000"}}}}
  - name: slumber
    backend: openai_compatible
    options: {{base_url: "{upstream}", headers: {{x-script: "ttft_ms=60000"}}}}
  - name: wordy
    backend: echo
    options: {{context_tokens: 100000}}
  - name: brief
    backend: echo
    options: {{context_tokens: 4}}
  - {{name: broken, backend: echo, options: {{fail_every: 1}}}}
  - {{name: breaks-late, backend: echo, options: {{fail_every: 1, fail_at: 2}}}}
routes:
  - {{name: safe, targets: [shaky], fallbacks: [steady]}}
  - {{name: paid, targets: [limited], fallbacks: [{{model: wordy, on: [rate_limit]}}]}}
  - {{name: long, targets: [brief], fallbacks: [{{model: wordy, on: [context_length]}}]}}
  - {{name: patient, targets: [sleepy], fallbacks: [steady], first_token_timeout_s: 0.3}}
  - name: hedged
    targets: [{{model: sleepy, priority: 0}}, {{model: steady, priority: 1}}]
    hedge_after_s: 0.2
  - name: sleepy-twice
    targets: [{{model: sleepy, priority: 0}}, {{model: slumber, priority: 1}}]
    hedge_after_s: 0.1
  - name: unbroken
    targets: [{{model: breaks-late, priority: 0}}, {{model: wordy, priority: 1}}]
    resume: true
"""
SETTINGS = {"breaker_open_s": 1, "worker_refresh_s": 0.1, "head_hold_s": 30}


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    """Breakers and budgets as they are by default, but for how long a breaker stays open."""
    spec = SPEC.format(upstream=upstream_url)
    with running_hub("serve", tmp_path_factory.mktemp("routed"), spec, SETTINGS) as hub:
        yield hub


@pytest.fixture
def ask(routed: Hub) -> Talk:
    return Talk(routed.url, routed.admin_key)


TRAIL = r"{};{};\d+\.\d{{3}}"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fallback_answers_and_the_headers_tell_the_way(ask: Talk, stream: bool) -> None:
    async with ask.opened(CHAT, chat_body("safe", user=f"script:mode=500;{stream}", stream=stream)) as call:
        head = await call.head()
        body = await call.connection.body(head)
    assert (head.status, head["x-inferhub-model"], head["x-inferhub-attempts"]) == (200, "steady", "2")
    assert re.fullmatch(TRAIL.format("shaky", "upstream_error"), head["x-inferhub-trail"] or "")
    assert b"word2" in body


async def test_only_the_named_cause_leads_to_a_fallback(ask: Talk, upstream: Upstream) -> None:
    asked = await ask.chat("paid", user="script:mode=500;paid")
    assert (asked.status, asked.head["x-inferhub-upstream"]) == (502, "limited")
    limited = await ask.chat("paid", user="script:mode=429,retry_after_s=30;paid")
    assert (limited.status, limited.head["x-inferhub-model"]) == (200, "wordy")
    before = len(await upstream.log())
    # It said when to come back, so until then nobody knocks: its fallback answers at once.
    again = await ask.chat("paid", "another question")
    assert (again.status, again.head["x-inferhub-attempts"]) == (200, "1")
    alone = await ask.chat("limited")
    assert alone.status == 429
    assert 0 < int(alone.head["retry-after"] or 0) <= 30
    assert len(await upstream.log()) == before


async def test_a_prompt_that_is_too_long_goes_to_a_model_with_more_room(ask: Talk) -> None:
    text = "one two three four five six"
    answer = await ask.chat("long", text)
    assert answer.json["choices"][0]["message"]["content"] == text
    assert re.fullmatch(
        TRAIL.format("local", "context_length_exceeded"), answer.head["x-inferhub-trail"] or ""
    )
    refused = await ask.chat("brief", text)
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")


async def test_silence_leads_to_a_fallback_and_ends_the_silent_call(ask: Talk, upstream: Upstream) -> None:
    async with ask.opened(CHAT, chat_body("patient", stream=True)) as call:
        head = await call.head()
        assert content([event async for event in call.connection.events(head)]).startswith("word0")
    record = await upstream.wait_for(call.request_id, lambda _: True)
    records = await upstream.records(call.request_id)
    assert len(records) == 2, record
    assert records[0].abort_s is not None


async def test_the_slower_of_two_is_cancelled_and_not_billed(
    routed: Hub, ask: Talk, upstream: Upstream
) -> None:
    async with ask.opened(CHAT, chat_body("hedged", stream=True)) as call:
        head = await call.head()
        assert content([event async for event in call.connection.events(head)]).split() == [
            "word0",
            "word1",
            "word2",
        ]
    assert (head["x-inferhub-model"], head["x-inferhub-attempts"]) == ("steady", "2")
    assert re.fullmatch(TRAIL.format("sleepy", "cancelled"), head["x-inferhub-trail"] or "")
    slow, quick = await upstream.records(call.request_id)
    assert slow.abort_s is not None
    assert quick.first_byte_s is not None
    assert slow.abort_s - quick.first_byte_s < 1
    [event] = await billed(routed, call.request_id)
    assert (event["model"], event["endpoint"], event["attempts"], event["status"]) == (
        "steady",
        "steady",
        2,
        "ok",
    )
    assert event["output_tokens"] + event["reasoning_tokens"] == 3


async def test_a_hang_up_reaches_both_of_two(routed: Hub, ask: Talk, upstream: Upstream) -> None:
    async with ask.opened(CHAT, chat_body("sleepy-twice", stream=True)) as call:
        await until(lambda: seen(upstream, call, 2))
    for record in await until(lambda: aborted(upstream, call, 2)):
        assert record.abort_s is not None
    [event] = await billed(routed, call.request_id)
    assert (event["status"], event["output_tokens"]) == ("cancelled", 0)


async def test_a_breaker_refuses_at_once_and_closes_again(ask: Talk, upstream: Upstream) -> None:
    await upstream.reset()
    for number in range(3):
        await ask.chat("doomed", user=f"script:mode=500;{number}")
    asked = len(await upstream.log())
    assert asked == 5, "each of the calls is tried twice, until five failures were seen in a row"
    begin = time.monotonic()
    refused = await ask.chat("doomed")
    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert 0 < int(refused.head["retry-after-ms"] or 0) <= 1000 * MAX_JITTER
    assert refused.head["x-inferhub-reason"] == "endpoint_unhealthy"
    assert len(await upstream.log()) == asked
    # One probe at a time; two good ones close it.
    async with asyncio.timeout(60):
        while (await ask.chat("doomed", f"probe {time.monotonic()}")).status != 200:
            await asyncio.sleep(0.05)
    assert time.monotonic() - begin >= 0.7
    for number in range(3):
        assert (await ask.chat("doomed", f"well again {number}")).status == 200


async def test_a_storm_of_failures_is_not_multiplied(ask: Talk, upstream: Upstream) -> None:
    """Half of all calls fail at the first choice: nearly all are answered, by hardly more work."""
    await upstream.reset()
    calls, at_once = 200, asyncio.Semaphore(16)

    async def one(number: int) -> int:
        script = "mode=500" if number % 2 else "n=1"
        async with at_once:
            return (await ask.chat("safe", f"storm {number}", user=f"script:{script};storm{number}")).status

    answered = await asyncio.gather(*(one(number) for number in range(calls)))
    assert answered.count(200) >= 0.9 * calls
    log = await upstream.log()
    at_first_choice = [record for record in log if "x-script" not in record.headers]
    assert len(at_first_choice) <= 1.2 * calls
    assert len(log) <= 1.5 * calls


async def test_what_broke_off_goes_on(routed: Hub, ask: Talk) -> None:
    text = "one two three four five six"
    async with ask.opened(CHAT, chat_body("unbroken", text, stream=True, max_tokens=50)) as call:
        head = await call.head()
        events = [event async for event in call.connection.events(head)]
    assert content(events) == text
    assert events[-1].data == "[DONE]"
    said = [chunk["choices"][0] for chunk in chunks(events)]
    assert [choice["finish_reason"] for choice in said if choice["finish_reason"]] == ["stop"]
    assert len({(chunk["id"], chunk["model"]) for chunk in chunks(events)}) == 1
    [event] = await billed(routed, call.request_id)
    # Six words of a prompt and six of an answer, whoever read and wrote them how often.
    assert (event["input_tokens"], event["output_tokens"], event["attempts"]) == (6, 6, 2)
    assert (event["status"], event["model"]) == ("ok", "breaks-late")


async def test_an_answer_in_one_piece_says_what_happened_on_the_way(ask: Talk) -> None:
    answer = await ask.chat("unbroken", "one two three four")
    assert answer.json["choices"][0]["message"]["content"] == "one two three four"
    assert answer.json["usage"]["completion_tokens"] == 4
    assert re.fullmatch(TRAIL.format("local", "upstream_error"), answer.head["x-inferhub-trail"] or "")


# --- two workers, of which one dies --------------------------------------------------------------

WORKERS_SPEC = """\
models:
  - {name: slow, backend: echo, slots: 8, options: {gap_s: 0.03}}
  - {name: smollm2-135m, backend: llamacpp, weights: smollm2-135m, slots: 2}
routes:
  - {name: unbroken, model: slow, resume: true}
  - {name: unbroken-smollm, model: smollm2-135m, resume: true}
"""


class Workers:
    """A gateway in front of two workers that run the same models."""

    def __init__(self, hub: Hub, workers: dict[str, Process]) -> None:
        self.hub = hub
        self.workers = workers
        self.talk = Talk(hub.url, hub.admin_key)


@pytest.fixture
def workers(tmp_path: Path, cache_dir: Path) -> Iterator[Workers]:
    settings: dict[str, object] = {"worker_refresh_s": 0.1, "cache_dir": cache_dir, "head_hold_s": 30}
    spec_file = tmp_path / "hub.yaml"
    spec_file.write_text(WORKERS_SPEC, encoding="utf-8")
    started: dict[str, Process] = {}
    try:
        for name in ("left", "right"):
            folder = tmp_path / name
            folder.mkdir()
            started[name] = start_service("worker", folder, {**settings, "worker_id": name})
        targets = [worker.announcement()["url"] for worker in started.values()]
        flags = [flag for target in targets for flag in ("--worker", target)]
        front = start_service("gateway", tmp_path, {**settings, "spec_file": spec_file}, *flags)
        started["gateway"] = front
        said = front.announcement()
        hub = Hub(
            "split",
            tmp_path,
            said["url"],
            said["ops_url"],
            said["admin_key"],
            tuple(said["models"]),
            (front,),
        )
        both = {name: worker for name, worker in started.items() if name != "gateway"}
        wait_for(lambda: all_ready(hub), 60, "both workers to have the models")
        yield Workers(hub, both)
    finally:
        for process in started.values():
            process.end()
        for process in started.values():
            process.stop()


def all_ready(hub: Hub) -> bool:
    counts = hub.get("/readyz?verbose=1")["models"].values()
    return bool(counts) and all(count == 2 for count in counts)


async def _killed_midway(
    workers: Workers, body: dict[str, Any], after: int, path: str = CHAT
) -> tuple[list[Any], Any]:
    """(events, head) of a stream whose worker is killed once so many pieces have come."""
    async with workers.talk.opened(path, body, x_inferhub_cache="off") as call:
        head = await call.head()
        events = []
        async for event in call.connection.events(head):
            events.append(event)
            if len(events) == after:
                workers.workers[str(head["x-inferhub-upstream"])].send(signal.SIGKILL)
    return events, (head, call.request_id)


async def test_a_killed_worker_is_not_noticed(workers: Workers) -> None:
    text = " ".join(f"w{number}" for number in range(60))
    events, (head, request_id) = await _killed_midway(
        workers, chat_body("unbroken", text, stream=True), after=10
    )
    assert content(events) == text
    assert events[-1].data == "[DONE]"
    [event] = await billed(workers.hub, request_id)
    assert (event["output_tokens"], event["attempts"], event["status"]) == (60, 2, "ok")
    assert event["endpoint"] != head["x-inferhub-upstream"]


async def test_a_killed_worker_without_resume_is_a_typed_error_and_billed_so_far(workers: Workers) -> None:
    text = " ".join(f"w{number}" for number in range(60))
    events, (_, request_id) = await _killed_midway(workers, chat_body("slow", text, stream=True), after=10)
    assert events[-1].json["error"]["code"] == "endpoint_lost"
    delivered = len(content(events[:-1]).split())
    [event] = await billed(workers.hub, request_id)
    assert (event["status"], event["output_tokens"], event["source"]) == (
        "endpoint_lost",
        delivered,
        "estimated",
    )


async def test_a_real_model_says_the_same_as_if_nothing_had_happened(workers: Workers) -> None:
    """Where it is sure of every word: a text that is read at once rounds differently from one that was made."""
    body = {"model": "unbroken-smollm", "prompt": "1, 2, 3, 4,", "stream": True}
    body |= {"temperature": 0, "max_tokens": 120}
    async with workers.talk.opened(COMPLETIONS, body, x_inferhub_cache="off") as call:
        whole = [event async for event in call.connection.events(await call.head())]
    events, (head, request_id) = await _killed_midway(workers, body, after=10, path=COMPLETIONS)
    assert events[-1].data == "[DONE]"
    assert _completed(events) == _completed(whole)
    assert head["x-inferhub-attempts"] == "1", "nothing had happened when the headers left"
    [event] = await billed(workers.hub, request_id)
    assert (event["output_tokens"], event["attempts"]) == (120, 2)


def _completed(events: list[Any]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks(events) if chunk["choices"])


# --- waiting for a condition -------------------------------------------------------------------


async def until(probe: Any, within_s: float = 30) -> Any:
    end_s = time.monotonic() + within_s
    while not (found := await probe()):
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)
    return found


async def seen(upstream: Upstream, call: Opened, count: int) -> list[Any]:
    found = await upstream.records(call.request_id)
    return found if len(found) >= count else []


async def aborted(upstream: Upstream, call: Opened, count: int) -> list[Any]:
    found = await upstream.records(call.request_id)
    return found if sum(record.abort_s is not None for record in found) >= count else []


async def billed(hub: Hub, request_id: str) -> list[dict[str, Any]]:
    """The ledger's events of this call, once there is one."""

    async def probe() -> list[dict[str, Any]]:
        return [event for event in ledger(hub) if event["request_id"] == request_id]

    return list(await until(probe))
