"""Who may speak to workers and orchestrators: mutual TLS, renewed certificates, open doors, settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inferhub.core.errors import EndpointLost, NoEndpoint, SetupError
from inferhub.core.models import ModelSpec
from inferhub.modalities import modalities
from inferhub.settings.fleet import FleetSettings
from inferhub.testing.calls import Collector, make_call
from inferhub.testing.certificates import Authority
from inferhub.testing.plane import OpenPlane, a_worker
from inferhub.transport import channel, security
from inferhub.transport.codec import Codec
from inferhub.transport.control import ControlClient
from inferhub.transport.control_server import serve_control
from inferhub.transport.grpc import GrpcTransport
from inferhub.transport.grpc_server import serve
from inferhub.transport.security import Credentials, Tls, is_private, tls_of
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

CODEC = Codec(modalities())


class Net:
    """One service of each kind behind mutual TLS, and clients that show what they like."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self.authority = Authority(folder)
        self.plane = OpenPlane()

    async def orchestrator(self, tls: Tls | None) -> int:
        server = await serve_control(self.plane, "127.0.0.1:0", tls=tls)
        self._stack.push_async_callback(server.stop)
        return server.port or 0

    async def worker(self, tls: Tls | None) -> int:
        worker = Worker("w1", Host(Path, isolation="never"), tuple)
        server = await serve(worker, "127.0.0.1:0", CODEC, tls=tls)
        self._stack.push_async_callback(server.stop, 0.0)
        return server.port or 0

    def control(self, port: int, tls: Tls | None) -> ControlClient:
        client = ControlClient([f"127.0.0.1:{port}"], tls=tls)
        self._stack.push_async_callback(client.close)
        return client

    def transport(self, port: int, tls: Tls | None) -> GrpcTransport:
        client = GrpcTransport(f"127.0.0.1:{port}", CODEC, tls=tls)
        self._stack.push_async_callback(client.close)
        return client


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack, tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_certificates_of_one_authority_trust_each_other(net: Net) -> None:
    client = net.authority.issue("gateway")
    plane = net.control(await net.orchestrator(net.authority.issue("orchestrator")), client)
    await plane.register(a_worker())
    worker = net.transport(await net.worker(net.authority.issue("worker")), client)
    assert (await worker.status()).id == "w1"
    assert [m.worker.id for m in net.plane.view.members] == ["w1"]


async def test_a_client_without_the_authoritys_certificate_is_refused(net: Net, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = replace(Authority(tmp_path / "foreign").issue("client"), ca=net.authority.ca)
    orchestrator = await net.orchestrator(net.authority.issue("orchestrator"))
    worker = await net.worker(net.authority.issue("worker"))
    for shown in (None, foreign):
        with pytest.raises((EndpointLost, SetupError), match=r"fleet_cert_file|trust"):
            await net.control(orchestrator, shown).register(a_worker())
        with pytest.raises((EndpointLost, SetupError), match=r"fleet_cert_file|trust"):
            await net.transport(worker, shown).status()
        with pytest.raises((EndpointLost, NoEndpoint)):
            await net.transport(worker, shown).infer(make_call("chat"), Collector())
    assert not net.plane.view.members


async def test_a_server_that_cannot_be_trusted_is_told_apart_with_the_reason(
    net: Net, tmp_path: Path
) -> None:
    (tmp_path / "foreign").mkdir()
    client = net.authority.issue("client")
    for served, reason in (
        (Authority(tmp_path / "foreign").issue("server"), "certificate is refused"),
        (net.authority.issue("elsewhere", host="example.org"), "another host name"),
        (None, "speaks no TLS"),
    ):
        with pytest.raises(SetupError, match=reason) as caught:
            await net.control(await net.orchestrator(served), client).register(a_worker())
        assert "SSL" not in str(caught.value)
        with pytest.raises(NoEndpoint):
            await net.transport(await net.worker(served), client).infer(make_call("chat"), Collector())


async def test_files_that_do_not_fit_are_named(net: Net, tmp_path: Path) -> None:
    good, other = net.authority.issue("good"), net.authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for tls, said in (
        (net.authority.issue("old", valid=timedelta(hours=-1)), "expired at"),
        (replace(good, key=other.key), r"good\.pem and .*other\.key"),
        (replace(good, cert=tmp_path / "none.pem"), r"Cannot read .*none\.pem"),
        (replace(good, ca=empty), r"empty\.pem holds no certificate"),
    ):
        for start in (net.orchestrator, net.worker):
            with pytest.raises(SetupError, match=said):
                await start(tls)
        with pytest.raises(SetupError, match=said):
            net.control(1, tls)


async def test_renewed_certificates_are_taken_up_without_a_restart(
    net: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    for module in (security, channel):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    served, shown = net.authority.issue("server"), net.authority.issue("client")
    port = await net.worker(served)
    client = net.transport(port, shown)
    first = await client.status()
    await client.load(ModelSpec("slow", "echo", options={"gap_s": 30.0}))
    got = Collector()
    running = asyncio.create_task(client.infer(make_call("chat", "slow", stream=True), got))
    await until(lambda: len(got.chunks) > 0)
    # Another authority signs all of them from now on: with what was there before nobody gets in.
    (tmp_path / "new").mkdir()
    new = Authority(tmp_path / "new")
    for old, name in ((served, "server"), (shown, "client")):
        renewed = new.issue(name)
        for source, target in ((renewed.cert, old.cert), (renewed.key, old.key), (renewed.ca, old.ca)):
            target.write_bytes(source.read_bytes())
    assert (await client.status()).incarnation == first.incarnation, "a new connection with the new files"
    assert "was renewed" in caplog.text
    assert not running.done(), "calls under way stay where they are"
    running.cancel()
    await asyncio.wait([running])
    served.cert.write_text("half")
    assert (await net.transport(port, new.issue("another")).status()).id == "w1"
    assert "stays in use" in caplog.text


def test_mutual_tls_needs_all_three_files(tmp_path: Path) -> None:
    given = {"fleet_cert_file": tmp_path / "a", "fleet_key_file": tmp_path / "b"}
    with pytest.raises(ValidationError, match="fleet_ca_file is missing"):
        FleetSettings.model_validate(given)
    assert tls_of(FleetSettings.model_validate({})) is None
    whole = FleetSettings.model_validate({**given, "fleet_ca_file": tmp_path / "c"})
    assert tls_of(whole) == Tls(tmp_path / "a", tmp_path / "b", tmp_path / "c")


@pytest.mark.parametrize(
    ("listen", "private"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/tmp/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.0.2.1:1", False),
        ("worker-1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_only_what_other_machines_reach_needs_credentials(listen: str, private: bool, tmp_path: Path) -> None:
    assert is_private(listen) is private
    tls = Tls(tmp_path, tmp_path, tmp_path)
    for credentials in (Credentials("a-token"), Credentials(tls=tls)):
        credentials.check_exposed(listen)
    if private:
        Credentials().check_exposed(listen)
    else:
        with pytest.raises(SetupError, match="Everybody who reaches"):
            Credentials().check_exposed(listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
async def test_a_worker_does_not_open_its_door_to_the_network(net: Net, listen: str) -> None:
    worker: Any = Worker("w1", Host(Path, isolation="never"), tuple)
    with pytest.raises(SetupError, match="fleet_cert_file"):
        await serve(worker, listen, CODEC)
    server = await serve(worker, listen, CODEC, token="a-token")
    await server.stop(0.0)


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    tls = Authority(tmp_path).issue("x")
    assert "a-token" not in repr(Credentials("a-token", tls))
    assert "PRIVATE" not in repr(tls.read())
