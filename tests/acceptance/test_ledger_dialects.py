"""The three ledgers in the other dialects: Anthropic's messages and OpenAI's responses, over either upstream.

As in `test_ledger`: what the upstream produced ≥ what was billed ≥ what the client received, equal where
nobody hangs up, and what the answer itself says of its usage is what was billed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.admin import Admin, Member, billed, check_classes, ended
from inferhub.testing.client_dialects import ANTHROPIC, RESPONSES, ClientDialect, Outcome, data_of, put
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import Opened
from inferhub.testing.upstream_player import Record
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - {{name: remote, backend: openai_compatible, slots: 64, options: {{base_url: "{upstream}"}}}}
  - {{name: responds, backend: openai_compatible, slots: 64,
     options: {{base_url: "{upstream}", responses: true}}}}
  - {{name: claude, backend: anthropic, slots: 64, options: {{base_url: "{upstream}", api_key: sk-ant-x}}}}
prices:
"""
PRICES = (
    "{{input_per_mtok: 2, cached_input_per_mtok: 1, output_per_mtok: 10, reasoning_per_mtok: 20, model: %s}}"
)
SPEC += "".join(f"  - {PRICES % model}\n" for model in ("remote", "responds", "claude"))
SETTINGS: dict[str, object] = {
    "first_token_timeout_s": 30,
    "idle_timeout_s": 4,
    "head_hold_s": 0.2,
    "ping_interval_s": 0.5,
    "breaker_failures": 0,
}
MTOK = Decimal(10**6)
OPENINGS = {"openai": 0, "anthropic": 3, "responses": 4}
"""Events of each of the upstream's dialects before the first word."""


@dataclass(frozen=True)
class Lane:
    """A client's dialect, and a model whose upstream speaks the same or another."""

    client: ClientDialect
    model: str

    def body(self, script: str) -> dict[str, Any]:
        return self.client.ask(self.model, f"script:{script};{secrets.token_hex(4)}")

    def words(self, data: str | None) -> int:
        return len(self.client.text(json.loads(data)).split()) if data else 0


LANES = {
    "messages over chat": Lane(ANTHROPIC, "remote"),
    "messages over messages": Lane(ANTHROPIC, "claude"),
    "responses over chat": Lane(RESPONSES, "remote"),
    "responses over responses": Lane(RESPONSES, "responds"),
}
every_lane = pytest.mark.parametrize("lane", LANES.values(), ids=LANES.keys())
every_form = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def ledger_hub(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    spec = SPEC.format(upstream=upstream_url)
    with running_hub("serve", tmp_path_factory.mktemp("dialects"), spec, SETTINGS) as running:
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
    assert len(events) == len({event["id"] for event in events}) == count, events
    for event in events:
        check_classes(event)
        cost = (
            event["input_tokens"] * 2
            + event["cached_tokens"]
            + event["output_tokens"] * 10
            + event["reasoning_tokens"] * 20
        )
        assert Decimal(event["cost_usd"]) == cost / MTOK, event
    return events


def produced(record: Record) -> int:
    """At most so many words of a stream were handed to the socket."""
    return max(0, record.pieces - OPENINGS[record.dialect])


def told(outcome: Outcome) -> dict[str, Any]:
    """The usage that the answer itself names, the last one of a stream."""
    found = [event.get("usage") or (event.get("response") or {}).get("usage") for event in outcome.events]
    usage: dict[str, Any] = [usage for usage in found if usage][-1]
    return usage


async def read_words(lane: Lane, call: Opened, count: int) -> int:
    """Read until `count` words have come; how many have."""
    head = await call.head()
    assert head.status == 200, head
    seen = 0
    async for event in call.connection.events(head):
        seen += lane.words(data_of(event))
        if seen >= count:
            break
    return seen


# --- nobody hangs up -------------------------------------------------------------------------------


@every_lane
@every_form
async def test_a_finished_call(
    admin: Admin, member: Member, upstream: Upstream, lane: Lane, stream: bool
) -> None:
    outcome = await put(lane.client, member.talk, lane.body("n=11"), stream=stream)
    assert outcome.is_complete
    (event,) = await ledger(admin, member, 1)
    record = await upstream.wait_for(outcome.request_id, lambda r: r.done_s)
    assert billed(event) == len(outcome.text.split()) == told(outcome)["output_tokens"] == 11
    assert not stream or produced(record) >= 11
    assert (event["status"], event["source"], event["is_stream"]) == ("ok", "reported", stream)
    assert (event["request_id"], event["key_id"]) == (outcome.request_id, member.key_id)
    if not stream:
        assert Decimal(outcome.headers["x-inferhub-cost-usd"]) == Decimal(event["cost_usd"])


@every_lane
@every_form
async def test_reported_classes_land_where_they_belong(
    admin: Admin, member: Member, lane: Lane, stream: bool
) -> None:
    body = lane.body("n=9,cached=4,reasoning=4")
    outcome = await put(lane.client, member.talk, body, stream=stream)
    assert outcome.is_complete
    (event,) = await ledger(admin, member, 1)
    classes = [event[f"{name}_tokens"] for name in ("input", "cached", "output", "reasoning", "total")]
    assert classes == [3, 4, 5, 4, 16]


@every_lane
@every_form
async def test_an_upstream_that_does_not_count_is_not_free(
    admin: Admin, member: Member, lane: Lane, stream: bool
) -> None:
    body = lane.body("n=6,mode=usage_missing")
    outcome = await put(lane.client, member.talk, body, stream=stream)
    assert outcome.is_complete
    (event,) = await ledger(admin, member, 1)
    assert (event["status"], event["source"]) == ("ok", "estimated")
    assert billed(event) >= len(outcome.text.split()) == 6


# --- the upstream fails ------------------------------------------------------------------------------


@every_lane
@pytest.mark.parametrize("mode", ["rst", "error", "half_json", "garbage", "noterm"])
async def test_an_upstream_that_fails_mid_stream(
    admin: Admin, member: Member, upstream: Upstream, lane: Lane, mode: str
) -> None:
    """Nobody hung up, so what was billed is what was received."""
    body = lane.body(f"n=20,gap_ms=5,fail_at=4,mode={mode}")
    outcome = await put(lane.client, member.talk, body, stream=True)
    assert outcome.error is not None
    assert not outcome.is_complete
    (event,) = await ledger(admin, member, 1)
    record = await upstream.wait_for(outcome.request_id, lambda r: r.done_s)
    received = len(outcome.text.split())
    assert billed(event) == received <= 4 <= produced(record)
    # A reset may overtake what was sent before it.
    assert received == 4 or mode == "rst"
    assert (event["status"], event["source"], event["attempts"]) == ("upstream_error", "estimated", 1)


@every_lane
@pytest.mark.parametrize("mode", ["rst", "half_json", "500"])
async def test_an_upstream_that_fails_before_it_says_anything(
    admin: Admin, member: Member, upstream: Upstream, lane: Lane, mode: str
) -> None:
    """Asked twice, charged nothing; what it did before it failed is not known."""
    outcome = await put(lane.client, member.talk, lane.body(f"mode={mode}"), stream=False)
    assert (outcome.status, outcome.is_complete) == (502, False)
    (event,) = await ledger(admin, member, 1)
    assert (event["status"], event["source"], event["attempts"]) == ("upstream_error", "unknown", 2)
    assert (event["total_tokens"], Decimal(event["cost_usd"])) == (0, 0)
    assert len(await upstream.records(outcome.request_id)) == 2


@every_lane
async def test_an_upstream_that_falls_silent(admin: Admin, member: Member, lane: Lane) -> None:
    outcome = await put(lane.client, member.talk, lane.body("n=9,fail_at=3,mode=hang"), stream=True)
    assert outcome.error is not None
    (event,) = await ledger(admin, member, 1)
    assert (event["status"], event["source"]) == ("endpoint_stalled", "estimated")
    assert billed(event) == len(outcome.text.split()) == 3


# --- the client hangs up -----------------------------------------------------------------------------


@every_lane
async def test_a_client_that_hangs_up_mid_stream(
    admin: Admin, member: Member, upstream: Upstream, lane: Lane
) -> None:
    body = {**lane.body("n=400,gap_ms=10"), "stream": True}
    async with member.talk.opened(lane.client.path, body) as call:
        received = await read_words(lane, call, 3)
        call.connection.hang_up()
    (event,) = await ledger(admin, member, 1)
    record = await upstream.wait_for(call.request_id, lambda r: r.abort_s)
    assert produced(record) >= billed(event) >= received >= 3
    assert billed(event) < 400
    assert (event["status"], event["source"]) == ("cancelled", "estimated")


@every_lane
@every_form
async def test_a_client_that_hangs_up_before_anything_was_said(
    admin: Admin, member: Member, upstream: Upstream, lane: Lane, stream: bool
) -> None:
    body = {**lane.body("ttft_ms=600000"), "stream": stream}
    async with member.talk.opened(lane.client.path, body) as call:
        await upstream.wait_for(call.request_id)
        call.connection.hang_up()
    (event,) = await ledger(admin, member, 1)
    await upstream.wait_for(call.request_id, lambda r: r.abort_s)
    assert (event["status"], event["source"]) == ("cancelled", "unknown")
    assert (event["total_tokens"], Decimal(event["cost_usd"])) == (0, 0)


# --- the process dies --------------------------------------------------------------------------------


async def test_a_kill_mid_stream_bills_what_was_delivered_once(tmp_path: Path) -> None:
    """Every lane at once, and a second start that charges nothing more."""
    received: dict[str, int] = {}
    async with Upstream() as upstream:
        spec = SPEC.format(upstream=upstream.url)
        with running_hub("serve", tmp_path, spec, SETTINGS) as hub:
            member = await Admin(hub.url, hub.admin_key).member()
            await _stream_until_it_dies(hub, member, received)
        records = {name: await upstream.wait_for(name, lambda r: r.abort_s) for name in received}
        before: list[dict[str, Any]] = []
        for _ in range(2):
            with running_hub("serve", tmp_path, spec, SETTINGS) as hub:
                events = await ledger(Admin(hub.url, hub.admin_key), member, len(LANES))
            assert {event["request_id"] for event in events} == received.keys()
            for event in events:
                name = event["request_id"]
                assert (event["status"], event["source"]) == ("lost", "estimated")
                assert produced(records[name]) >= billed(event) >= received[name] >= 5
            assert before in ([], events)
            before = events


async def _stream_until_it_dies(hub: Hub, member: Member, received: dict[str, int]) -> None:
    """Kill the hub when every lane has delivered five words; note what came in all."""

    async def read(lane: Lane) -> None:
        body = {**lane.body("n=100000,gap_ms=10"), "stream": True}
        async with member.talk.opened(lane.client.path, body) as call:
            head = await call.head()
            received[call.request_id] = 0
            with suppress(OSError, asyncio.IncompleteReadError):
                async for event in call.connection.events(head):
                    received[call.request_id] += lane.words(data_of(event))

    readers = [asyncio.create_task(read(lane)) for lane in LANES.values()]
    async with asyncio.timeout(60):
        while len(received) < len(readers) or min(received.values()) < 5:
            assert not any(reader.done() for reader in readers)
            await asyncio.sleep(0.01)
    hub.front.kill()
    await asyncio.gather(*readers)
