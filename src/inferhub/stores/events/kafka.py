"""The event stream in Kafka, or in what speaks its protocol: one idempotent producer, acknowledged by all.

A broker that is gone or frozen costs a caller one bounded wait; the next call starts afresh.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, SaslAuthenticationFailed, TopicAlreadyExistsError  # type: ignore[import-untyped]

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.events._kafka_url import Address, parse
from inferhub.stores.events.base import Event, Topic

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 5.0
RETRY_BACKOFF_S = 0.3
PUBLISH_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
LINGER_S = 0.005
BATCH_BYTES = 128 * 1024

TOPICS: tuple[Topic, ...] = get_args(Topic)

_FOREIGN = (KafkaError, OSError)


async def open_events(url: str) -> KafkaStream:
    """Connect to `kafka://HOST:PORT[,HOST:PORT][?…]` and make the topics that are missing, where that is
    allowed. Raises `SetupError` with the remedy."""
    address = parse(url)
    # It says twenty times a second that a broker is away; here every failure is raised, and logged once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    stream = KafkaStream(address, _connection(address))
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S + REQUEST_TIMEOUT_S):
            await stream.prepare()
    except BaseException as error:
        await stream.close()
        if isinstance(error, (TimeoutError, *_FOREIGN)):
            raise _unusable(address.where, error) from error
        raise
    return stream


class KafkaStream:
    """An `EventStream`."""

    def __init__(self, address: Address, connection: dict[str, Any]) -> None:
        self._address = address
        self._connection = connection
        self._producer: AIOKafkaProducer | None = None
        self._starting: asyncio.Task[AIOKafkaProducer] | None = None

    async def prepare(self) -> None:
        """Have every topic, and a producer. Raises `SetupError` and Kafka's own errors."""
        await self._ensure_topics()
        await self._started()

    async def publish(self, events: Sequence[Event]) -> None:
        if not events:
            return
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                try:
                    await self._publish(events)
                except _FOREIGN:
                    # For example a broker that came back and has forgotten our sequence numbers.
                    await self._publish(events)
        except (TimeoutError, *_FOREIGN) as error:
            raise self._failed(error) from error

    async def _publish(self, events: Sequence[Event]) -> None:
        producer = await self._started()
        try:
            await asyncio.gather(*[await self._send(producer, event) for event in events])
        except BaseException:
            # What it still holds would get into the way of a repetition.
            if self._producer is producer:
                self._producer = None
            await _stop(producer)
            raise

    async def ping(self) -> None:
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                producer = await self._started()
                await producer.client.fetch_all_metadata()
        except (TimeoutError, *_FOREIGN) as error:
            raise self._failed(error) from error

    async def close(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None:
            await asyncio.wait([starting], timeout=CLOSE_TIMEOUT_S)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def _send(self, producer: AIOKafkaProducer, event: Event) -> asyncio.Future[Any]:
        acknowledgement: asyncio.Future[Any] = await producer.send(
            self._address.prefix + event.topic,
            event.payload,
            key=event.key.encode(),
            headers=[("id", event.id.encode())],
        )
        return acknowledgement

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        starting = self._starting
        try:
            # A start that is cut off leaves a connection open behind it, so it goes on for the next caller.
            return await asyncio.shield(starting)
        finally:
            if starting.done() and self._starting is starting:
                self._starting = None

    async def _start(self) -> AIOKafkaProducer:
        producer = self._make_producer()
        try:
            await producer.start()
        except BaseException:
            await _stop(producer)
            raise
        self._producer = producer
        return producer

    def _make_producer(self) -> AIOKafkaProducer:
        compression = self._address.compression
        try:
            return AIOKafkaProducer(
                **self._connection,
                # Implies that every in-sync replica acknowledges.
                enable_idempotence=True,
                linger_ms=int(LINGER_S * 1000),
                max_batch_size=BATCH_BYTES,
                compression_type=compression,
            )
        except RuntimeError as error:
            raise SetupError(
                f"compression={compression} in events_url needs a package that is not installed here: "
                "pip install cramjam.",
                param="events_url",
            ) from error

    async def _ensure_topics(self) -> None:
        admin = AIOKafkaAdminClient(**self._connection)
        try:
            await admin.start()
            wanted = {self._address.prefix + topic for topic in TOPICS}
            missing = sorted(wanted - set(await admin.list_topics()))
            if missing and not self._address.creates_topics:
                raise SetupError(
                    f"Kafka at {self._address.where} has no {', '.join(missing)}. Make these topics, or "
                    "remove create=false from events_url.",
                    param="events_url",
                )
            if missing:
                await self._create(admin, missing)
        finally:
            await admin.close()

    async def _create(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
        new = [NewTopic(name, self._address.partitions, self._address.replication) for name in names]
        answer = await admin.create_topics(new, timeout_ms=int(REQUEST_TIMEOUT_S * 1000))
        for name, code, *_ in answer.topic_errors:
            # Another gateway may have been faster.
            if code not in (0, TopicAlreadyExistsError.errno):
                raise SetupError(
                    f"Kafka at {self._address.where} did not make the topic {name} (its error {code}). "
                    "Make it by hand, or correct partitions and replication in events_url.",
                    param="events_url",
                )

    def _failed(self, error: BaseException) -> StoreFailed:
        return StoreFailed(f"The event stream {self._address.where} failed: {_reason(error)}.")


async def _stop(producer: AIOKafkaProducer) -> None:
    """Give up what it still holds.

    Not by its `stop`, which waits for all of that to be delivered: forever, while the broker is away.
    """
    producer._closed = True
    sender = producer._sender
    if sender is not None and sender.sender_task is not None:
        sender.sender_task.cancel()
    with suppress(TimeoutError, *_FOREIGN):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.client.close()
            if sender is not None:
                await sender.close()


# --- opening ---------------------------------------------------------------------------------------


def _connection(address: Address) -> dict[str, Any]:
    protocol = f"{'SASL_' if address.sasl else ''}{'SSL' if address.is_tls else 'PLAINTEXT'}"
    return {
        "bootstrap_servers": list(address.hosts),
        "client_id": "inferhub",
        "request_timeout_ms": int(REQUEST_TIMEOUT_S * 1000),
        "retry_backoff_ms": int(RETRY_BACKOFF_S * 1000),
        "security_protocol": protocol,
        "ssl_context": _tls(address) if address.is_tls else None,
        "sasl_mechanism": address.sasl or "PLAIN",
        "sasl_plain_username": address.user,
        "sasl_plain_password": address.password,
    }


def _tls(address: Address) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
        if address.cert_file:
            context.load_cert_chain(address.cert_file, address.key_file)
    except (OSError, ValueError) as error:
        raise SetupError(
            f"A certificate named in events_url cannot be read: {type(error).__name__}. Check ca_file, "
            "cert_file and key_file.",
            param="events_url",
        ) from error
    return context


def _unusable(where: str, error: BaseException) -> SetupError:
    if isinstance(error, SaslAuthenticationFailed):
        return SetupError(
            f"Kafka at {where} refuses the user or password of events_url. Correct them.", param="events_url"
        )
    return SetupError(
        f"No Kafka answers at {where} ({_reason(error)}). Start it, or correct events_url.",
        param="events_url",
        code="store_unreachable",
    )


def _reason(error: BaseException) -> str:
    return (
        f"no answer in {PUBLISH_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else type(error).__name__
    )
