"""Budget alerts: told once to a real receiver, whoever looks, and again only after a failure."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from inferhub.core.errors import StoreFailed
from inferhub.core.quota import NANO_USD, Claim, Quota, Reading, Unit, Window
from inferhub.core.tenancy import Tenant
from inferhub.egress import Fetcher
from inferhub.gateway.alerts import Alerts, due, signature
from inferhub.gateway.webhooks import webhook_secret
from inferhub.pipeline.limiter.book import meter_for
from inferhub.stores.cache.memory import MemoryAnswers
from inferhub.stores.counters.memory import MemoryCounters
from inferhub.stores.events.base import Event
from inferhub.testing.receiver import Receiver

PEPPER = b"p" * 32
BUDGET = Quota("quo_1", "ten_a", "tenant", "ten_a", Unit.USD, Window.MONTH, NANO_USD)
METER = meter_for(BUDGET)
OCTOBER_S = 1_792_000_000


@dataclass
class Town:
    """One set of stores, one tenant with a receiver, and as many processes as are asked for."""

    receiver: Receiver
    fetcher: Fetcher
    counters: MemoryCounters = field(default_factory=MemoryCounters)
    marks: MemoryAnswers = field(default_factory=lambda: MemoryAnswers(2**20))
    published: list[Event] = field(default_factory=list)
    stream_is_down: bool = False
    webhook_url: str | None = None

    async def publish(self, events: Sequence[Event]) -> None:
        if self.stream_is_down:
            raise StoreFailed
        self.published += events

    def process(self, *, claim_s: float = 60.0, has_stream: bool = False) -> Alerts:
        return Alerts(
            budgets=lambda: [BUDGET],
            tenants=lambda: [Tenant("ten_a", "A", 0, None, self.webhook_url)],
            read=self.counters.read,
            post=self.fetcher.post,
            publish=self.publish if has_stream else None,
            marks=self.marks,
            pepper=PEPPER,
            claim_s=claim_s,
        )

    async def spend(self, percent: int) -> None:
        await self.counters.charge(f"tkt_{percent}", [Claim(METER, NANO_USD * percent // 100)])

    def told(self) -> list[int]:
        return sorted(message.json["threshold_percent"] for message in self.receiver.received)


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with Receiver() as receiver:
        fetcher = Fetcher(allow=("127.0.0.1/32",))
        yield Town(receiver, fetcher, webhook_url=receiver.url)
        await fetcher.close()


# --- what is due ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used_percent", "thresholds"),
    [(0, []), (49, []), (50, [50]), (79, [50]), (80, [50, 80]), (100, [50, 80, 100]), (250, [50, 80, 100])],
)
def test_every_threshold_that_is_reached_is_due(used_percent: int, thresholds: list[int]) -> None:
    readings = {METER.key: Reading(METER, NANO_USD * used_percent // 100, 1.0)}
    alerts = due([BUDGET], readings, OCTOBER_S)
    assert [alert.threshold_percent for alert in alerts] == thresholds
    assert len({alert.id for alert in alerts}) == len(alerts)


def test_a_hair_below_a_threshold_is_below() -> None:
    assert due([BUDGET], {METER.key: Reading(METER, NANO_USD // 2 - 1, 1.0)}, OCTOBER_S) == []


def test_an_alert_says_whose_which_and_how_much_in_exact_dollars() -> None:
    (alert,) = due([BUDGET], {METER.key: Reading(METER, 500_000_001, 1.0)}, OCTOBER_S)
    assert (alert.tenant_id, alert.level, alert.subject_id, alert.window) == (
        "ten_a",
        "tenant",
        "ten_a",
        "month",
    )
    assert (alert.period, alert.limit_usd, alert.used_usd) == ("2026-10", "1", "0.500000001")


def test_a_new_month_and_a_raised_budget_are_told_anew() -> None:
    readings = {METER.key: Reading(METER, 10 * NANO_USD, 1.0)}
    ids = {
        alert.id
        for quota, at_s in (
            (BUDGET, OCTOBER_S),
            (BUDGET, OCTOBER_S + 31 * 86_400),
            (replace(BUDGET, limit=2 * NANO_USD), OCTOBER_S),
        )
        for alert in due([quota], readings, at_s)
    }
    assert len(ids) == 9
    assert ids.isdisjoint(a.id for a in due([replace(BUDGET, id="quo_2")], readings, OCTOBER_S))


# --- telling it ------------------------------------------------------------------------------------


async def test_each_threshold_is_told_once_by_one_of_many_processes(town: Town) -> None:
    processes = [town.process() for _ in range(4)]
    for percent, told in ((49, []), (1, [50]), (30, [50, 80]), (40, [50, 80, 100])):
        await town.spend(percent)
        for _ in range(3):
            await asyncio.gather(*(process.look() for process in processes))
        assert town.told() == told


async def test_a_process_that_starts_again_tells_nothing_twice(town: Town) -> None:
    await town.spend(60)
    await town.process().look()
    await town.process().look()
    assert town.told() == [50]


async def test_the_receiver_can_check_who_wrote(town: Town) -> None:
    await town.spend(50)
    await town.process().look()
    (message,) = town.receiver.received
    stamp, _, mac = message.headers["x-inferhub-signature"].partition(",v1=")
    secret = webhook_secret(PEPPER, "ten_a")
    signed = f"{stamp.removeprefix('t=')}.".encode() + message.body
    assert hmac.compare_digest(mac, hmac.new(secret.encode(), signed, "sha256").hexdigest())
    assert message.headers["x-inferhub-alert"] == message.json["id"]
    assert message.json["type"] == "budget.threshold"
    assert secret != webhook_secret(PEPPER, "ten_b")


def test_a_signature_covers_the_time_and_the_body() -> None:
    assert signature("whs_x", 1, b"{}") != signature("whs_x", 2, b"{}")
    assert signature("whs_x", 1, b"{}") != signature("whs_x", 1, b"{ }")


async def test_a_receiver_that_fails_is_told_again_but_not_at_once(town: Town) -> None:
    town.receiver.status = 500
    await town.spend(50)
    one, other = town.process(claim_s=0.3), town.process(claim_s=0.3)
    await asyncio.gather(one.look(), other.look())
    assert town.told() == [50]
    town.receiver.status = 200

    async def look_until_told_again() -> None:
        while len(town.receiver.received) < 2:
            await asyncio.gather(one.look(), other.look())
            await asyncio.sleep(0.02)

    await asyncio.wait_for(look_until_told_again(), 30)
    for _ in range(3):
        await asyncio.gather(one.look(), other.look())
    assert town.told() == [50, 50]
    first, second = town.receiver.received
    assert first.json["id"] == second.json["id"]


async def test_a_claim_that_still_runs_keeps_others_away(town: Town) -> None:
    town.receiver.status = 500
    await town.spend(50)
    for _ in range(5):
        await town.process().look()
    assert town.told() == [50]


async def test_a_receiver_that_is_down_does_not_repeat_the_event(town: Town) -> None:
    town.webhook_url = "http://127.0.0.1:9/gone"
    await town.spend(50)
    process = town.process(claim_s=0.01, has_stream=True)
    for _ in range(5):
        await process.look()
        await asyncio.sleep(0.02)
    assert [(event.topic, event.key) for event in town.published] == [("alerts.events", "ten_a")]


async def test_a_stream_that_is_down_keeps_no_webhook_back(town: Town) -> None:
    town.stream_is_down = True
    await town.spend(50)
    process = town.process(claim_s=0.05, has_stream=True)
    await process.look()
    assert town.told() == [50]
    town.stream_is_down = False

    async def look_until_published() -> None:
        while not town.published:
            await process.look()
            await asyncio.sleep(0.02)

    await asyncio.wait_for(look_until_published(), 30)
    assert town.told() == [50]


async def test_an_address_inside_the_network_is_never_called(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    """Even one that was allowed when it was stored, or that a name leads to since."""
    strict = Fetcher()
    town.fetcher, allowed = strict, town.fetcher
    await town.spend(50)
    await town.process().look()
    assert town.receiver.received == []
    assert "was not delivered" in caplog.text
    town.fetcher = allowed
    await strict.close()


async def test_a_tenant_without_a_webhook_is_no_trouble(town: Town) -> None:
    town.webhook_url = None
    await town.spend(100)
    await town.process().look()
    assert town.receiver.received == []


async def test_a_budget_of_requests_is_not_money(town: Town) -> None:
    meters: list[object] = []

    async def read(asked: Sequence[object]) -> tuple[Reading, ...]:
        meters.extend(asked)
        return ()

    alerts = Alerts(
        budgets=lambda: [replace(BUDGET, unit=Unit.REQUESTS)],
        tenants=list,
        read=read,
        post=town.fetcher.post,
        publish=None,
        marks=town.marks,
        pepper=PEPPER,
    )
    await alerts.look()
    assert meters == []
