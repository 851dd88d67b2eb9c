"""The fetcher against real servers on loopback, which an allow list makes reachable, and against its enemies."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from inferhub.core.errors import EgressRefused, Invalid, SetupError, UpstreamFailed
from inferhub.egress import Fetcher, FetchLimits
from inferhub.egress.dial import Dialer

QUICK = FetchLimits(connect_s=5, total_s=20, max_bytes=1000, max_reply_bytes=100)
SECRET = "s3cret"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers by path, and remembers who asked for what."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.reached: list[str] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers, await request.read()))
        assert request.transport is not None
        self.reached.append(request.transport.get_extra_info("sockname")[0])
        answer = self.answers.get(request.path)
        return await answer(request) if answer else web.Response(text="hello")

    def url(self, path: str = "/", host: str = "hooks.internal") -> str:
        return f"http://{host}:{self.port}{path}"

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, headers={"location": location, "set-cookie": "a=b"})

        self.answers[path] = answer


class Dns:
    """Answers as told, one after the other where there are several, and counts the questions."""

    def __init__(self) -> None:
        self.names: dict[str, list[Sequence[str]]] = {}
        self.asked: list[str] = []

    async def resolve(self, name: str, port: int) -> Sequence[str]:
        self.asked.append(name)
        answers = self.names.get(name)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return answers.pop(0) if len(answers) > 1 else answers[0]


async def start(server: Server, tls: ssl.SSLContext | None = None) -> web.AppRunner:
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    first = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await first.start()
    server.port = runner.addresses[0][1]
    # The same port of a second address, to tell apart which of them was dialled.
    await web.TCPSite(runner, "127.0.0.2", server.port, ssl_context=tls).start()
    return runner


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    runner = await start(server)
    yield server
    await runner.cleanup()


@pytest.fixture
def dns() -> Dns:
    dns = Dns()
    dns.names = {"hooks.internal": [["127.0.0.1"]], "files.internal": [["127.0.0.1"]]}
    return dns


@pytest.fixture
async def fetcher(server: Server, dns: Dns) -> AsyncIterator[Fetcher]:
    allow = [f"hooks.internal:{server.port}", f"files.internal:{server.port}"]
    fetcher = Fetcher(allow=allow, limits=QUICK, resolve=dns.resolve)
    yield fetcher
    await fetcher.close()


def chain(error: BaseException | None) -> str:
    """All that a log with the causes would show."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} "
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


def refused(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """The message, after a look for what must not be said."""
    assert SECRET not in chain(caught.value)
    assert "127.0.0" not in str(caught.value)
    return str(caught.value)


async def test_get(server: Server, fetcher: Fetcher) -> None:
    got = await fetcher.get(server.url("/a/../b%2Fc?x[]=%0a|&s=" + SECRET))
    assert (got.status, got.content_type, got.body) == (200, "text/plain", b"hello")
    assert got.final_url == server.url("/a/../b%2Fc?x[]=%0a|&s=" + SECRET)
    method, path, headers, _ = server.requests[0]
    assert (method, path) == ("GET", "/a/../b%2Fc?x[]=%0a|&s=" + SECRET)
    assert set(headers) == {"host", "accept", "accept-encoding", "user-agent"}
    assert headers["host"] == f"hooks.internal:{server.port}"
    assert headers["accept-encoding"] == "identity"
    assert SECRET not in repr(got)


async def test_post(server: Server, fetcher: Fetcher) -> None:
    async def accepted(_: web.Request) -> web.Response:
        return web.Response(status=202, body=b"x" * 5000)

    server.answers["/hook"] = accepted
    sent = {"content-type": "application/json", "webhook-signature": "v1,abc", "authorization": "Bearer x"}
    got = await fetcher.post(server.url("/hook"), b'{"a": 1}', sent)
    assert (got.status, got.body) == (202, b"x" * QUICK.max_reply_bytes)
    method, _, headers, body = server.requests[0]
    assert (method, body) == ("POST", b'{"a": 1}')
    assert {name: headers[name] for name in sent} == sent


@pytest.mark.parametrize(
    "headers",
    [{"Host": "b"}, {"Content-Length": "1"}, {"transfer-encoding": "chunked"}, {"Cookie": "a=b"}, {"a b": "c"},
     {"a": f"{SECRET}\r\nb: c"}, {"a\r\nb": "c"}, {"a": "\u00e9" + SECRET}, {"a": "x" * 5000}, {"": "x"}],
)  # fmt: skip
async def test_headers_that_are_not_sent_along(
    server: Server, fetcher: Fetcher, headers: dict[str, str]
) -> None:
    with pytest.raises(Invalid) as caught:
        await fetcher.post(server.url(), b"", headers)
    refused(caught)
    assert not server.requests


async def test_what_is_not_2xx_comes_without_its_body(server: Server, fetcher: Fetcher) -> None:
    async def missing(_: web.Request) -> web.Response:
        return web.Response(status=404, text="inside")

    server.answers["/"] = missing
    got = await fetcher.get(server.url(), accept=lambda kind: False)
    assert (got.status, got.body) == (404, b"")


async def test_an_address_without_permission_is_not_called(server: Server, dns: Dns) -> None:
    fetcher = Fetcher(limits=QUICK, resolve=dns.resolve)
    dns.names["public.example"] = [["127.0.0.1"]]
    dns.names["mixed.example"] = [["8.8.8.8", "127.0.0.1"]]
    dns.names["mapped.example"] = [["::ffff:127.0.0.1"]]
    dns.names["scoped.example"] = [["fe80::1%1"]]
    dns.names["garbage.example"] = [["localhost"]]
    dns.names["empty.example"] = [[]]
    messages = set()
    for name in (*dns.names, "unknown.example"):
        if name.endswith(".example"):
            with pytest.raises(EgressRefused) as caught:
                await fetcher.get(server.url("/?" + SECRET, name))
            messages.add(refused(caught))
    # One text for all: it does not tell what the inner DNS knows.
    assert len(messages) == 1
    with pytest.raises(EgressRefused):
        await fetcher.post(server.url("/", "hooks.internal"), b"x", {})
    assert not server.requests
    await fetcher.close()


async def test_rebinding_finds_one_question_and_the_checked_address(server: Server, dns: Dns) -> None:
    async def once(_: web.Request) -> web.Response:
        response = web.Response()
        response.force_close()
        return response

    server.answers["/"] = once
    dns.names["rebind.example"] = [["127.0.0.1"], ["127.0.0.2"]]

    # Only the first of the two addresses is allowed, and only as an address.
    fetcher = Fetcher(allow=[f"127.0.0.1:{server.port}"], limits=QUICK, resolve=dns.resolve)
    await fetcher.get(server.url("/", "rebind.example"))
    assert dns.asked == ["rebind.example"]
    assert server.reached == ["127.0.0.1"]
    with pytest.raises(EgressRefused):
        await fetcher.get(server.url("/", "rebind.example"))
    assert dns.asked == ["rebind.example"] * 2
    assert server.reached == ["127.0.0.1"]
    await fetcher.close()


async def test_the_last_gate_stands_in_every_connection(
    server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the resolver's check lost, nothing would be called all the same."""

    async def unchecked(self: Dialer, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [
            {"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}
        ]

    monkeypatch.setattr(Dialer, "resolve", unchecked)
    with pytest.raises(UpstreamFailed, match="cannot be reached"):
        await fetcher.get(server.url("/", "evil.example"))
    assert not server.requests


async def test_get_follows_redirects(server: Server, fetcher: Fetcher, dns: Dns) -> None:
    server.redirect("/1", "2", 301)
    server.redirect("/2", server.url("/3", "files.internal") + "#part", 303)
    server.redirect("/3", "/4?x", 308)
    got = await fetcher.get(server.url("/1"))
    assert (got.body, got.final_url) == (b"hello", server.url("/4?x", "files.internal"))
    assert [path for _, path, *_ in server.requests] == ["/1", "/2", "/3", "/4?x"]
    assert all("cookie" not in headers for _, _, headers, _ in server.requests)
    assert all("referer" not in headers for _, _, headers, _ in server.requests)


async def test_redirects_are_counted(server: Server, fetcher: Fetcher) -> None:
    server.redirect("/", "/?" + SECRET)
    with pytest.raises(EgressRefused, match="more than 3 redirects") as caught:
        await fetcher.get(server.url())
    refused(caught)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:{port}/in", "http://[::ffff:127.0.0.1]:{port}/in", "http://127.1:{port}/in",
     "http://localhost:{port}/in", "//127.0.0.1:{port}/in", "http://evil.example:{port}/in", "file:///etc/passwd",
     "gopher://a.example/", "/\\127.0.0.1/in", "http://u:s3cret@hooks.internal:{port}/in",
     "http://169.254.169.254/s3cret", "http://hooks.internal:22/in"],
)  # fmt: skip
async def test_redirects_inside_are_refused(
    server: Server, fetcher: Fetcher, dns: Dns, location: str
) -> None:
    dns.names["evil.example"] = [["127.0.0.1"]]
    server.redirect("/", location.format(port=server.port))
    with pytest.raises(EgressRefused) as caught:
        await fetcher.get(server.url())
    refused(caught)
    assert len(server.requests) == 1


async def test_a_redirect_to_nowhere(server: Server, fetcher: Fetcher) -> None:
    server.redirect("/", "")
    with pytest.raises(UpstreamFailed, match="without saying where"):
        await fetcher.get(server.url())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_redirects_of_a_post(server: Server, fetcher: Fetcher, status: int, elsewhere: bool) -> None:
    server.redirect("/", server.url("/there", "files.internal") if elsewhere else "/there", status)
    post = fetcher.post(server.url(), b"body", {"authorization": "Bearer " + SECRET})
    if status in {307, 308} and not elsewhere:
        assert (await post).final_url == server.url("/there")
        method, path, headers, body = server.requests[1]
        assert (method, path, body) == ("POST", "/there", b"body")
        assert headers["authorization"] == "Bearer " + SECRET
    else:
        with pytest.raises(EgressRefused, match=str(status)) as caught:
            await post
        refused(caught)
        assert len(server.requests) == 1


async def test_a_post_goes_round_in_circles_only_so_often(server: Server, fetcher: Fetcher) -> None:
    server.redirect("/", "/", 308)
    with pytest.raises(EgressRefused, match="more than 3 redirects"):
        await fetcher.post(server.url(), b"", {})
    assert len(server.requests) == 4


async def test_types_are_asked_for_before_the_body(server: Server, fetcher: Fetcher) -> None:
    seen: list[str] = []

    async def picture(_: web.Request) -> web.Response:
        return web.Response(body=b"x", headers={"content-type": "Image/PNG; a=b"})

    server.answers["/"] = picture
    assert (await fetcher.get(server.url(), accept=lambda kind: not seen.append(kind))).body == b"x"  # type: ignore[func-returns-value]
    assert seen == ["image/png"]
    with pytest.raises(EgressRefused, match="type that is not accepted"):
        await fetcher.get(server.url(), accept=lambda kind: kind == "image/jpeg")


@pytest.mark.parametrize("announced", [True, False])
async def test_size_is_capped_while_reading(server: Server, fetcher: Fetcher, announced: bool) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"content-length": str(1 << 40)} if announced else {})
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            sent += 65536

    server.answers["/"] = flood
    with pytest.raises(EgressRefused, match="more than 1000 bytes"):
        await fetcher.get(server.url())
    reply = await fetcher.post(server.url(), b"", {})
    assert reply.body == b"x" * QUICK.max_reply_bytes
    # What the two sockets' buffers take in, not what the server would send.
    assert sent < 64 << 20


async def test_exactly_the_limit_is_accepted(server: Server, fetcher: Fetcher) -> None:
    async def full(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * int(request.query["n"]))

    server.answers["/"] = full
    assert len((await fetcher.get(server.url("/?n=1000"))).body) == 1000
    with pytest.raises(EgressRefused):
        await fetcher.get(server.url("/?n=1001"))


async def test_compressed_content_is_refused_unread(server: Server, fetcher: Fetcher) -> None:
    async def bomb(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(bytes(1 << 20)), headers={"content-encoding": "gzip"})

    server.answers["/"] = bomb
    with pytest.raises(EgressRefused, match="compressed"):
        await fetcher.get(server.url())
    reply = await fetcher.post(server.url(), b"", {})
    assert reply.body[:2] == b"\x1f\x8b"
    assert len(reply.body) == QUICK.max_reply_bytes


async def test_proxies_of_the_environment_are_not_heeded(
    server: Server, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine hooks.internal login me password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await fetcher.get(server.url())
    assert "authorization" not in server.requests[0][2]


async def test_cookies_are_not_kept(server: Server, fetcher: Fetcher) -> None:
    async def cookie(_: web.Request) -> web.Response:
        return web.Response(headers={"set-cookie": "a=b; Path=/"})

    server.answers["/"] = cookie
    await fetcher.get(server.url())
    await fetcher.get(server.url())
    assert all("cookie" not in headers for _, _, headers, _ in server.requests)


async def test_connections_are_kept_and_a_kept_one_needs_no_dns(
    server: Server, fetcher: Fetcher, dns: Dns
) -> None:
    for _ in range(3):
        await fetcher.get(server.url())
    assert dns.asked == ["hooks.internal"]


async def test_the_systems_dns_is_asked_by_default(server: Server) -> None:
    fetcher = Fetcher(allow=[f"localhost:{server.port}"], limits=QUICK)
    assert (await fetcher.get(server.url("/", "localhost"))).body == b"hello"
    await fetcher.close()


async def test_cancelling_closes_the_connection(server: Server, fetcher: Fetcher) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            left.set()
        raise AssertionError

    server.answers["/"] = hang
    task = asyncio.create_task(fetcher.get(server.url()))
    async with asyncio.timeout(30):
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await left.wait()


async def test_closing_ends_running_fetches_and_admits_no_more(server: Server, fetcher: Fetcher) -> None:
    entered = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        entered.set()
        await asyncio.sleep(3600)
        raise AssertionError

    server.answers["/"] = hang
    task = asyncio.create_task(fetcher.get(server.url()))
    async with asyncio.timeout(30):
        await entered.wait()
        await fetcher.close()
        with pytest.raises(UpstreamFailed):
            await task
        with pytest.raises(UpstreamFailed, match="stopping"):
            await fetcher.get(server.url())


def test_a_wrong_allow_entry_stops_the_start() -> None:
    with pytest.raises(SetupError, match=r"'10\.0\.0/8'"):
        Fetcher(allow=["10.0.0/8"])
