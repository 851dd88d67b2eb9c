"""`Idempotency-Key`: one execution for however many requests, and the same answer to each of them."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIStatusError, AsyncOpenAI

from inferhub.gateway.idempotency import LEASE_S
from inferhub.testing.parties import ADMIN, create, make_key, make_party, refused, rows
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import SHAPES, Hub, running_hub
from inferhub.testing.talk import CHAT, Talk, chat_body

SPEC = """\
models:
  - {name: echo, backend: echo, slots: 64}
  - {name: slow, backend: echo, slots: 64, options: {first_token_s: 0.5, gap_s: 0.01}}
  - {name: glacial, backend: echo, slots: 64, options: {first_token_s: 60}}
  - {name: breaks-late, backend: echo, options: {fail_every: 1, fail_at: 2}}
  - {name: broken, backend: echo, options: {fail_every: 1}}
"""


@pytest.fixture(scope="module", params=SHAPES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    settings = {"head_hold_s": 0.1, "worker_refresh_s": 0.1}
    with running_hub(request.param, tmp_path_factory.mktemp(request.param), SPEC, settings) as running:
        yield running


@pytest.fixture
async def caller(hub: Hub) -> Talk:
    """A new tenant's, so that its usage is this test's alone."""
    return (await make_party(Talk(hub.url, hub.admin_key))).admin


def new_key() -> str:
    return secrets.token_hex(12)


async def executed(talk: Talk) -> int:
    """How many calls of this tenant the ledger has, made before now."""
    last = await talk.chat("echo")
    assert last.status == 200, last.body
    deadline_s = time.monotonic() + 20
    # The ledger keeps the order: when this one is in it, so is everything before.
    while last.head["x-request-id"] not in {
        row["request_id"] for row in await rows(talk, f"{ADMIN}/usage/events")
    }:
        assert time.monotonic() < deadline_s, "the call never arrived in the usage"
        await asyncio.sleep(0.05)
    found = (await talk.get(f"{ADMIN}/usage?by=status")).json["data"]
    return sum(row["calls"] for row in found) - 1


def is_replay(answer: Answer) -> bool:
    return answer.head["idempotent-replayed"] == "true"


async def test_twenty_at_once_are_executed_once(caller: Talk) -> None:
    key = new_key()
    body = chat_body("slow", "only once")
    answers = await asyncio.gather(*(caller.post(CHAT, body, idempotency_key=key) for _ in range(20)))
    first = [answer for answer in answers if answer.status == 200 and not is_replay(answer)]
    assert len(first) == 1
    for answer in answers:
        if answer.status == 200:
            assert answer.body == first[0].body
        else:
            refused(answer, 409, "idempotency_key_in_flight", "Idempotency-Key")
            assert answer.head["x-should-retry"] == "false"
    assert any(answer.status == 409 for answer in answers)
    again = await caller.post(CHAT, body, idempotency_key=key)
    assert (again.status, again.body, is_replay(again)) == (200, first[0].body, True)
    assert await executed(caller) == 1


async def test_a_replay_is_the_same_answer_of_another_exchange(caller: Talk) -> None:
    key, body = new_key(), chat_body("echo", "say it again")
    first = await caller.post(CHAT, body, idempotency_key=key, x_request_id="first-of-two")
    again = await caller.post(CHAT, body, idempotency_key=key, x_request_id="second-of-two")
    assert first.head["idempotent-replayed"] is None
    assert (again.status, again.body, is_replay(again)) == (200, first.body, True)
    assert (first.head["x-request-id"], again.head["x-request-id"]) == ("first-of-two", "second-of-two")
    for name in ("content-type", "content-length", "x-inferhub-model", "x-inferhub-upstream"):
        assert again.head[name] == first.head[name], name
    # Neither the client's own way of writing the address nor the key's own case make it another request.
    slash = await caller.post(f"{CHAT}/", body, idempotency_key=key)
    assert is_replay(slash)


async def test_a_stream_is_replayed_byte_by_byte(caller: Talk) -> None:
    key = new_key()
    body = chat_body("slow", "one two three four", stream=True, stream_options={"include_usage": True})
    first = await caller.post(CHAT, body, idempotency_key=key)
    again = await caller.post(CHAT, body, idempotency_key=key)
    assert first.body.endswith(b"data: [DONE]\n\n")
    assert is_replay(again)
    assert again.body == first.body
    assert again.head["content-type"] == first.head["content-type"]
    assert await executed(caller) == 1


async def test_another_request_under_the_same_key_is_a_conflict(caller: Talk) -> None:
    key = new_key()
    assert (await caller.post(CHAT, chat_body("echo", "this"), idempotency_key=key)).status == 200
    for path, body in (
        (CHAT, chat_body("echo", "that")),
        (CHAT, chat_body("echo", "this", stream=True)),
        (f"{ADMIN}/projects", {"name": "p"}),
    ):
        answer = await caller.post(path, body, idempotency_key=key)
        refused(answer, 409, "idempotency_key_reused", "Idempotency-Key")
        assert answer.head["x-should-retry"] == "false"
    assert await executed(caller) == 1


async def test_keys_are_each_tenants_own_and_rights_are_not_lent(hub: Hub, caller: Talk) -> None:
    other = (await make_party(Talk(hub.url, hub.admin_key))).admin
    key, body = new_key(), chat_body("echo", "whose is it")
    assert (await caller.post(CHAT, body, idempotency_key=key)).status == 200
    theirs = await other.post(CHAT, body, idempotency_key=key)
    assert (theirs.status, is_replay(theirs)) == (200, False)
    # Within the tenant: a key with the same rights goes on, one with fewer gets nobody else's answer.
    _, twin = await make_key(caller, role="tenant_admin")
    assert is_replay(await twin.post(CHAT, body, idempotency_key=key))
    for less in ({"models": ["slow"]}, {"scopes": ["inference:embedding"]}, {"role": "enterprise"}):
        _, weaker = await make_key(caller, **{"role": "tenant_admin", **less})
        refused(
            await weaker.post(CHAT, body, idempotency_key=key),
            409,
            "idempotency_key_reused",
            "Idempotency-Key",
        )


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "x" * 256, "a\tb"])
async def test_an_unusable_key_is_refused(caller: Talk, key: str) -> None:
    answer = await caller.post(CHAT, chat_body("echo"), idempotency_key=key)
    refused(answer, 400, "invalid_value", "Idempotency-Key")


async def test_refusals_and_failures_are_not_kept(hub: Hub, caller: Talk) -> None:
    key = new_key()
    bad = {"model": "echo", "messages": "nonsense"}
    for _ in range(2):
        answer = await caller.post(CHAT, bad, idempotency_key=key)
        assert (answer.status, answer.head["idempotent-replayed"]) == (400, None)
    assert (await caller.post(CHAT, chat_body("echo"), idempotency_key=key)).status == 200
    key = new_key()
    for _ in range(2):
        answer = await caller.post(CHAT, chat_body("broken"), idempotency_key=key)
        assert answer.status >= 500
        assert answer.head["idempotent-replayed"] is None
    # A limit of one a day: used up, then raised.
    key_id, limited = await make_key(caller)
    bound = {"level": "key", "subject_id": key_id, "unit": "requests", "window": "day"}
    await create(caller, "limits", **bound, limit=1, mode="exact")
    assert (await limited.chat("echo")).status == 200
    key = new_key()
    assert (await limited.post(CHAT, chat_body("echo"), idempotency_key=key)).status == 429
    await create(caller, "limits", **bound, limit=10, mode="exact")
    answer = await limited.post(CHAT, chat_body("echo"), idempotency_key=key)
    assert (answer.status, is_replay(answer)) == (200, False)


async def test_a_stream_that_broke_is_not_kept(caller: Talk) -> None:
    key, body = new_key(), chat_body("breaks-late", "one two three four", stream=True)
    for _ in range(2):
        answer = await caller.post(CHAT, body, idempotency_key=key)
        assert b'data: {"error":' in answer.body
        assert answer.head["idempotent-replayed"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_after_a_hang_up_the_next_one_is_executed(caller: Talk, stream: bool) -> None:
    key = new_key()
    body = chat_body("slow", " ".join(["word"] * 400), stream=stream)
    async with caller.opened(CHAT, body, idempotency_key=key) as call:
        if stream:
            await call.head()
        else:
            await until_in_flight(caller, key)
    deadline_s = time.monotonic() + 20
    while (answer := await caller.post(CHAT, body, idempotency_key=key)).status == 409:
        assert time.monotonic() < deadline_s, answer.body
        await asyncio.sleep(0.05)
    assert (answer.status, is_replay(answer)) == (200, False)


async def until_in_flight(talk: Talk, key: str) -> None:
    """Wait until a request with this key runs; those that come before it fail, which leaves no trace."""
    deadline_s = time.monotonic() + 20
    while (answer := await talk.post(CHAT, chat_body("broken"), idempotency_key=key)).status != 409:
        assert time.monotonic() < deadline_s, answer.body
    refused(answer, 409, "idempotency_key_reused", "Idempotency-Key")


async def test_the_official_client_retries_into_one_execution(hub: Hub, caller: Talk) -> None:
    key = new_key()
    async with AsyncOpenAI(base_url=hub.api, api_key=caller.key, max_retries=5) as openai:

        async def ask() -> str | None:
            try:
                answer = await openai.chat.completions.create(
                    model="slow",
                    messages=[{"role": "user", "content": "one charge"}],
                    extra_headers={"Idempotency-Key": key},
                )
            except APIStatusError as error:
                assert (error.status_code, error.code) == (409, "idempotency_key_in_flight")
                return None
            return answer.choices[0].message.content

        said = await asyncio.gather(*(ask() for _ in range(20)))
    assert {text for text in said if text is not None} == {"one charge"}
    assert await executed(caller) == 1


async def test_admin_routes_are_executed_once_too(hub: Hub, caller: Talk) -> None:
    key = new_key()
    answers = [
        await caller.post(f"{ADMIN}/projects", {"name": "once"}, idempotency_key=key) for _ in range(3)
    ]
    assert [answer.status for answer in answers] == [201] * 3
    assert len({answer.body for answer in answers}) == 1
    assert [is_replay(answer) for answer in answers] == [False, True, True]
    assert sum(row["name"] == "once" for row in await rows(caller, f"{ADMIN}/projects")) == 1


async def test_a_new_api_key_is_made_once_and_its_secret_is_kept_nowhere(hub: Hub, caller: Talk) -> None:
    key = new_key()
    made = await caller.post(f"{ADMIN}/keys", {"name": "once"}, idempotency_key=key)
    assert made.status == 201
    again = await caller.post(f"{ADMIN}/keys", {"name": "once"}, idempotency_key=key)
    assert "shown once" in refused(again, 409, "idempotency_key_not_replayable", "Idempotency-Key")
    assert sum(row["name"] == "once" for row in await rows(caller, f"{ADMIN}/keys")) == 1
    secret = made.json["key"].rpartition("_")[2].encode()
    for path in (path for path in hub.data_dir.rglob("*") if path.is_file()):
        assert secret not in path.read_bytes(), path


async def test_what_was_answered_before_a_restart_is_answered_after_it(tmp_path: Path) -> None:
    key, body = new_key(), chat_body("echo", "before and after")
    with running_hub("serve", tmp_path, SPEC) as hub:
        talk = Talk(hub.url, hub.admin_key)
        first = await talk.post(CHAT, body, idempotency_key=key)
        # One is running when the process dies.
        killed = new_key()
        async with talk.opened(CHAT, chat_body("glacial"), idempotency_key=killed):
            await until_in_flight(talk, killed)
            hub.front.send(signal.SIGKILL)
            hub.front.wait()
        died_at = time.monotonic()
    with running_hub("serve", tmp_path, SPEC) as hub:
        talk = Talk(hub.url, hub.admin_key)
        again = await talk.post(CHAT, body, idempotency_key=key)
        assert (again.status, again.body, is_replay(again)) == (200, first.body, True)
        # Nobody can know how far it came: until its lease ends, it counts as running.
        answer = await talk.post(CHAT, chat_body("glacial"), idempotency_key=killed)
        if time.monotonic() - died_at < LEASE_S / 2:
            refused(answer, 409, "idempotency_key_in_flight", "Idempotency-Key")
