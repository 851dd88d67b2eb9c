"""Downloads against a real server that misbehaves as servers do."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from inferhub.core.errors import SetupError, WeightsCorrupt
from inferhub.registry.download import Download, Limits, fetch

CONTENT = random.Random(1).randbytes(3_000_000)
QUICK = Limits(connect_s=5, idle_s=20, total_s=60, tries=3, pause_s=0.01)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers as `answers` says, the last one again and again, and remembers the ranges asked for."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [whole]
        self.ranges: list[str | None] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.ranges.append(request.headers.get("Range"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


async def whole(_: web.Request) -> web.StreamResponse:
    return web.Response(body=CONTENT)


async def ranged(request: web.Request) -> web.StreamResponse:
    start = request.http_range.start or 0
    if not start:
        return web.Response(body=CONTENT)
    headers = {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"}
    return web.Response(status=206, body=CONTENT[start:], headers=headers)


def status(code: int, headers: dict[str, str] | None = None) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers=headers)

    return answer


def chunked(body: bytes) -> Answer:
    """A clean end without an announced length."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(body)
        await response.write_eof()
        return response

    return answer


def cut(after: int) -> Answer:
    """Announces everything, sends `after` bytes, and drops the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(CONTENT))})
        await response.prepare(request)
        await response.write(CONTENT[:after])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


async def hang(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(CONTENT))})
    await response.prepare(request)
    await response.write(CONTENT[:1000])
    await asyncio.sleep(3600)
    return response


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/weights"
    yield server
    await runner.cleanup()


def order(url: str, folder: Path, content: bytes = CONTENT) -> Download:
    return Download(url, folder / "weights.part", hashlib.sha256(content).hexdigest(), len(content))


async def test_download_reports_growing_bytes(server: Server, tmp_path: Path) -> None:
    seen: list[int] = []
    download = order(server.url, tmp_path)
    await fetch(download, seen.append, QUICK)
    assert download.part.read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, len(CONTENT))
    assert server.ranges == [None]


async def test_download_goes_on_where_an_earlier_one_stopped(server: Server, tmp_path: Path) -> None:
    server.answers = [ranged]
    download = order(server.url, tmp_path)
    download.part.write_bytes(CONTENT[:1_234_567])
    seen: list[int] = []
    await fetch(download, seen.append, QUICK)
    assert download.part.read_bytes() == CONTENT
    assert server.ranges == ["bytes=1234567-"]
    assert seen[0] == 1_234_567


async def test_dropped_connection_is_resumed_within_one_call(server: Server, tmp_path: Path) -> None:
    server.answers = [cut(2_000_000), status(503), ranged]
    download = order(server.url, tmp_path)
    await fetch(download, lambda _: None, QUICK)
    assert download.part.read_bytes() == CONTENT
    assert server.ranges[0] is None
    assert server.ranges[1] == server.ranges[2] != "bytes=0-"


async def test_cancelled_download_is_resumed_by_the_next(server: Server, tmp_path: Path) -> None:
    server.answers = [hang, ranged]
    download = order(server.url, tmp_path)
    arrived = asyncio.Event()
    task = asyncio.create_task(fetch(download, lambda done: arrived.set() if done else None, QUICK))
    await asyncio.wait_for(arrived.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fetch(download, lambda _: None, QUICK)
    assert download.part.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]


async def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    download = order(server.url, tmp_path)
    download.part.write_bytes(CONTENT[:500])
    await fetch(download, lambda _: None, QUICK)
    assert download.part.read_bytes() == CONTENT
    assert server.ranges == ["bytes=500-"]


async def test_complete_part_needs_no_server(tmp_path: Path) -> None:
    download = order("http://127.0.0.1:9/", tmp_path)
    download.part.write_bytes(CONTENT)
    await fetch(download, lambda _: None, QUICK)


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
async def test_bad_bytes_of_an_earlier_try_are_thrown_away_once(
    server: Server, tmp_path: Path, left: bytes
) -> None:
    server.answers = [ranged]
    download = order(server.url, tmp_path)
    download.part.write_bytes(left)
    await fetch(download, lambda _: None, QUICK)
    assert download.part.read_bytes() == CONTENT
    assert server.ranges[-1] is None


async def test_range_the_server_does_not_have_starts_over(server: Server, tmp_path: Path) -> None:
    server.answers = [status(416), status(206, {"Content-Range": "bytes 7-8/9"}), whole]
    download = order(server.url, tmp_path)
    download.part.write_bytes(CONTENT[:500])
    await fetch(download, lambda _: None, QUICK)
    assert server.ranges == ["bytes=500-", None, None]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (chunked(CONTENT + b"more"), "sends more than"),
        (chunked(CONTENT[:-1] + b"?"), "other content"),
        (chunked(b"?" * len(CONTENT)), "other content"),
    ],
)
async def test_wrong_content_is_refused_and_not_kept(
    server: Server, tmp_path: Path, answer: Answer, words: str
) -> None:
    server.answers = [answer]
    download = order(server.url, tmp_path)
    with pytest.raises(WeightsCorrupt, match=words):
        await fetch(download, lambda _: None, QUICK)
    assert not download.part.exists()


async def test_wrong_length_is_refused_before_it_is_downloaded(server: Server, tmp_path: Path) -> None:
    download = order(server.url, tmp_path, CONTENT[:100])
    with pytest.raises(WeightsCorrupt, match="3000000 bytes, not 100"):
        await fetch(download, lambda _: None, QUICK)
    assert not download.part.exists()


@pytest.mark.parametrize(
    ("answer", "asked", "words"),
    [
        (status(404), 1, "answered 404"),
        (status(401), 1, "answered 401"),
        (status(500), 3, "answered 500"),
        (status(302, {"Location": "/again?token=s3cret"}), 5, "too many redirects"),
        (cut(0), 3, "failed"),
        (chunked(CONTENT[:1000]), 3, "ended after 1000 of 3000000 bytes"),
    ],
)
async def test_failing_server_is_a_setup_error_after_bounded_tries(
    server: Server, tmp_path: Path, answer: Answer, asked: int, words: str
) -> None:
    server.answers = [answer]
    with pytest.raises(SetupError, match=words) as caught:
        await fetch(order(server.url + "?token=s3cret", tmp_path), lambda _: None, QUICK)
    assert len(server.ranges) == asked
    assert "s3cret" not in str(caught.value)


async def test_silent_server_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [hang]
    with pytest.raises(SetupError, match="went silent"):
        await fetch(order(server.url, tmp_path), lambda _: None, Limits(idle_s=0.2, tries=2, pause_s=0.01))


async def test_endless_download_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [hang]
    with pytest.raises(SetupError, match="did not arrive within"):
        await fetch(order(server.url, tmp_path), lambda _: None, Limits(total_s=0.3))


async def test_unreachable_server_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"http://127\.0\.0\.1:9/x failed") as caught:
        await fetch(order("http://me:s3cret@127.0.0.1:9/x", tmp_path), lambda _: None, QUICK)
    assert "s3cret" not in str(caught.value)


async def test_file_source_is_copied_and_resumed(tmp_path: Path) -> None:
    source = tmp_path / "a file"
    source.write_bytes(CONTENT)
    download = order(source.as_uri(), tmp_path)
    download.part.write_bytes(CONTENT[:10])
    seen: list[int] = []
    await fetch(download, seen.append, QUICK)
    assert download.part.read_bytes() == CONTENT
    assert seen[0] == 10


async def test_file_source_that_is_missing_or_of_other_size(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(SetupError, match="No such file"):
        await fetch(order(source.as_uri(), tmp_path), lambda _: None, QUICK)
    source.write_bytes(b"short")
    with pytest.raises(WeightsCorrupt, match="5 bytes, not 3000000"):
        await fetch(order(source.as_uri(), tmp_path), lambda _: None, QUICK)
