"""Three ledgers: what the upstream produced ≥ what was billed ≥ what the client received.

They are equal where nobody hangs up. The upstream's is its own log, the billed one is read over the admin
API, and what was received is counted off the wire.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.admin import Admin, Member, billed, check_classes, ended
from inferhub.testing.raw_http import Connection, Head
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import CHAT, EMBEDDINGS, Talk, chat_body, chunks
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
  - {{name: glacial, backend: echo, slots: 4, options: {{first_token_s: 600}}}}
  - {{name: flaky, backend: echo, options: {{fail_every: 2}}}}
  - {{name: free, backend: echo}}
  - {{name: remote, backend: openai_compatible, slots: 64, options: {{base_url: "{upstream}"}}}}
prices:
  - {{model: remote, input_per_mtok: 2.5, cached_input_per_mtok: 0.25, output_per_mtok: 10,
     reasoning_per_mtok: 20, per_request: "0.000001"}}
  - {{model: flaky, input_per_mtok: 1, output_per_mtok: 2}}
"""
SETTINGS: dict[str, object] = {
    "first_token_timeout_s": 4,
    "idle_timeout_s": 4,
    "head_hold_s": 0.2,
    "ping_interval_s": 0.5,
    "drain_grace_s": 20,
    # What fails here on purpose must not be left alone for the next test.
    "breaker_failures": 0,
}
MTOK = Decimal(10**6)
PROMPT, CACHED = 7, 3
"""What the scripted upstream reports of every prompt."""
SILENT = "script:hdr_ms=600000"


@pytest.fixture(scope="module")
def ledger_hub(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    spec = SPEC.format(upstream=upstream_url)
    with running_hub("serve", tmp_path_factory.mktemp("ledger"), spec, SETTINGS) as running:
        yield running


@pytest.fixture
def admin(ledger_hub: Hub) -> Admin:
    return Admin(ledger_hub.url, ledger_hub.admin_key)


@pytest.fixture
async def member(admin: Admin) -> Member:
    """A tenant of this test alone, so that its ledger is this test's."""
    return await admin.member()


async def ledger(admin: Admin, member: Member, count: int) -> list[dict[str, Any]]:
    """The member's events once there are `count`; more would be doubles. Each is checked in itself."""
    events = await admin.events(ended(count), tenant_id=member.tenant_id)
    assert len(events) == count, events
    assert len({event["id"] for event in events}) == count
    for event in events:
        assert event["id"].startswith("call_")
        check_classes(event)
        if event["model"] == "remote" and event["cache"] != "hit":
            assert Decimal(event["cost_usd"]) == cost_of(event), event
    return events


def cost_of(event: dict[str, Any]) -> Decimal:
    if not event["total_tokens"]:
        return Decimal(0)
    tokens = (
        event["input_tokens"] * Decimal("2.5")
        + event["cached_tokens"] * Decimal("0.25")
        + event["output_tokens"] * 10
        + event["reasoning_tokens"] * 20
    )
    return tokens / MTOK + Decimal("0.000001")


def words(events: Sequence[Any]) -> int:
    """Pieces of text in a stream, each a token of the scripted upstream."""
    choices = (choice for chunk in chunks(list(events)) for choice in chunk.get("choices", ()))
    return sum(1 for choice in choices if choice["delta"].get("content"))


async def read_words(connection: Connection, head: Head, count: int) -> int:
    """Read until `count` tokens have come; how many have."""
    seen = 0
    async for event in connection.events(head):
        seen += words([event])
        if seen >= count:
            break
    return seen


# --- nobody hangs up: all three are equal -------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_finished_call(admin: Admin, member: Member, upstream: Upstream, stream: bool) -> None:
    body = chat_body("remote", stream=stream, user="script:n=11")
    async with member.talk.opened(CHAT, body) as call:
        head = await call.head()
        assert head.status == 200
        if stream:
            received = await read_words(call.connection, head, 10**6)
        else:
            await call.connection.body(head)
            received = 11
    assert received == 11
    (event,) = await ledger(admin, member, 1)
    record = await upstream.wait_for(call.request_id, lambda r: r.done_s)
    assert not stream or record.pieces >= 11
    assert billed(event) == received
    assert (event["status"], event["source"], event["is_stream"]) == ("ok", "reported", stream)
    assert (event["input_tokens"], event["cached_tokens"]) == (PROMPT - CACHED, CACHED)
    assert (event["request_id"], event["key_id"], event["project_id"]) == (
        call.request_id,
        member.key_id,
        member.project_id,
    )
    if not stream:
        assert Decimal(head["x-inferhub-cost-usd"] or "") == Decimal(event["cost_usd"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_reported_classes_land_where_they_belong(admin: Admin, member: Member, stream: bool) -> None:
    body = chat_body("remote", stream=stream, user="script:n=9,cached=5,reasoning=4")
    assert (await member.talk.post(CHAT, body)).status == 200
    (event,) = await ledger(admin, member, 1)
    classes = [event[f"{name}_tokens"] for name in ("input", "cached", "output", "reasoning", "total")]
    assert classes == [2, 5, 5, 4, 16]


async def test_impossible_classes_are_billed_as_an_estimate_that_adds_up(
    admin: Admin, member: Member
) -> None:
    body = chat_body("remote", user="script:n=3,cached=500,reasoning=400")
    assert (await member.talk.post(CHAT, body)).status == 200
    (event,) = await ledger(admin, member, 1)
    assert event["source"] == "estimated"
    assert event["total_tokens"] == PROMPT + 3


async def test_an_upstream_that_does_not_count_is_not_free(admin: Admin, member: Member) -> None:
    script = "script:n=6,mode=usage_missing"
    events = await member.talk.stream("remote", user=script)
    whole = await member.talk.chat("remote", user=script)
    text = whole.json["choices"][0]["message"]["content"]
    streamed, unary = await ledger(admin, member, 2)
    assert {event["source"] for event in (streamed, unary)} == {"estimated"}
    assert billed(streamed) == words(events) == 6
    # Without a tokenizer: four characters a token.
    assert billed(unary) == len(text) // 4 >= 6
    assert Decimal(whole.head["x-inferhub-cost-usd"] or "") == Decimal(unary["cost_usd"])


async def test_a_retried_call_is_one_call(admin: Admin, member: Member) -> None:
    """Every second answer of `flaky` fails, so of these some need a second attempt; each is charged once."""
    for _ in range(4):
        answer = await member.talk.chat("flaky", "one two three")
        assert answer.status == 200
    events = await ledger(admin, member, 4)
    assert sorted({event["attempts"] for event in events}) == [1, 2]
    assert {event["status"] for event in events} == {"ok"}
    assert len({event["cost_usd"] for event in events}) == 1


async def test_an_answer_from_the_cache_costs_nothing(
    admin: Admin, member: Member, upstream: Upstream
) -> None:
    body = chat_body("remote", f"cached for {member.key_id}", temperature=0, user="script:n=5")
    for expected in ("miss", "hit"):
        answer = await member.talk.post(CHAT, body, x_request_id=f"{expected}_{member.key_id}")
        assert answer.head["x-inferhub-cache"] == expected
    assert Decimal(answer.head["x-inferhub-cost-usd"] or "1") == 0
    miss, hit = await ledger(admin, member, 2)
    assert (miss["cache"], billed(miss), hit["cache"], hit["total_tokens"]) == ("miss", 5, "hit", 0)
    assert (Decimal(hit["cost_usd"]), hit["status"]) == (0, "ok")
    # An upstream knows a call by its name in the ledger, and which model it was.
    asked = [record.id.partition("-")[0] for record in await upstream.log()]
    assert [name for name in asked if name in (miss["id"], hit["id"])] == [miss["id"]]


async def test_a_request_id_of_the_client_s_choice_names_no_bill(admin: Admin, member: Member) -> None:
    stranger = await admin.member("stranger")
    for talk in (member.talk, member.talk, stranger.talk):
        answer = await talk.post(CHAT, chat_body("remote", user="script:n=4"), x_request_id="mine-to-choose")
        assert answer.status == 200
    events = await ledger(admin, member, 2)
    assert [(event["request_id"], billed(event)) for event in events] == [("mine-to-choose", 4)] * 2
    (other,) = await ledger(admin, stranger, 1)
    assert other["id"] not in {event["id"] for event in events}


async def test_many_calls_at_once(admin: Admin, member: Member, upstream: Upstream) -> None:
    async def one(number: int) -> tuple[str, int]:
        stream = number % 2 == 0
        body = chat_body("remote", stream=stream, user=f"script:n={number},gap_ms=1")
        async with member.talk.opened(CHAT, body) as call:
            head = await call.head()
            assert head.status == 200
            if stream:
                return call.request_id, await read_words(call.connection, head, 10**6)
            await call.connection.body(head)
            return call.request_id, number

    received = dict(await asyncio.gather(*(one(number) for number in range(1, 41))))
    events = await ledger(admin, member, 40)
    assert {event["request_id"]: billed(event) for event in events} == received
    assert sum(received.values()) == sum(range(1, 41))


# --- the upstream fails, or takes too long --------------------------------------------------------


@pytest.mark.parametrize("mode", ["rst", "error", "half_json", "garbage", "noterm", "bad_chunk"])
async def test_an_upstream_that_fails_mid_stream(
    admin: Admin, member: Member, upstream: Upstream, mode: str
) -> None:
    """Nobody hung up, so what was billed is what was received."""
    body = chat_body("remote", stream=True, user=f"script:n=20,gap_ms=5,fail_at=4,mode={mode}")
    async with member.talk.opened(CHAT, body) as call:
        head = await call.head()
        events = [event async for event in call.connection.events(head)]
    assert "error" in events[-1].json
    (event,) = await ledger(admin, member, 1)
    record = await upstream.wait_for(call.request_id)
    assert record.pieces >= billed(event) == words(events) <= 4
    assert (event["status"], event["source"]) == (events[-1].json["error"]["code"], "estimated")


async def test_an_upstream_that_fails_before_it_says_anything(
    admin: Admin, member: Member, upstream: Upstream
) -> None:
    """Tried twice, charged nothing; what it did before it failed is not known."""
    answer = await member.talk.chat("remote", user="script:mode=500")
    assert answer.status == 502
    (event,) = await ledger(admin, member, 1)
    assert (event["status"], event["attempts"], event["source"]) == (answer.error["code"], 2, "unknown")
    assert (event["total_tokens"], Decimal(event["cost_usd"])) == (0, 0)


@pytest.mark.parametrize(
    ("script", "words_said", "source"),
    [("hdr_ms=600000", 0, "unknown"), ("n=9,fail_at=3,mode=hang", 3, "estimated")],
    ids=["first token", "idle"],
)
async def test_a_call_that_runs_out_of_time(
    admin: Admin, member: Member, script: str, words_said: int, source: str
) -> None:
    body = chat_body("remote", stream=True, user=f"script:{script}")
    async with member.talk.opened(CHAT, body) as call:
        head = await call.head()
        events = [event async for event in call.connection.events(head)]
    assert events[-1].json["error"]["code"] == "endpoint_stalled"
    (event,) = await ledger(admin, member, 1)
    assert (event["status"], event["source"]) == ("endpoint_stalled", source)
    assert billed(event) == words(events) == words_said


# --- the client hangs up --------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaving:
    """When a client hangs up."""

    script: str
    stream: bool = True
    words: int = 0
    """What it reads before."""


@pytest.mark.parametrize(
    "leaving",
    [
        pytest.param(Leaving("hdr_ms=600000"), id="before headers"),
        pytest.param(Leaving("ttft_ms=600000"), id="before the first token"),
        pytest.param(Leaving("n=400,gap_ms=10", words=3), id="mid-stream"),
        pytest.param(Leaving("ttft_ms=600000", stream=False), id="whole"),
    ],
)
async def test_a_client_that_hangs_up(
    admin: Admin, member: Member, upstream: Upstream, leaving: Leaving
) -> None:
    body = chat_body("remote", stream=leaving.stream, user=f"script:{leaving.script}")
    async with member.talk.opened(CHAT, body) as call:
        await upstream.wait_for(call.request_id)
        received = 0
        if leaving.words:
            received = await read_words(call.connection, await call.head(), leaving.words)
        call.connection.hang_up()
    (event,) = await ledger(admin, member, 1)
    record = await upstream.wait_for(call.request_id, lambda r: r.abort_s)
    assert record.pieces >= billed(event) >= received >= leaving.words
    assert (event["status"], event["source"]) == ("cancelled", "estimated" if leaving.words else "unknown")
    if not leaving.words:
        assert (event["total_tokens"], Decimal(event["cost_usd"])) == (0, 0)


async def test_a_client_that_hangs_up_while_its_call_waits_for_a_slot(
    ledger_hub: Hub, admin: Admin, member: Member
) -> None:
    """Nothing was computed for the one in the queue, and it is written down all the same."""
    async with (
        member.talk.opened(CHAT, chat_body("glacial")),
        member.talk.opened(CHAT, chat_body("glacial")),
        member.talk.opened(CHAT, chat_body("glacial")),
        member.talk.opened(CHAT, chat_body("glacial")),
        member.talk.opened(CHAT, chat_body("glacial")),
    ):
        await admin.until(_load(admin, "glacial"), lambda load: load == (4, 1))
    events = await ledger(admin, member, 5)
    assert {event["status"] for event in events} == {"cancelled"}
    assert {event["total_tokens"] for event in events} == {0}


def _load(admin: Admin, model: str) -> Any:
    async def ask() -> tuple[int, int]:
        for worker in (await admin.get("workers"))["data"]:
            for found in worker.get("models", ()):
                if found["name"] == model:
                    return found["running"], found["queued"]
        return 0, 0

    return ask


# --- refused -------------------------------------------------------------------------------------


async def test_a_call_that_was_refused_is_not_in_the_ledger(admin: Admin, member: Member) -> None:
    chats = await admin.key(member.tenant_id, member.project_id, scopes=["inference:chat"])
    chat_only = Talk(admin.talk.url, chats["key"])
    await admin.limit(chats["id"], 1, "requests/day")
    refusals = [
        await Talk(admin.talk.url, "ih_nobody_" + "x" * 32).chat("remote"),
        await chat_only.post(EMBEDDINGS, {"model": "echo", "input": "x"}),
        await member.talk.post(CHAT, {"model": "remote", "messages": "x"}),
    ]
    assert (await chat_only.chat("remote", user="script:n=2")).status == 200
    refusals.append(await chat_only.chat("remote"))
    assert [answer.status for answer in refusals] == [401, 403, 400, 429]
    (event,) = await ledger(admin, member, 1)
    assert (event["key_id"], billed(event)) == (chats["id"], 2)


async def test_a_model_that_does_not_exist_is_refused_before_anything_is_written(
    admin: Admin, member: Member
) -> None:
    """What the client called it is the client's own text: it is told back, and kept nowhere."""
    assert (await member.talk.chat("=cmd|' /C calc'!A0")).status == 404
    assert (await member.talk.chat("remote", user="script:n=2")).status == 200
    (event,) = await ledger(admin, member, 1)
    assert (event["model"], event["status"]) == ("remote", "ok")


# --- the process dies ------------------------------------------------------------------------------


@dataclass
class Grave:
    """A hub of its own, that is killed and started again on its data."""

    folder: Path
    upstream: Upstream
    received: dict[str, int] = field(default_factory=dict)
    """Tokens by request id, for every call whose answer began."""
    produced: dict[str, int] = field(default_factory=dict)

    def running(self) -> Any:
        return running_hub("serve", self.folder, SPEC.format(upstream=self.upstream.url), SETTINGS)

    async def note_upstream(self) -> None:
        """Every answer it began; a whole one counts eight words, the script's default."""
        for record in await self.upstream.log():
            body = json.loads(record.body)
            self.produced[body["user"].partition(";")[2]] = record.pieces if body.get("stream") else 8
        await self.upstream.reset()

    async def events(self, admin: Admin, member: Member) -> list[dict[str, Any]]:
        """Once every call that anybody knows of is there."""
        known = {*self.received, *self.produced}

        async def missing() -> tuple[set[str], list[dict[str, Any]]]:
            events = await admin.all_rows("usage/events", tenant_id=member.tenant_id)
            return known - {event["request_id"] for event in events}, events

        return (await admin.until(missing, lambda found: not found[0]))[1]

    def check(self, events: Sequence[dict[str, Any]]) -> None:
        by_request = {event["request_id"]: event for event in events}
        assert len(by_request) == len(events) == len({event["id"] for event in events}), "billed twice"
        for request_id, event in by_request.items():
            check_classes(event)
            produced, received = self.produced.get(request_id, 0), self.received.get(request_id, 0)
            assert produced >= billed(event) >= received, (request_id, produced, event, received)


@pytest.fixture
async def grave(tmp_path: Path) -> AsyncIterator[Grave]:
    async with Upstream() as upstream:
        yield Grave(tmp_path, upstream)


async def _drive(grave: Grave, talk: Talk, name: str) -> None:
    """One client after the other, whole answers and streams, until the server is gone."""
    number = 0
    with suppress(OSError, asyncio.IncompleteReadError, AssertionError):
        while True:
            number += 1
            request_id = f"ledger-{name}-{number:04}"
            stream = number % 3 != 0
            body = chat_body("remote", stream=stream, user=f"script:gap_ms=6;{request_id}")
            async with talk.opened(CHAT, body, **{"x-request-id": request_id}) as call:
                head = await call.head()
                if head.status != 200:
                    return
                grave.received[request_id] = 0
                if not stream:
                    await call.connection.body(head)
                    grave.received[request_id] = 8
                    continue
                async for event in call.connection.events(head):
                    grave.received[request_id] += words([event])


async def _load_for(grave: Grave, talk: Talk, name: str, calls: int) -> list[asyncio.Task[None]]:
    """Clients that go on asking, once so many calls of theirs have begun."""
    before = len(grave.received)
    clients = [asyncio.create_task(_drive(grave, talk, f"{name}-{i}")) for i in range(5)]
    while len(grave.received) < before + calls:
        assert not all(client.done() for client in clients), "the clients gave up"
        await asyncio.sleep(0.005)
    return clients


async def test_a_kill_mid_stream_bills_what_was_delivered_once(grave: Grave) -> None:
    with grave.running() as hub:
        admin = Admin(hub.url, hub.admin_key)
        member = await admin.member()
        budget = await admin.limit(member.key_id, "5", "usd/day")
        body = chat_body("remote", stream=True, user="script:n=100000,gap_ms=10", max_tokens=100)
        async with member.talk.opened(CHAT, body) as call:
            head = await call.head()
            received = await read_words(call.connection, head, 5)
            hub.front.kill()
            with suppress(OSError, asyncio.IncompleteReadError):
                async for event in call.connection.events(head):
                    received += words([event])
    record = await grave.upstream.wait_for(call.request_id, lambda r: r.abort_s)

    for _ in range(2):
        with grave.running() as hub:
            admin = Admin(hub.url, hub.admin_key)
            (event,) = await ledger(admin, member, 1)
            assert (event["status"], event["source"]) == ("lost", "estimated")
            assert record.pieces >= billed(event) >= received >= 5
            cost = Decimal(event["cost_usd"])
            assert cost == cost_of(event) > 0

            # In place of what it held; a second start charges nothing more.
            await _charged(admin, budget["id"], cost)


async def _charged(admin: Admin, limit_id: str, cost: Decimal) -> None:
    await admin.until(lambda: admin.level(limit_id), lambda level: Decimal(level["used"]) == cost)


@pytest.mark.parametrize(
    "kills", [pytest.param(2, id="2"), pytest.param(10, id="10", marks=[pytest.mark.slow])]
)
@pytest.mark.timeout(900)
async def test_kills_at_random_times_under_load_lose_and_double_nothing(grave: Grave, kills: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    member: Member | None = None
    for round_ in range(kills):
        with grave.running() as hub:
            if member is None:
                member = await Admin(hub.url, hub.admin_key).member()
            talk = Talk(hub.url, member.talk.key)
            clients = await _load_for(grave, talk, f"r{round_}", 10)
            await asyncio.sleep(chance.random())
            hub.front.kill()
            await asyncio.gather(*clients)
        await grave.note_upstream()
    assert member is not None
    with grave.running() as hub:
        admin = Admin(hub.url, hub.admin_key)
        events = await grave.events(admin, member)
    grave.check(events)
    assert {event["status"] for event in events} == {"ok", "lost"}
    print(f"{len(events)} calls, {sum(event['status'] == 'lost' for event in events)} of them cut off")


async def test_a_stop_loses_nothing_and_cuts_nothing_off(grave: Grave) -> None:
    with grave.running() as hub:
        member = await Admin(hub.url, hub.admin_key).member()
        clients = await _load_for(grave, member.talk, "s", 10)
        hub.front.send(signal.SIGTERM)
        assert await asyncio.to_thread(hub.front.wait) == 0
        await asyncio.gather(*clients)
    await grave.note_upstream()
    with grave.running() as hub:
        events = await grave.events(Admin(hub.url, hub.admin_key), member)
    grave.check(events)
    assert {event["status"] for event in events} == {"ok"}
    assert {event["request_id"]: billed(event) for event in events} == grave.received
