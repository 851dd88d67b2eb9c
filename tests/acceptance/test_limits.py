"""Limits on the wire: exactly as many calls as a limit says, whoever asks at once, and what clients are told."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, RateLimitError

from inferhub.testing.admin import Admin, Member
from inferhub.testing.raw_http import Answer, Head
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import CHAT, Opened, Talk, chat_body
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
  - {{name: remote, backend: openai_compatible, slots: 256, options: {{base_url: "{upstream}"}}}}
"""
# The counters answer in time, however busy the machine: how it goes without them is another story.
SETTINGS: dict[str, object] = {
    "counters_timeout_s": 5,
    "head_hold_s": 0.2,
    "ping_interval_s": 0.5,
    "drain_grace_s": 2,
}
SILENT = "script:ttft_ms=600000"
GO_DURATION = re.compile(r"(?:\d+h)?(?:\d+m)?(?:\d+(?:\.\d+)?s)|\d+ms")
RATES = [
    f"x-ratelimit-{what}-{unit}"
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
]
SOON_S = 5.0
"""What is promised within one second, on a machine that has other things to do."""


@pytest.fixture(scope="module")
def limits_hub(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    spec = SPEC.format(upstream=upstream_url)
    with running_hub("serve", tmp_path_factory.mktemp("limits"), spec, SETTINGS) as running:
        yield running


@pytest.fixture
def admin(limits_hub: Hub) -> Admin:
    return Admin(limits_hub.url, limits_hub.admin_key)


@pytest.fixture
async def member(admin: Admin) -> Member:
    return await admin.member()


async def at_once(talk: Talk, count: int, model: str = "echo", **more: object) -> list[Answer]:
    return await asyncio.gather(*(talk.chat(model, **more) for _ in range(count)))


async def let_in(talk: Talk, **more: object) -> Answer:
    """The first answer that is no refusal: a gateway remembers for a moment that there was no room."""
    end_s = time.monotonic() + SOON_S
    while (answer := await talk.chat("remote", **more)).status == 429 and time.monotonic() < end_s:
        await asyncio.sleep(0.02)
    assert answer.status == 200, answer.body
    return answer


def statuses(answers: Sequence[Answer]) -> dict[int, int]:
    return dict(Counter(answer.status for answer in answers))


@asynccontextmanager
async def open_streams(talk: Talk, count: int) -> AsyncIterator[list[tuple[Opened, Head]]]:
    """Streams that stay silent, each with its head; leaving the block hangs up those that are left."""
    async with AsyncExitStack() as stack:
        body = chat_body("remote", stream=True, user=SILENT)
        calls = [await stack.enter_async_context(talk.opened(CHAT, body)) for _ in range(count)]
        heads = await asyncio.gather(*(call.head() for call in calls))
        yield list(zip(calls, heads, strict=True))


def check_rates(head: Head, *, limit: int) -> tuple[int, int]:
    """All six headers make sense; (requests, tokens) that remain."""
    for name in RATES:
        assert head[name] is not None, (name, head)
    for unit in ("requests", "tokens"):
        assert GO_DURATION.fullmatch(head[f"x-ratelimit-reset-{unit}"] or ""), head
    assert head["x-ratelimit-limit-requests"] == str(limit)
    return int(head["x-ratelimit-remaining-requests"] or ""), int(head["x-ratelimit-remaining-tokens"] or "")


# --- exact counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["minute", "day", "month"])
async def test_contract_072_of_calls_at_once_exactly_the_limit_is_let_in(
    admin: Admin, member: Member, window: str
) -> None:
    await admin.limit(member.key_id, 7, f"requests/{window}")
    answers = await at_once(member.talk, 40)
    assert statuses(answers) == {200: 7, 429: 33}
    left = [a.head["x-ratelimit-remaining-requests"] for a in answers if a.status == 200]
    assert sorted(left) == [str(number) for number in range(7)]


async def test_contract_072_streams_count_while_they_are_open(admin: Admin, member: Member) -> None:
    limit = await admin.limit(member.key_id, 4, "concurrent/now")
    async with open_streams(member.talk, 12) as calls:
        assert Counter(head.status for _, head in calls) == {200: 4, 429: 8}
        assert (await admin.level(limit["id"]))["used"] == 4
        assert (await member.talk.chat("echo")).status == 429
        held = [call for call, head in calls if head.status == 200]
        begin = held[0].connection.hang_up()
        while (await member.talk.chat("echo")).status != 200:
            assert time.monotonic() - begin < SOON_S, "the slot was not given back"
        print(f"free after {time.monotonic() - begin:.3f} s")
    await admin.until(lambda: admin.level(limit["id"]), lambda level: level["used"] == 0, SOON_S)


async def test_slots_come_back_with_every_answer(admin: Admin, member: Member, upstream: Upstream) -> None:
    """Nobody is let in beyond them, and none is lost: everybody gets his turn."""
    limit = await admin.limit(member.key_id, 3, "concurrent/now")
    script = f"script:ttft_ms=60;{member.key_id}"

    async def patient() -> None:
        while (await member.talk.chat("remote", user=script)).status != 200:
            await asyncio.sleep(0.02)

    await asyncio.gather(*(patient() for _ in range(20)))
    ours = [record for record in await upstream.log() if member.key_id in record.body]
    assert len(ours) == 20
    for record in ours:
        # Time that the answer took to come back is not counted, so this errs to the calls' advantage.
        overlap = [r for r in ours if r.read_s <= record.read_s < (r.done_s or r.read_s)]
        assert len(overlap) <= 3
    await admin.until(lambda: admin.level(limit["id"]), lambda level: level["used"] == 0)


# --- tokens --------------------------------------------------------------------------------------------


async def test_contract_072_tokens_are_reserved_before_and_settled_after(
    admin: Admin, member: Member
) -> None:
    limit = await admin.limit(member.key_id, 2500, "tokens/minute")
    body = chat_body("remote", stream=True, max_tokens=1000, user=SILENT)
    async with member.talk.opened(CHAT, body) as one, member.talk.opened(CHAT, body) as two:
        assert [(await call.head()).status for call in (one, two)] == [200, 200]
        assert 2000 <= (await admin.level(limit["id"]))["used"] <= 2500
        refused = await member.talk.chat("remote", max_tokens=1000)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.head["retry-after"] or "") <= 61
    # They said nothing and used nothing.
    await admin.until(lambda: admin.level(limit["id"]), lambda level: level["used"] == 0)

    answer = await let_in(member.talk, max_tokens=1000, user="script:n=8")
    used = answer.json["usage"]["total_tokens"]
    assert used == 15
    await admin.until(lambda: admin.level(limit["id"]), lambda level: level["used"] == used)
    # The room that a short answer left is there for others.
    await let_in(member.talk, max_tokens=2400, user="script:n=1")


async def test_contract_072_what_can_never_fit_is_refused_at_once_with_the_remedy(
    admin: Admin, member: Member
) -> None:
    limit = await admin.limit(member.key_id, 100, "tokens/minute")
    for stream in (False, True):
        answer = await member.talk.chat("echo", stream=stream)
        assert (answer.status, answer.error["code"]) == (429, "insufficient_quota")
        assert (answer.head["retry-after"], answer.head["x-should-retry"]) == (None, "false")
        message = answer.error["message"]
        assert "limit 100" in message, message
        assert "'max_tokens' (1024 where it is left out)" in message, message
    assert (await admin.level(limit["id"]))["used"] == 0
    assert (await member.talk.chat("echo", max_tokens=50)).status == 200


# --- what clients are told -------------------------------------------------------------------------------


async def test_contract_028_every_answer_says_how_much_is_left(admin: Admin, member: Member) -> None:
    await admin.limit(member.key_id, 4, "requests/day")
    await admin.limit(member.key_id, 100_000, "tokens/day")
    whole = await member.talk.chat("remote")
    left = [check_rates(whole.head, limit=4)]
    async with member.talk.opened(CHAT, chat_body("remote", stream=True)) as call:
        head = await call.head()
        left.append(check_rates(head, limit=4))
        assert head["content-type"] == "text/event-stream; charset=utf-8"
        await call.connection.body(head)
    failed = await member.talk.chat("remote", user="script:mode=500")
    assert failed.status == 502
    left.append(check_rates(failed.head, limit=4))
    # A model that does not exist takes nothing.
    assert (await member.talk.chat("no-such-model")).status == 404
    left.append(check_rates((await member.talk.chat("echo")).head, limit=4))
    refused = await member.talk.chat("remote")
    assert refused.status == 429
    assert refused.head["x-ratelimit-remaining-requests"] == "0"
    assert int(refused.head["retry-after"] or "") >= 1
    assert int(refused.head["retry-after-ms"] or "") >= 1
    assert refused.head["x-should-retry"] != "false"
    assert [requests for requests, _ in left] == [3, 2, 1, 0]


async def test_a_caller_without_limits_is_told_of_none(member: Member) -> None:
    answer = await member.talk.chat("echo")
    assert answer.status == 200
    assert [name for name in RATES if answer.head[name] is not None] == []


async def test_the_official_client_waits_and_is_let_in(limits_hub: Hub, admin: Admin, member: Member) -> None:
    await admin.limit(member.key_id, 1, "concurrent/now")
    seen: list[int] = []
    told_ms: list[int] = []
    messages = [{"role": "user", "content": "hi"}]
    async with open_streams(member.talk, 1) as [(holder, _)]:
        async with AsyncOpenAI(base_url=limits_hub.api, api_key=member.talk.key, max_retries=0) as client:
            with pytest.raises(RateLimitError) as caught:
                await client.chat.completions.create(model="echo", messages=messages)  # type: ignore[arg-type]
            assert caught.value.code == "rate_limit_exceeded"
            assert float(caught.value.response.headers["retry-after"]) >= 1

        async def heard(response: httpx.Response) -> None:
            seen.append(response.status_code)
            if response.status_code == 429:
                told_ms.append(int(response.headers["retry-after-ms"]))
                holder.connection.hang_up()

        async with AsyncOpenAI(
            base_url=limits_hub.api,
            api_key=member.talk.key,
            max_retries=5,
            http_client=httpx.AsyncClient(event_hooks={"response": [heard]}),
        ) as patient:
            begin = time.monotonic()
            answer = await patient.chat.completions.create(model="echo", messages=messages)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    assert (seen[0], seen[-1]) == (429, 200)
    # It waited as long as it was told to: the rest of the second since it was refused first.
    assert time.monotonic() - begin >= sum(told_ms) / 1000 > 0


async def test_the_official_client_does_not_repeat_what_can_never_fit(
    limits_hub: Hub, admin: Admin, member: Member
) -> None:
    await admin.limit(member.key_id, 10, "tokens/minute")
    seen: list[int] = []

    async def heard(response: httpx.Response) -> None:
        seen.append(response.status_code)

    async with AsyncOpenAI(
        base_url=limits_hub.api,
        api_key=member.talk.key,
        max_retries=5,
        http_client=httpx.AsyncClient(event_hooks={"response": [heard]}),
    ) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "insufficient_quota"
    assert seen == [429]


# --- whose limit --------------------------------------------------------------------------------------------


async def test_limits_of_key_project_and_tenant_hold_together(admin: Admin, member: Member) -> None:
    elsewhere = await admin.post("projects", name="elsewhere", tenant_id=member.tenant_id)
    secrets = [
        (await admin.key(member.tenant_id, project_id))["key"]
        for project_id in (member.project_id, member.project_id, elsewhere["id"])
    ]
    second, third, other = (Talk(admin.talk.url, secret) for secret in secrets)
    for subject_id, limit in ((member.tenant_id, 6), (member.project_id, 4), (member.key_id, 2)):
        await admin.limit(subject_id, limit, "requests/day")
    for talk, let_in, whose in (
        (member.talk, 2, "key"),
        (second, 2, "project"),
        (third, 0, "project"),
        (other, 2, "tenant"),
    ):
        answers = await at_once(talk, 10)
        assert statuses(answers).get(200, 0) == let_in, whose
        refused = {a.error["message"].partition(":")[0] for a in answers if a.status == 429}
        assert refused == {f"Rate limit reached for requests per day of this {whose}"}
    assert (await (await admin.member("stranger")).talk.chat("echo")).status == 200


async def test_a_limit_that_is_changed_or_removed_counts_at_once(admin: Admin, member: Member) -> None:
    limit = await admin.limit(member.key_id, 1, "requests/day")
    assert statuses(await at_once(member.talk, 5)) == {200: 1, 429: 4}
    begin = time.monotonic()
    raised = await admin.limit(member.key_id, 3, "requests/day")
    assert raised["id"] == limit["id"] or (await admin.get("limits"))
    assert statuses(await at_once(member.talk, 5)) == {200: 2, 429: 3}
    await admin.limit(member.key_id, 2, "requests/day")
    assert (await member.talk.chat("echo")).status == 429
    await admin.delete(f"limits/{raised['id']}")
    assert statuses(await at_once(member.talk, 5)) == {200: 5}
    assert time.monotonic() - begin < 10 * SOON_S


@pytest.mark.timeout(300)
async def test_contract_074_a_killed_gateway_forgets_no_count(tmp_path: Path, upstream_url: str) -> None:
    spec = SPEC.format(upstream=upstream_url)
    with running_hub("serve", tmp_path, spec, SETTINGS) as hub:
        admin = Admin(hub.url, hub.admin_key)
        member = await admin.member()
        await admin.limit(member.key_id, 5, "requests/day")
        assert statuses(await at_once(member.talk, 3)) == {200: 3}
        hub.front.kill()
    with running_hub("serve", tmp_path, spec, SETTINGS) as hub:
        talk = Talk(hub.url, member.talk.key)
        assert statuses(await at_once(talk, 20)) == {200: 2, 429: 18}
        hub.front.kill()
    with running_hub("serve", tmp_path, spec, SETTINGS) as hub:
        assert statuses(await at_once(Talk(hub.url, member.talk.key), 5)) == {429: 5}
