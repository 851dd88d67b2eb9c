"""More work than can be done: who is refused, how he is told, and that everybody else is answered.

What is checked is what becomes of the calls, never how fast: that is `make bench`'s to show.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic

import pytest

from inferhub.core.errors import REASONS
from inferhub.testing.admin import Admin
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import SHAPES, Hub, is_ready, running_hub
from inferhub.testing.talk import CHAT, Talk, chat_body
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - name: paced
    backend: openai_compatible
    slots: 2
    queue_limit: 6
    options: {{base_url: "{upstream}", headers: {{x-script: "ttft_ms=400,n=1"}}}}
  - name: hanging
    backend: openai_compatible
    slots: 2
    queue_limit: 10
    options: {{base_url: "{upstream}", headers: {{x-script: "ttft_ms=120000"}}}}
  - name: local
    backend: echo
    slots: 2
    queue_limit: 20
    options: {{first_token_s: 0.1}}
"""
PACED_PER_S = 5
CEILING = 8
"""Of `paced`: its slots and its queue."""


@pytest.fixture(scope="module", params=SHAPES)
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream_url: str
) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("overload")
    settings = {"worker_refresh_s": 0.1, "first_token_timeout_s": 120}
    with running_hub(request.param, folder, SPEC.format(upstream=upstream_url), settings) as hub:
        yield hub


@pytest.fixture
def talk(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


async def metric(hub: Hub, name: str, **labels: str) -> float:
    return await asyncio.to_thread(hub.metric, name, **labels)


async def until_quiet(hub: Hub) -> None:
    async with asyncio.timeout(30):
        while await metric(hub, "inferhub_requests_inflight"):
            await asyncio.sleep(0.05)


def check_refusal(answer: Answer) -> str:
    """Its reason."""
    assert answer.status == 503, answer
    assert answer.error["type"] == "overloaded_error"
    assert answer.error["code"] == "overloaded"
    reason = answer.head["x-inferhub-reason"] or ""
    assert reason in REASONS
    wait_s, wait_ms = int(answer.head["retry-after"] or 0), int(answer.head["retry-after-ms"] or 0)
    assert 1000 * (wait_s - 1) <= wait_ms <= 1000 * wait_s
    assert 1 <= wait_s <= 120, "OpenAI's client gives up above two minutes"
    assert answer.head["x-should-retry"] is None
    return reason


async def test_three_times_too_much_is_refused_early_and_the_rest_is_answered(
    hub: Hub, talk: Talk, upstream: Upstream
) -> None:
    await upstream.reset()
    deepest = 0
    is_over = asyncio.Event()

    async def look() -> None:
        nonlocal deepest
        while not is_over.is_set():
            there = await metric(hub, "inferhub_endpoint_inflight", model="paced")
            deepest = max(deepest, int(there))
            assert await asyncio.to_thread(is_ready, hub.url), "shedding is no reason to be taken out"

    looking = asyncio.ensure_future(look())
    calls, begin_s = [], monotonic()
    while (past_s := monotonic() - begin_s) < 6:
        due = int(3 * PACED_PER_S * past_s) - len(calls)
        calls += [asyncio.ensure_future(talk.chat("paced", f"call {len(calls) + i}")) for i in range(due)]
        await asyncio.sleep(0.01)
    answers = await asyncio.gather(*calls)
    is_over.set()
    await looking

    refused = [answer for answer in answers if answer.status != 200]
    reasons = Counter(map(check_refusal, refused))
    assert set(reasons) <= {"concurrency_limit", "queue_full"}
    assert reasons["concurrency_limit"] >= len(answers) / 3, "it offers three times what can be answered"
    assert len(await upstream.log()) == len(answers) - len(refused), "who is refused never got to the engine"
    assert 0 < deepest <= CEILING
    shed = {"criticality": "interactive", "reason": "concurrency_limit"}
    assert await metric(hub, "inferhub_shed_total", **shed) >= reasons["concurrency_limit"]

    # Afterwards as before: a burst that fills the queue is taken whole.
    async with asyncio.timeout(30):
        while True:
            burst = await asyncio.gather(*[talk.chat("paced", f"after {n}") for n in range(CEILING)])
            if {answer.status for answer in burst} == {200}:
                break
            await asyncio.sleep(3)


@asynccontextmanager
async def offered(
    talk: Talk, criticality: str, calls: int, let_in: int
) -> AsyncIterator[list[dict[str, str | None]]]:
    """Calls that never end; the heads of those that were refused, once `let_in` of them are left."""
    heads: list[dict[str, str | None]] = []
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(
                talk.opened(CHAT, chat_body("hanging"), **{"x-inferhub-criticality": criticality})
            )
            for _ in range(calls)
        ]

        async def refused(index: int) -> None:
            head = await opened[index].head(120)
            heads.append({"status": str(head.status), "reason": head["x-inferhub-reason"]})

        waiting = [asyncio.ensure_future(refused(index)) for index in range(calls)]
        try:
            async with asyncio.timeout(30):
                while len(heads) < calls - let_in:
                    await asyncio.sleep(0.02)
            yield heads
            assert len(heads) == calls - let_in, "none of those that were let in is refused later"
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)


def said(heads: list[dict[str, str | None]]) -> set[tuple[str | None, str | None]]:
    return {(head["status"], head["reason"]) for head in heads}


async def test_batch_work_is_refused_before_interactive_calls_and_those_before_realtime_ones(
    hub: Hub, talk: Talk
) -> None:
    # Two slots and ten places in the queue: nine tenths of those, seven tenths, and all of them.
    async with offered(talk, "interactive", 13, let_in=11) as interactive:
        assert said(interactive) == {("503", "concurrency_limit")}
        async with offered(talk, "batch", 2, let_in=0) as batch:
            assert said(batch) == {("503", "shed_batch")}
            async with offered(talk, "realtime", 3, let_in=1) as realtime:
                assert said(realtime) == {("503", "concurrency_limit")}
                there = await metric(hub, "inferhub_endpoint_inflight", model="hanging")
                assert there == 12
    await until_quiet(hub)
    for kind, least in (("batch", 2), ("interactive", 2), ("realtime", 2)):
        assert await metric(hub, "inferhub_shed_total", criticality=kind) >= least


async def test_a_flood_of_batch_work_takes_no_place_of_interactive_calls(hub: Hub, talk: Talk) -> None:
    await until_forgotten(hub)
    async with offered(talk, "batch", 20, let_in=9) as batch:
        assert said(batch) == {("503", "shed_batch")}
        async with offered(talk, "interactive", 3, let_in=3) as interactive:
            assert interactive == []
    await until_quiet(hub)


async def until_forgotten(hub: Hub) -> None:
    """The limit of `hanging` is its slots and its queue again."""
    async with asyncio.timeout(30):
        while await metric(hub, "inferhub_endpoint_limit", model="hanging") < 12:
            await asyncio.sleep(0.1)


async def test_a_tenant_that_floods_keeps_nobody_else_out(hub: Hub) -> None:
    admin = Admin(hub.url, hub.admin_key)
    noisy, victim = await admin.member("noisy"), await admin.member("victim")
    is_over = asyncio.Event()
    outcomes: Counter[int] = Counter()

    async def flood(number: int) -> None:
        round_ = 0
        while not is_over.is_set():
            answer = await noisy.talk.chat("local", f"flood {number} {round_}")
            outcomes[answer.status] += 1
            round_ += 1
            # A client that does not listen to `retry-after`, and yet leaves some of the machine to others.
            await asyncio.sleep(0.05 if answer.status == 503 else 0)

    flooding = [asyncio.ensure_future(flood(number)) for number in range(40)]
    try:
        async with asyncio.timeout(30):
            while await metric(hub, "inferhub_endpoint_limit", model="local") >= 22:
                await asyncio.sleep(0.1)
        answers = [await victim.talk.chat("local", f"victim {number}") for number in range(15)]
    finally:
        is_over.set()
        await asyncio.gather(*flooding)
    assert [answer.status for answer in answers] == [200] * 15
    assert set(outcomes) == {200, 503}
    assert outcomes[200] > 15, "the flood itself is answered as far as there is room"


async def test_a_client_says_how_critical_its_calls_are_within_its_rights(hub: Hub, talk: Talk) -> None:
    admin = Admin(hub.url, hub.admin_key)
    member = await admin.member("somebody")
    for kind in ("batch", "interactive"):
        answer = await member.talk.ask("POST", CHAT, {"x-inferhub-criticality": kind}, chat_body("local"))
        assert answer.status == 200
    urgent = {"x-inferhub-criticality": "realtime"}
    refused = await member.talk.ask("POST", CHAT, urgent, chat_body("local"))
    assert (refused.status, refused.error["code"]) == (403, "permission_denied")
    assert "criticality:realtime" in refused.error["message"]
    wrong = await talk.ask("POST", CHAT, {"x-inferhub-criticality": "urgent"}, chat_body("local"))
    assert (wrong.status, wrong.error["param"]) == (400, "x-inferhub-criticality")
    # Given by name, by who has it.
    scopes = ["inference:*", "criticality:realtime"]
    key = await admin.key(member.tenant_id, member.project_id, "voice", scopes=scopes)
    raised = Talk(hub.url, key["key"])
    assert (await raised.ask("POST", CHAT, urgent, chat_body("local"))).status == 200
    # OpenAI's own words; a wish that goes too far is no error.
    for tier in ("flex", "priority", "default", "auto"):
        assert (await member.talk.chat("local", service_tier=tier)).status == 200
