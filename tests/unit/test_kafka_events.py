"""The event stream on a real broker: every message arrives, in order, with its id; faults end in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores import open_events
from inferhub.stores.events import kafka as kafka_stream
from inferhub.stores.events._kafka_url import parse
from inferhub.stores.events.base import Event
from inferhub.stores.events.consumer import EventConsumer
from inferhub.stores.events.records import to_events
from inferhub.testing.backing import Kafka, running_kafka

SECRET = "hunter2-canary"
PATIENCE_S = 40.0
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "event-stream.md"

BEGIN = Begin(
    id="call_1",
    request_id="req-1",
    at_ms=1_767_225_600_000,
    tenant_id="ten_a",
    project_id="prj_a",
    key_id="key_a",
    modality="chat",
    model="gpt",
    is_stream=True,
    input_tokens=12,
)
ENDED = UsageEvent(
    id="call_1",
    request_id="req-1",
    at_ms=1_767_225_600_000,
    tenant_id="ten_a",
    project_id="prj_a",
    key_id="key_a",
    modality="chat",
    model="gpt-large",
    requested_model="gpt",
    endpoint="w1",
    source="reported",
    input_tokens=10,
    output_tokens=5,
    total_tokens=15,
    latency_ms=12.5,
    cost_usd=Decimal("0.000000123000000001"),
    price_version="v7",
)


def event(number: int, tenant: str, topic: Any = "billing.events") -> Event:
    return Event(topic=topic, key=tenant, id=f"call_{number}", payload=b'{"n":%d}' % number)


async def messages(kafka: Kafka, *topics: str, at_least: int) -> list[Any]:
    """Everything in `topics` from their beginning, once so many are there."""
    consumer = AIOKafkaConsumer(
        *topics, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    found: list[Any] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < at_least:
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found += batch
            # And whatever is too much.
            for batch in (await consumer.getmany(timeout_ms=300)).values():
                found += batch
    finally:
        await consumer.stop()
    return found


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Kafka]:
    with running_kafka(tmp_path) as running:
        yield running


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    yield
    assert not [task for task in asyncio.all_tasks() if "aiokafka" in repr(task)]


# --- what arrives ----------------------------------------------------------------------------------


async def test_records_arrive_in_their_topics(own_kafka: Kafka, no_task_left: None) -> None:
    stream = await open_events(own_kafka.url)
    await EventConsumer(stream).take([BEGIN, ENDED], "0:1")
    await stream.close()
    topics = ("inference.requests", "inference.completed", "billing.events")
    found = await messages(own_kafka, *topics, at_least=3)
    assert sorted(message.topic for message in found) == sorted(topics)
    for message in found:
        assert message.key == b"ten_a"
        assert message.headers == (("id", b"call_1"),)
        assert msgspec.json.decode(message.value)["id"] == "call_1"


async def test_the_topics_are_made_as_the_url_says(kafka: Kafka) -> None:
    url = f"{kafka.url}?prefix=made.&partitions=3"
    for _ in range(2):
        await (await open_events(url)).close()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        described = await admin.describe_topics([f"made.{topic}" for topic in kafka_stream.TOPICS])
    finally:
        await admin.close()
    assert {one["topic"]: len(one["partitions"]) for one in described} == {
        "made.inference.requests": 3,
        "made.inference.completed": 3,
        "made.billing.events": 3,
        "made.alerts.events": 3,
    }


async def test_gateways_that_start_at_once_share_the_topics(kafka: Kafka) -> None:
    streams = await asyncio.gather(*(open_events(f"{kafka.url}?prefix=race.") for _ in range(4)))
    for stream in streams:
        await stream.ping()
        await stream.close()


async def test_topics_that_may_not_be_made_are_named(kafka: Kafka) -> None:
    with pytest.raises(SetupError, match=r"has no never\.alerts\.events, never\.billing\.events"):
        await open_events(f"{kafka.url}?prefix=never.&create=false")


async def test_a_tenants_messages_keep_their_order(kafka: Kafka) -> None:
    stream = await open_events(f"{kafka.url}?prefix=order.&partitions=4&compression=gzip")
    tenants = [f"ten_{number}" for number in range(9)]
    events = [event(number, tenants[number % 9]) for number in range(4000)]
    for start in range(0, 4000, 700):
        await stream.publish(events[start : start + 700])
    await stream.publish([])
    await stream.close()
    found = await messages(kafka, "order.billing.events", at_least=4000)
    assert len(found) == 4000
    for tenant in tenants:
        mine = [m for m in found if m.key == tenant.encode()]
        assert len({m.partition for m in mine}) == 1
        assert [m.value for m in mine] == [e.payload for e in events if e.key == tenant]
    assert len({m.partition for m in found}) > 1


# --- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "cure"), [("kill", "restart"), ("freeze", "thaw")])
async def test_a_broker_that_is_away_fails_in_time_and_is_found_again(
    own_kafka: Kafka, fault: str, cure: str, monkeypatch: pytest.MonkeyPatch, no_task_left: None
) -> None:
    stream = await open_events(own_kafka.url)
    await stream.publish([event(1, "ten_a")])
    monkeypatch.setattr(kafka_stream, "PUBLISH_TIMEOUT_S", 1.0)
    await asyncio.to_thread(getattr(own_kafka, fault))
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                with pytest.raises(StoreFailed, match=own_kafka.bootstrap):
                    await stream.publish([event(2, "ten_a"), event(3, "ten_b")])
            with pytest.raises(StoreFailed):
                await stream.ping()
    finally:
        await asyncio.to_thread(getattr(own_kafka, cure))
    monkeypatch.undo()
    await stream.publish([event(2, "ten_a"), event(3, "ten_b")])
    await stream.ping()
    await stream.close()
    found = await messages(own_kafka, "billing.events", at_least=3)
    # At least once: a reader drops what it has seen by id.
    assert {message.headers[0][1] for message in found} == {b"call_1", b"call_2", b"call_3"}


async def test_a_broker_that_restarted_unseen_takes_the_next_message(
    own_kafka: Kafka, no_task_left: None
) -> None:
    stream = await open_events(own_kafka.url)
    for number in range(1, 4):
        await stream.publish([event(number, "ten_a")])
        await asyncio.to_thread(own_kafka.restart)
    await stream.publish([event(4, "ten_a")])
    await stream.close()
    found = await messages(own_kafka, "billing.events", at_least=4)
    assert {message.headers[0][1] for message in found} == {b"call_1", b"call_2", b"call_3", b"call_4"}


async def test_a_cancelled_publish_leaves_the_stream_usable(kafka: Kafka, no_task_left: None) -> None:
    stream = await open_events(f"{kafka.url}?prefix=cancelled.")
    for delay_s in (0.0, 0.002, 0.02):
        task = asyncio.create_task(stream.publish([event(n, f"ten_{n}") for n in range(500)]))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await stream.publish([event(1000, "ten_a")])
    await stream.close()


async def test_a_broker_that_is_not_there_is_named_without_the_password(
    caplog: pytest.LogCaptureFixture, no_task_left: None
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(SetupError, match=r"127\.0\.0\.1:9 ") as caught:
        await open_events(f"kafka://me:{SECRET}@127.0.0.1:9?sasl=SCRAM-SHA-512")
    assert caught.value.wire_code == "store_unreachable"
    assert SECRET not in caplog.text
    assert SECRET not in f"{caught.value} {caught.value.__cause__!r}"


# --- the URL ---------------------------------------------------------------------------------------


def test_a_url_says_everything() -> None:
    address = parse(
        f"kafka://me%40org:{SECRET}@a.example:9092,[::1]:9093?sasl=SCRAM-SHA-256&tls=true&prefix=prod.&"
        "partitions=12&replication=3&create=false&compression=gzip&ca_file=/etc/ca.pem"
    )
    assert address.hosts == ("a.example:9092", "[::1]:9093")
    assert (address.user, address.password, address.sasl) == ("me@org", SECRET, "SCRAM-SHA-256")
    assert (address.partitions, address.replication, address.prefix) == (12, 3, "prod.")
    assert (address.is_tls, address.creates_topics, address.compression) == (True, False, "gzip")
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://localhost:1", "available: kafka"),
        (f"kafka:{SECRET}", "available: kafka"),
        ("kafka://", "is no Kafka URL"),
        (f"kafka://{SECRET}", "is no Kafka URL"),
        ("kafka://localhost:0", "is no Kafka URL"),
        ("kafka://localhost:9092,", "is no Kafka URL"),
        ("kafka://localhost:9092/topic", "is no Kafka URL"),
        ("kafka://localhost:9092?partition=3", "Did you mean 'partitions'"),
        ("kafka://localhost:9092?partitions=0", "from 1 to"),
        ("kafka://localhost:9092?partitions=٣", "from 1 to"),
        ("kafka://localhost:9092?compression=rar", "gzip"),
        (f"kafka://u:{SECRET}@localhost:9092?sasl={SECRET}", "SCRAM-SHA-512"),
        ("kafka://localhost:9092?tls=yes", "true, false"),
        ("kafka://localhost:9092?prefix=a/b", "prefix"),
        ("kafka://localhost:9092?tls=true&ca_file=/nowhere.pem", "ca_file"),
    ],
)
async def test_a_url_that_is_wrong_says_what(url: str, said: str) -> None:
    with pytest.raises(SetupError, match=said) as caught:
        await open_events(url)
    assert caught.value.param == "events_url"
    assert SECRET not in str(caught.value)


async def test_a_compression_that_is_not_installed_is_named(kafka: Kafka) -> None:
    with pytest.raises(SetupError, match="lz4"):
        await open_events(f"{kafka.url}?compression=lz4")


# --- the payloads ----------------------------------------------------------------------------------


def test_money_is_in_the_bill_alone_and_exact() -> None:
    payloads = {one.topic: msgspec.json.decode(one.payload) for one in (*to_events(BEGIN), *to_events(ENDED))}
    assert payloads["billing.events"]["cost_usd"] == "0.000000123000000001"
    assert payloads["billing.events"]["price_version"] == "v7"
    for topic in ("inference.requests", "inference.completed"):
        assert not {"cost_usd", "price_version"} & payloads[topic].keys()
    assert payloads["inference.requests"]["input_tokens_estimated"] == 12
    assert payloads["inference.completed"]["total_tokens"] == 15


def test_every_field_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for one in (*to_events(BEGIN), *to_events(ENDED)):
        payload = msgspec.json.decode(one.payload)
        assert payload["schema"] == 1
        section = page.partition(f"### `{one.topic}`")[2].partition("\n### ")[0]
        missing = [name for name in payload if f"`{name}`" not in section]
        assert not missing, one.topic


def test_odd_texts_and_numbers_make_a_message_all_the_same() -> None:
    odd: dict[str, Any] = {"model": "\ud800\0" + "x" * 10**6, "cost_usd": Decimal("NaN"), "pixels": 10**30}
    for one in to_events(replace(ENDED, **odd)):
        assert len(one.payload) < 16_384
        assert msgspec.json.decode(one.payload)["id"] == "call_1"
