"""Servers that break off, hang, do not exist or cannot be trusted: what is raised, and what it does not tell."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from inferhub.core.errors import DeadlineExceeded, EgressRefused, UpstreamFailed
from inferhub.egress import Fetcher, FetchLimits

QUICK = FetchLimits(connect_s=5, total_s=20)
SECRET = "s3cret"


def chain(error: BaseException | None) -> str:
    """All that a log with the causes would show."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} "
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


@asynccontextmanager
async def raw_server(answer: bytes, *, then_hang: bool = False) -> AsyncIterator[int]:
    """The port of a server that says `answer`, whatever it is asked, and hangs up or waits."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            if then_hang:
                await reader.read()
        except OSError:
            pass  # the client left first
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]
        await asyncio.gather(*handlers)


RAW = {
    "silence": b"",
    "no http": b"SSH-2.0-OpenSSH_9.6 s3cret\r\n\r\n",
    "bad length": b"HTTP/1.1 200 OK\r\ncontent-length: -s3cret\r\n\r\n",
    "cut body": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ns3cret",
    "broken chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz s3cret\r\n",
    "cut head": b"HTTP/1.1 200 OK\r\nx: s3cret",
    "huge header": b"HTTP/1.1 200 OK\r\nx: " + b"s3cret" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
async def test_broken_answers(raw: bytes) -> None:
    async with raw_server(raw) as port:
        fetcher = Fetcher(allow=["127.0.0.1"], limits=QUICK)
        with pytest.raises(UpstreamFailed) as caught:
            await fetcher.get(f"http://127.0.0.1:{port}/{SECRET}?{SECRET}")
        assert SECRET not in chain(caught.value)
        await fetcher.close()


async def dns(name: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        fetcher = Fetcher(allow=["hooks.internal"], limits=QUICK, resolve=dns)
        with pytest.raises(UpstreamFailed, match="cannot be reached") as caught:
            await fetcher.get(f"http://hooks.internal:{port}/{SECRET}")
        assert "127.0.0.1" not in str(caught.value)
        assert SECRET not in chain(caught.value)
        await fetcher.close()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx"])
async def test_total_time_is_limited(head: bytes) -> None:
    async with raw_server(head, then_hang=True) as port:
        limits = FetchLimits(connect_s=20, total_s=0.3)
        fetcher = Fetcher(allow=["hooks.internal"], limits=limits, resolve=dns)
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            await fetcher.get(f"http://hooks.internal:{port}/{SECRET}")
        with pytest.raises(DeadlineExceeded) as caught:
            await fetcher.post(f"http://hooks.internal:{port}/{SECRET}", b"", {})
        assert SECRET not in chain(caught.value)
        await fetcher.close()


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context for `name`, and the file of the authority that vouches for it."""
    now = datetime.now(UTC)

    def build(
        subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
    ) -> Any:
        is_authority = subject == issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if not is_authority:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False
            )
        return builder.sign(signer, hashes.SHA256())

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    authority = folder / "authority.pem"
    authority.write_bytes(build("Test", "Test", authority_key, authority_key).public_bytes(pem))
    chain = folder / "server.pem"
    chain.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + build(name, "Test", key, authority_key).public_bytes(pem)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)
    return context, authority


async def test_tls_is_verified_for_the_name_and_not_for_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = certificate(tmp_path, "hooks.internal")
    names: list[str | None] = []

    def note(_: Any, name: str | None, __: Any) -> None:
        names.append(name)

    context.sni_callback = note
    hosts: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        hosts.append(request.host)
        if request.path == "/down":
            raise web.HTTPFound(f"http://{request.host}/")
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    allow = ["hooks.internal", "files.internal", "127.0.0.1"]
    stranger = Fetcher(allow=allow, limits=QUICK, resolve=dns)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    friend = Fetcher(allow=allow, limits=QUICK, resolve=dns)

    def url(host: str, path: str = SECRET) -> str:
        return f"https://{host}:{port}/{path}"

    try:
        assert (await friend.get(url("hooks.internal"))).body == b"hello"
        assert names == ["hooks.internal"]
        assert hosts == [f"hooks.internal:{port}"]
        for fetcher, host in (
            (friend, "files.internal"),
            (friend, "127.0.0.1"),
            (stranger, "hooks.internal"),
        ):
            with pytest.raises(UpstreamFailed, match="TLS") as caught:
                await fetcher.get(url(host))
            assert SECRET not in chain(caught.value)
        assert len(hosts) == 1
        with pytest.raises(EgressRefused, match="https to http"):
            await friend.get(url("hooks.internal", "down"))
        assert len(hosts) == 2
    finally:
        await stranger.close()
        await friend.close()
        await runner.cleanup()
