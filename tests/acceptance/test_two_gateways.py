"""Two gateways on one PostgreSQL and one Valkey are one: keys, limits and budgets, whichever is asked.

Counts are exact: of many calls at once no more than the limit are let in, also when a gateway is killed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from inferhub.pipeline.limiter.leased import REMEMBER_REFUSAL_S
from inferhub.testing.backing import Postgres, Valkey
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import Hub, fetch, running_hub, start_service, wait_for
from inferhub.testing.steady import ledger
from inferhub.testing.talk import CHAT, Opened, Talk, chat_body

PRICE = Decimal("0.002")
BUDGET = Decimal("0.10")
SPEC = f"""\
models:
  - {{name: echo, backend: echo, slots: 256}}
  - {{name: slow, backend: echo, slots: 256, options: {{gap_s: 0.05}}}}
  - {{name: endless, backend: echo, slots: 256, options: {{gap_s: 0.2}}}}
routes:
  - {{name: priced-route, model: slow}}
prices:
  - {{model: echo, per_request: "{PRICE}", output_per_mtok: "10"}}
  - {{model: slow, per_request: "{PRICE}", output_per_mtok: "10"}}
"""
BACK_S = 60.0
"""Far more than anything takes: no test is about the machine's speed."""
LONG = " ".join(["word"] * 1000)
REVOKED_WITHIN_S = 1.0
CALLS = 120


@dataclass
class Gateways:
    """Two of them, each with a folder of its own, in front of one worker."""

    folder: Path
    settings: dict[str, object]
    worker: str
    hubs: list[Hub] = field(default_factory=list)
    in_a_row: int = 1
    """So many answers that agree are needed where one address is that of several processes."""

    def start(self, number: int) -> Hub:
        """In the place of the one that was there, on its data."""
        folder = self.folder / f"gateway-{number}"
        folder.mkdir(exist_ok=True)
        process = start_service("gateway", folder, self.settings, "--worker", self.worker)
        said = process.announcement()
        key = said["admin_key"] or self.hubs[0].admin_key
        hub = Hub("split", folder, said["url"], said["ops_url"], key, tuple(said["models"]), (process,))
        self.hubs[number:] = [hub, *self.hubs[number + 1 :]]
        return hub

    def talks(self, key: str) -> list[Talk]:
        return [Talk(hub.url, key) for hub in self.hubs]

    @property
    def admin(self) -> Talk:
        return Talk(self.hubs[0].url, self.hubs[0].admin_key)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, valkey: Valkey) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("pair")
    (folder / "hub.yaml").write_text(SPEC, encoding="utf-8")
    stores, counters = postgres.fresh(), valkey.fresh()
    settings: dict[str, object] = {
        "spec_file": folder / "hub.yaml",
        "catalog_url": stores,
        "usage_url": stores,
        "counters_url": counters,
        "cache_url": counters,
        "pepper": secrets.token_hex(16),
        "gateways_expected": 2,
        # On a machine that is busy with other things, a wait is no outage.
        "counters_timeout_s": 10,
        "worker_refresh_s": 0.1,
        "drain_grace_s": 5,
    }
    with start_service("worker", folder, {}) as worker:
        gateways = Gateways(folder, settings, worker.announcement()["url"])
        try:
            gateways.start(0)
            gateways.start(1)
            yield gateways
        finally:
            for hub in gateways.hubs:
                hub.front.stop()


async def new_key(pair: Gateways, **more: Any) -> dict[str, Any]:
    made = await pair.admin.post("/admin/v1/keys", {"name": "two gateways", **more})
    assert made.status == 201, made
    card: dict[str, Any] = made.json
    return card


async def set_limit(pair: Gateways, key: dict[str, Any], **limit: Any) -> None:
    """Both gateways know it when this returns."""
    wanted = {"level": "key", "subject_id": key["id"], **limit}
    answer = await pair.admin.post("/admin/v1/limits", wanted)
    assert answer.status == 200, answer
    # What the catalog said before this mark is known once the mark is.
    mark = await new_key(pair)
    for talk in pair.talks(mark["key"]):
        await until_status(talk, 200, pair.in_a_row)


async def until_status(talk: Talk, status: int, times: int = 1) -> float:
    """Seconds until a request that was sent then is answered so; `times` in a row, where several answer."""
    began_s = time.monotonic()
    row = 0
    while (sent_s := time.monotonic()) - began_s < BACK_S:
        row = row + 1 if (await talk.get("/v1/models")).status == status else 0
        if row == times:
            return sent_s - began_s
    raise AssertionError(f"{talk.url} does not answer {status}")


async def limited_key(pair: Gateways, unit: str, window: str, limit: Any, mode: str = "exact") -> str:
    key = await new_key(pair)
    await set_limit(pair, key, unit=unit, window=window, limit=limit, mode=mode)
    secret: str = key["key"]
    return secret


async def ask_both(pair: Gateways, key: str, count: int, model: str = "echo", **more: Any) -> list[Answer]:
    """All at once, half of them at each gateway."""
    talks = pair.talks(key)
    return await asyncio.gather(*(talks[i % 2].chat(model, **more) for i in range(count)))


def split(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """(answered, refused); there is nothing else."""
    answered = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(answered) + len(refused) == len(answers), {answer.status for answer in answers}
    return answered, refused


def check_counted_together(pair: Gateways) -> None:
    """A gateway that had counted by itself would prove nothing."""
    for hub in pair.hubs:
        assert hub.get("/readyz?verbose")["stores"]["counters"] == "ok"
        assert "counting in this process" not in hub.front.stderr


# --- keys ------------------------------------------------------------------------------------------


async def test_a_key_of_one_gateway_opens_the_other(pair: Gateways) -> None:
    card = await new_key(pair)
    for talk in pair.talks(card["key"]):
        await until_status(talk, 200)
        assert (await talk.chat("echo")).status == 200


async def test_a_revoked_key_is_rejected_by_both_within_a_second(pair: Gateways) -> None:
    took: list[float] = []
    for _ in range(5):
        card = await new_key(pair)
        here, there = pair.talks(card["key"])
        await until_status(there, 200)
        revoked = await pair.admin.ask("DELETE", f"/admin/v1/keys/{card['id']}")
        assert revoked.status == 200
        assert (await here.get("/v1/models")).status == 401
        took.append(await until_status(there, 401))
        assert (await there.chat("echo")).status == 401
    # Not the slowest: that one is about what else this machine does.
    assert median(took) < REVOKED_WITHIN_S, took


# --- limits ----------------------------------------------------------------------------------------


async def test_of_parallel_calls_exactly_the_limit_is_let_in(pair: Gateways) -> None:
    limit = 40
    key = await limited_key(pair, "requests", "minute", limit)
    answered, refused = split(await ask_both(pair, key, CALLS))
    assert len(answered) == limit
    # Each was told its own place.
    left = sorted(int(answer.head["x-ratelimit-remaining-requests"] or -1) for answer in answered)
    assert left == list(range(limit))
    for answer in [*answered, *refused]:
        assert answer.head["x-ratelimit-limit-requests"] == str(limit)
        assert answer.head["x-ratelimit-reset-requests"]
    for answer in refused:
        assert answer.error["code"] == "rate_limit_exceeded"
        assert answer.head["x-ratelimit-remaining-requests"] == "0"
        # A minute is counted in whole seconds, of which it touches 61.
        assert 1 <= int(answer.head["retry-after"] or 0) <= 61
        assert 1 <= int(answer.head["retry-after-ms"] or 0) <= 61_000
    check_counted_together(pair)


async def test_tokens_never_go_beyond_the_limit(pair: Gateways) -> None:
    limit, most = 600, 20
    key = await limited_key(pair, "tokens", "day", limit)
    used = empty_rounds = 0
    while empty_rounds < 2:
        # Each reserves more than it uses; what it gives back lets others in, until there is no room.
        answered, _ = split(await ask_both(pair, key, 20, max_tokens=most))
        used += sum(answer.json["usage"]["total_tokens"] for answer in answered)
        assert used <= limit
        empty_rounds = 0 if answered else empty_rounds + 1
        if not answered:
            # A refusal is repeated for a moment without asking the store.
            await asyncio.sleep(2 * REMEMBER_REFUSAL_S)
    assert limit - 3 * most < used
    check_counted_together(pair)


async def test_no_more_calls_run_at_once_than_allowed(pair: Gateways) -> None:
    limit = 5
    key = await limited_key(pair, "concurrent", "now", limit)
    talks = pair.talks(key)
    body = chat_body("endless", LONG, stream=True)
    async with AsyncExitStack() as stack:
        calls: list[Opened] = [
            await stack.enter_async_context(talks[i % 2].opened(CHAT, body)) for i in range(8 * limit)
        ]
        heads = await asyncio.gather(*(call.head() for call in calls))
        statuses = [head.status for head in heads]
        assert (statuses.count(200), statuses.count(429)) == (limit, 7 * limit)
    # They have hung up; their places are free again.
    for talk in talks:
        async with asyncio.timeout(BACK_S):
            while (await talk.chat("echo")).status != 200:
                await asyncio.sleep(0.05)
    check_counted_together(pair)


async def test_leased_limits_are_used_up_but_for_the_leases(pair: Gateways) -> None:
    limit = 600
    card = await new_key(pair)
    await set_limit(pair, card, unit="requests", window="month", limit=limit, mode="lease")

    async def call(rounds: int) -> int:
        found = 0
        for _ in range(rounds):
            answered, _ = split(await ask_both(pair, card["key"], CALLS))
            found += len(answered)
        return found

    async def leases_went_back(answered: int) -> None:
        async with asyncio.timeout(BACK_S):
            while True:
                page = await pair.admin.get(f"/admin/v1/limits?subject_id={card['id']}")
                if page.json["data"][0]["used"] == answered:
                    return
                await asyncio.sleep(0.1)

    answered = await call(limit // CALLS // 2)
    assert answered == limit // CALLS // 2 * CALLS
    # Both have taken more than they have used; what nobody uses goes back.
    await leases_went_back(answered)
    answered += await call(limit // CALLS + 2)
    # What a gateway has leased ahead: a hundredth of the limit, and as much again on its way.
    assert limit - 2 * 2 * (limit // 100) <= answered <= limit
    await leases_went_back(answered)
    answered += await call(1)
    assert answered == limit
    check_counted_together(pair)


# --- budgets ---------------------------------------------------------------------------------------


def spent(hub: Hub, key_id: str) -> Decimal:
    """What the ledger says, through the admin API."""
    page = hub.get(f"/admin/v1/usage?by=key&key_id={key_id}", timeout_s=30)
    return sum((Decimal(row["cost_usd"]) for row in page["data"]), Decimal(0))


async def test_a_budget_is_not_overspent_by_parallel_calls_nor_by_a_crash(pair: Gateways) -> None:
    card = await new_key(pair)
    await set_limit(pair, card, unit="usd", window="month", limit=str(BUDGET))
    # 2 words cost the price of a call and 2 tokens; 100 tokens are reserved.
    reserved = PRICE + Decimal(100) * Decimal("0.00001")
    first, _ = split(await ask_both(pair, card["key"], 20, content="one two", max_tokens=100))
    assert first
    # Streams by a route are cut off in the middle by the death of their gateway.
    body = chat_body("priced-route", LONG, stream=True, max_tokens=100)
    async with AsyncExitStack() as stack:
        there = Talk(pair.hubs[1].url, card["key"])
        calls = [await stack.enter_async_context(there.opened(CHAT, body)) for _ in range(4)]
        for call in calls:
            head = await call.head()
            assert head.status == 200
            events = call.connection.events(head)
            for _ in range(5):
                await anext(events)
        pair.hubs[1].front.kill()
    hub = await asyncio.to_thread(pair.start, 1)
    for _ in range(40):
        answered, _ = split(await ask_both(pair, card["key"], 100, content="one two", max_tokens=100))
        if not answered:
            break
    else:
        raise AssertionError("the budget is never used up")

    def lost() -> list[dict[str, Any]]:
        return [event for event in ledger(hub, key_id=card["id"]) if event["status"] == "lost"]

    await asyncio.to_thread(wait_for, lambda: len(lost()) == len(calls), BACK_S, "the cut off calls")
    for event in lost():
        # Priced like the model behind the route, for what was delivered at least.
        assert event["output_tokens"] >= 3
        assert Decimal(event["cost_usd"]) == PRICE + event["output_tokens"] * Decimal("0.00001")
    await asyncio.to_thread(quiet, pair)
    total = spent(hub, card["id"])
    assert BUDGET / 2 < total <= BUDGET + reserved
    check_counted_together(pair)


def quiet(pair: Gateways) -> None:
    """Wait until the ledger holds everything."""
    for hub in pair.hubs:
        wait_for(lambda h=hub: h.metric("inferhub_spool_backlog_bytes") == 0, BACK_S, "empty spools")  # type: ignore[misc]


# --- other ways to be several -----------------------------------------------------------------------


def test_processes_of_one_gateway_share_limits_keys_and_metrics(tmp_path: Path) -> None:
    limit = 40
    settings = {"processes": 2, "worker_refresh_s": 0.1, "counters_timeout_s": 10}
    with running_hub("split", tmp_path, SPEC, settings) as hub:
        gateways = Gateways(tmp_path, {}, "", [hub, hub], in_a_row=30)

        async def check() -> None:
            key = await limited_key(gateways, "requests", "day", limit)
            answered, refused = split(await ask_both(gateways, key, CALLS))
            assert len(answered) == limit
            assert all(answer.head["x-ratelimit-limit-requests"] == str(limit) for answer in refused)

        asyncio.run(check())
        status, text = fetch(f"{hub.ops_url}/metrics")
        assert status == 200
        assert hub.metric("inferhub_requests_total", outcome="ok") >= limit
        assert text.count(b"# TYPE inferhub_requests_total counter") == 1
        assert hub.metric("inferhub_store_up", store="counters") == 1


def test_limits_outlive_a_killed_process(tmp_path: Path) -> None:
    """With the counters in a file, which is what a first start has."""
    limit = 5

    async def use(hub: Hub, key: str) -> tuple[int, int]:
        answered, refused = split(await asyncio.gather(*(Talk(hub.url, key).chat("echo") for _ in range(12))))
        return len(answered), len(refused)

    with running_hub("serve", tmp_path, SPEC, {"counters_timeout_s": 10}) as hub:
        key = asyncio.run(limited_key(Gateways(tmp_path, {}, "", [hub]), "requests", "day", limit))
        assert asyncio.run(use(hub, key)) == (limit, 12 - limit)
        hub.front.kill()
    with running_hub("serve", tmp_path, SPEC, {"counters_timeout_s": 10}) as again:
        assert asyncio.run(use(again, key)) == (0, 12)
