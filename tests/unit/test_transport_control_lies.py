"""Workers that lie, over raw gRPC, to a real orchestrator: refused with the reason, logged, nobody else harmed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from inferhub.core.fleet import Member
from inferhub.core.serving import WorkerStatus, beat_of
from inferhub.orchestrator.service import Orchestrator
from inferhub.testing.plane import a_worker
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import orchestrator_pb2 as pb
from inferhub.transport._pb.orchestrator_pb2_grpc import OrchestratorStub
from inferhub.transport.control_server import MAX_CONTROL_BYTES, serve_control

TOKEN = (("authorization", "Bearer right-token"),)
NOW_MS = int(time.time() * 1000)


class Site:
    """An orchestrator with one honest worker, and a door for liars."""

    def __init__(self, plane: Orchestrator, stub: Any) -> None:
        self.plane = plane
        self.stub = stub
        self.honest = honest("w1")

    async def register(self, message: Any, protocol: int = 1) -> Any:
        return await self.stub.Register(
            pb.RegisterRequest(protocol=protocol, worker=message), metadata=TOKEN, timeout=30
        )

    async def beat(self, message: Any) -> Any:
        return await self.stub.Heartbeat(pb.HeartbeatRequest(beat=message), metadata=TOKEN, timeout=30)

    def check_unharmed(self) -> None:
        assert self.plane.view().members == (Member(self.honest),)


def honest(id_: str, **more: Any) -> WorkerStatus:
    return a_worker(id_, **{"incarnation": NOW_MS, **more})


@pytest.fixture
async def site(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        plane = Orchestrator(
            reach=lambda _: pytest.fail("nobody is called"), lease_s=3600.0, heartbeat_s=600.0
        )
        stack.push_async_callback(plane.close)
        server = await serve_control(plane, "127.0.0.1:0", token="right-token")
        stack.push_async_callback(server.stop)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        stack.push_async_callback(channel.close)
        site = Site(plane, cast("Any", OrchestratorStub)(channel))
        reply = await site.register(nouns.encode_worker(site.honest))
        assert not reply.HasField("error")
        assert reply.lease_s == 3600.0
        yield site
        site.check_unharmed()


def _with_slots(message: Any) -> None:
    # -1, as a careless client would write it.
    message.models[0].spec.slots = 2**32 - 1


def _started_tomorrow(message: Any) -> None:
    message.incarnation = NOW_MS + 86_400_000


def _named_twice(message: Any) -> None:
    message.models.append(message.models[0])


LIES: dict[str, Callable[[Any], Any]] = {
    "capacity": _with_slots,
    "future": _started_tomorrow,
    "twice": _named_twice,
    "not a number": lambda m: setattr(m, "at_s", float("nan")),
    "negative work": lambda m: setattr(m.models[0], "pending_cost", -1.0),
    "endless work": lambda m: setattr(m.models[0], "pending_cost", float("inf")),
    "no address": lambda m: setattr(m, "address", ""),
    "an address inside": lambda m: setattr(m, "address", "local"),
    "an id for a log": lambda m: setattr(m, "id", "w2\nERROR all is lost"),
    "options": lambda m: setattr(m.models[0].spec, "options", b"[1,"),
    "options without end": lambda m: setattr(m.models[0].spec, "options", b'{"a":' + b"[" * 20_000),
    "huge options": lambda m: setattr(m.models[0].spec, "options", b'{"a":"' + b"x" * 300_000 + b'"}'),
    "a device for a terminal": lambda m: setattr(m.devices[0], "name", "\x1b[2J"),
    "a modality for a log": lambda m: setattr(m.models[0].capabilities[0], "modality", "chat\n"),
    "many capabilities": lambda m: m.models[0].capabilities.extend([m.models[0].capabilities[0]] * 64),
    "memory": lambda m: setattr(m.devices[0], "memory_free_bytes", 2**63),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_record_that_cannot_be_true_is_refused_whole(site: Site, lie: str) -> None:
    message = nouns.encode_worker(honest("w2"))
    LIES[lie](message)
    reply = await site.register(message)
    assert reply.error.code == "invalid_value"
    assert reply.error.message
    assert reply.lease_s == 0
    # And then the truth is welcome.
    assert not (await site.register(nouns.encode_worker(honest("w3")))).HasField("error")
    await site.plane.leave("w3", NOW_MS)


async def test_the_id_of_a_living_worker_is_not_given_away(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    thief = honest("w1", address="thief:50051", incarnation=NOW_MS + 1)
    reply = await site.register(nouns.encode_worker(thief))
    assert reply.error.code == "conflict"
    assert "living worker" in reply.error.message
    older = honest("w1", incarnation=NOW_MS - 1000, seq=99)
    assert (await site.register(nouns.encode_worker(older))).error.code == "conflict"
    assert "registration refused" in caplog.text


async def test_a_beat_that_lies_or_is_replayed_is_refused(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    true = nouns.encode_beat(beat_of(honest("w1", seq=2, at_s=13.0)))
    lies: tuple[tuple[Callable[[Any], Any], str], ...] = (
        (lambda m: setattr(m.pulses[0], "model", "unheard-of#1"), "unknown_worker"),
        (lambda m: m.pulses.append(m.pulses[0]), "unknown_worker"),
        (lambda m: setattr(m, "seq", 1), "conflict"),
        (lambda m: setattr(m, "incarnation", NOW_MS - 1), "conflict"),
        (lambda m: setattr(m, "incarnation", NOW_MS + 1), "unknown_worker"),
        (lambda m: setattr(m, "id", "w9"), "unknown_worker"),
        (lambda m: setattr(m.pulses[0], "running", 2**32 - 1), "invalid_value"),
        (lambda m: setattr(m.pulses[0], "s_per_cost", float("nan")), "invalid_value"),
        (lambda m: setattr(m, "at_s", 1.0), "invalid_value"),
        (lambda m: m.memory_free_bytes.append(1), "unknown_worker"),
    )
    for change, code in lies:
        lie = pb.Beat()
        lie.CopyFrom(true)
        change(lie)
        assert (await site.beat(lie)).error.code == code
        site.check_unharmed()
    assert not (await site.beat(true)).HasField("error")
    assert (await site.beat(true)).error.code == "conflict", "the same beat again is a replay"
    site.honest = honest("w1", seq=2, at_s=13.0)
    assert caplog.text.count("heartbeat refused") >= 3


async def test_nobody_gets_in_without_the_token_or_with_too_much(site: Site) -> None:
    request = pb.RegisterRequest(protocol=1, worker=nouns.encode_worker(honest("w2")))
    for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "right-token"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.stub.Register(request, metadata=metadata, timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "right-token" not in str(caught.value)
    request.worker.version = "x" * MAX_CONTROL_BYTES
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.stub.Register(request, metadata=TOKEN, timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_flood_of_lies_does_not_fill_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    message = nouns.encode_worker(honest("w2", incarnation=NOW_MS + 86_400_000))
    await asyncio.gather(*(site.register(message) for _ in range(200)))
    assert 1 <= caplog.text.count("registration refused") <= 2
