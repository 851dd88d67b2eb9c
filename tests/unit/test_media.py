"""Pictures and files by address: fetched once, checked, put in their places; and everything that is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from inferhub.core.call import Call, Emit, Native
from inferhub.core.call import Media as File
from inferhub.core.errors import EgressRefused, InferHubError, Invalid
from inferhub.core.models import Capability
from inferhub.egress import Fetcher, FetchLimits
from inferhub.media import MediaPool
from inferhub.pipeline.media import Media, MediaLimits
from inferhub.testing.calls import Collector, make_call

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def drawn(kind: str, size: tuple[int, int] = (6, 4), **more: Any) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, "teal").save(sink, kind, **more)
    return sink.getvalue()


PICTURES = {
    "/p.png": (PNG, "image/png"),
    "/p.jpg": (drawn("JPEG", quality=20, optimize=True), "image/jpeg"),
    "/p.gif": (drawn("GIF"), "image/gif"),
    "/p.webp": (drawn("WEBP"), "image/webp"),
}
PDF = b"%PDF-1.7\n" + bytes(50)
SEES = Capability("chat", frozenset({"vision", "file_input"}))
FETCHES = Capability("chat", frozenset({"vision", "file_input", "remote_urls"}))
LIMITS = MediaLimits(most=4, file_bytes=1000, total_bytes=1500, at_once=2)


@dataclass
class Host:
    """A web server on loopback that an allow list makes reachable as files.example, and its DNS."""

    media: Media
    port: int
    asked: list[str] = field(default_factory=list)
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0
    slow: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str, host: str = "files.example") -> str:
        return f"http://{host}:{self.port}{path}"

    async def resolve(self, name: str, port: int) -> Sequence[str]:
        answers = self.names.get(name)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request)
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.path.partition("?")[0]
        if name in PICTURES:
            await asyncio.sleep(0)
            return web.Response(body=PICTURES[name][0], content_type="text/plain")
        match name:
            case "/d.pdf":
                return web.Response(body=PDF, content_type="application/octet-stream")
            case "/zip.png":
                return web.Response(body=b"PK\x03\x04" + bytes(100), content_type="image/png")
            case "/huge.png":
                return web.Response(body=PNG + bytes(5000), content_type="image/png")
            case "/large.png":
                return web.Response(body=PNG + bytes(900), content_type="image/png")
            case "/inside":
                raise web.HTTPFound("http://127.0.0.1:22/")
            case "/metadata":
                raise web.HTTPFound("http://169.254.169.254/latest/meta-data/")
            case "/slow.png":
                response = web.StreamResponse(headers={"content-length": "1000"})
                await response.prepare(request)
                await response.write(PNG)
                await self.slow.wait()
                return response
        return web.Response(status=404)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host(None, 0)  # type: ignore[arg-type]
    host.names = {"files.example": [["127.0.0.1"]]}
    app = web.Application()
    app.router.add_get("/{path:.*}", host.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host.port = runner.addresses[0][1]
    allow = [f"files.example:{host.port}"]
    limits = FetchLimits(connect_s=5, total_s=2, max_bytes=LIMITS.file_bytes)
    fetcher = Fetcher(allow=allow, limits=limits, resolve=host.resolve)
    pool = MediaPool()
    host.media = Media(fetcher.get, pool.clean_image, allow=allow, limits=LIMITS)
    yield host
    await pool.close()
    host.slow.set()
    await fetcher.close()
    await runner.cleanup()


def asking(*urls: str, kind: str = "image", **more: Any) -> Call:
    image = [{"type": "image_url", "image_url": {"url": u, "detail": "low", "x-new": 1.50}} for u in urls]
    file = [{"type": "file", "file": {"file_data": u, "filename": "a.pdf"}} for u in urls]
    parts = [{"type": "text", "text": "See:"}, *(image if kind == "image" else file)]
    return make_call("chat", messages=[{"role": "user", "content": parts}], **more)


async def seen(media: Media, call: Call, *capabilities: Capability) -> list[Call]:
    """The call as endpoints of these capabilities get it, one attempt after the other."""
    found: list[Call] = []

    async def attempts(call: Call, emit: Emit) -> None:
        found.extend(
            [
                await media.inline(call, capability) if media.concerns(call) else call
                for capability in capabilities or (SEES,)
            ]
        )

    await media(call, Collector(), attempts)
    assert not media.concerns(call), "nothing is kept after the call"
    return found


def urls_of(call: Call) -> list[str]:
    """The same in the struct and in the bytes."""
    told = [
        part.get("image_url", {}).get("url") or part["file"]["file_data"]
        for part in json.loads(call.body)["messages"][0]["content"][1:]
    ]
    parts = call.request.messages[0].content[1:]
    assert told == [p.image_url.url if hasattr(p, "image_url") else p.file.file_data for p in parts]
    return told


def as_data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# --- what is fetched ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
async def test_a_picture_takes_the_place_of_its_address(host: Host, name: str) -> None:
    """Its type is what it is, not what the server calls it; all else of the body stays as it was written."""
    call = asking(host.url(name), seed=7)
    [told] = await seen(host.media, call)
    assert urls_of(told) == [as_data(*PICTURES[name])]
    assert urls_of(call) == [host.url(name)], "the call itself is never changed"
    before, after = json.loads(call.body), json.loads(told.body)
    before["messages"][0]["content"][1]["image_url"]["url"] = as_data(*PICTURES[name])
    assert after == before
    assert b'"x-new":1.5' in told.body
    assert told.request.seed == 7
    assert told.request.messages[0].content[1].image_url.detail == "low"


async def test_the_bytes_around_an_address_are_not_written_anew(host: Host) -> None:
    body = (
        b'{"model":"m","a":1.0e2,"b":"\\u00e9","messages":[{"role":"user","content":[{"type":"image_url",'
        b'"image_url":{"url":"URL","z":0.10}}],"y":1E5}]}'
    )
    body = body.replace(b"URL", host.url("/p.png").encode())
    [told] = await seen(host.media, replace(asking(host.url("/p.png")), body=body, request=_read(body)))
    for kept in (b"1.0e2", b'"\\u00e9"', b"0.10", b"1E5"):
        assert kept in told.body


def _read(body: bytes) -> Any:
    import msgspec

    from inferhub.modalities.chat import ChatRequest

    return msgspec.json.decode(body, type=ChatRequest)


async def test_a_file_takes_the_place_of_its_address(host: Host) -> None:
    [told] = await seen(host.media, asking(host.url("/d.pdf"), kind="file"))
    assert urls_of(told) == [as_data(PDF, "application/pdf")]


async def test_moderation_sees_pictures_too(host: Host) -> None:
    part = {"type": "image_url", "image_url": {"url": host.url("/p.png")}}
    [told] = await seen(host.media, make_call("moderation", input=[part]))
    assert json.loads(told.body)["input"][0]["image_url"]["url"] == as_data(PNG)
    assert told.request.input[0].image_url.url == as_data(PNG)


async def test_an_address_is_fetched_once_a_call(host: Host) -> None:
    call = asking(host.url("/p.png"), host.url("/p.png"), host.url("/p.gif"))
    first, second = await seen(host.media, call, SEES, SEES)
    assert urls_of(first) == urls_of(second)
    assert sorted(host.asked) == ["/p.gif", "/p.png"]
    await seen(host.media, call)
    assert len(host.asked) == 4, "the next call may find another picture there"


async def test_two_attempts_at_once_fetch_once(host: Host) -> None:
    async def both(call: Call, emit: Emit) -> None:
        await asyncio.gather(*(host.media.inline(call, SEES) for _ in range(2)))

    await host.media(asking(host.url("/p.png")), Collector(), both)
    assert host.asked == ["/p.png"]


async def test_only_some_are_fetched_at_once(host: Host) -> None:
    call = asking(*(host.url(f"/p.png?{number}") for number in range(4)))
    await seen(host.media, call)
    assert len(host.asked) == 4
    assert host.most_at_once <= LIMITS.at_once


async def test_an_endpoint_that_fetches_for_itself_gets_the_address(host: Host) -> None:
    native = Native("anthropic_messages", b"{}")
    call = replace(asking(host.url("/p.png")), native=native)
    [passed, read] = await seen(host.media, call, FETCHES, SEES)
    assert passed is call
    assert host.asked == ["/p.png"]
    assert read.native is None, "the client's own bytes still have the address"


async def test_enclosed_pictures_are_left_alone(host: Host) -> None:
    call = asking(*(as_data(*picture) for picture in PICTURES.values()))
    assert await seen(host.media, call) == [call]
    file = asking(as_data(PDF, "application/pdf"), as_data(b"a,b\n", "text/csv;charset=utf-8"), kind="file")
    assert await seen(host.media, file) == [file]


def taken(kind: str, orientation: int) -> bytes:
    """A picture as a telephone makes it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Make of the telephone"
    return drawn(kind, exif=exif.tobytes())


def seen_size(url: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size


@pytest.mark.parametrize(("kind", "media_type"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
async def test_nobody_learns_who_took_an_enclosed_picture(host: Host, kind: str, media_type: str) -> None:
    """Out of the request and out of what the client wrote in its own words, and all else stays as it was."""
    for orientation, size in ((1, (6, 4)), (6, (4, 6))):
        url = as_data(taken(kind, orientation), f"image/{media_type}")
        native = json.dumps(
            {"source": {"type": "base64", "data": url.partition(",")[2]}, "top_k": 1}
        ).encode()
        call = replace(asking(url, as_data(PNG), seed=7), native=Native("anthropic_messages", native))
        [told] = await seen(host.media, call)
        cleaned, other = urls_of(told)
        assert b"telephone" not in base64.b64decode(cleaned.partition(",")[2])
        assert cleaned.startswith(f"data:image/{media_type};base64,")
        assert seen_size(cleaned) == size
        assert other == as_data(PNG)
        assert json.loads(told.body)["seed"] == 7
        assert told.native is not None
        source = {"type": "base64", "data": cleaned.partition(",")[2]}
        assert json.loads(told.native.body) == {"source": source, "top_k": 1}


async def test_words_in_which_the_picture_is_not_found_are_given_up(host: Host) -> None:
    url = as_data(taken("JPEG", 1), "image/jpeg")
    call = replace(
        asking(url), native=Native("anthropic_messages", json.dumps([url.replace("/", "\\/")]).encode())
    )
    [told] = await seen(host.media, call)
    assert told.native is None


async def test_nobody_learns_who_took_a_picture_that_is_fetched_or_sent_as_a_file(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PICTURES, "/taken.jpg", (taken("JPEG", 6), "image/jpeg"))
    [told] = await seen(host.media, asking(host.url("/taken.jpg")))
    assert seen_size(urls_of(told)[0]) == (4, 6)
    sound = File("file", b"RIFF1234WAVEfmt ", "audio/wav")
    call = replace(make_call("chat"), media=(File("image", taken("PNG", 1), "image/png"), sound))
    [told] = await seen(host.media, call)
    assert b"telephone" not in told.media[0].data
    assert told.media[1] is sound


async def test_a_picture_to_be_analysed_is_fetched(host: Host) -> None:
    [told] = await seen(host.media, make_call("vision", image=host.url("/p.png")))
    assert told.request.image == as_data(PNG)
    error = await refused(host.media, make_call("vision", image="http://127.0.0.1/"))
    assert error.param == "image"


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (PNG[:16] + (20_000).to_bytes(4, "big") * 2 + PNG[24:], "image_too_large"),
        (PNG[:20], "invalid_image"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "invalid_image"),
        (b"GIF89a" + bytes(20), "invalid_image"),
    ],
)
async def test_enclosed_pictures_that_nobody_could_decode(host: Host, picture: bytes, code: str) -> None:
    error = await refused(host.media, asking(as_data(picture)))
    assert (error.wire_code, error.param) == (code, WHERE)


async def test_calls_without_pictures_are_not_looked_at(host: Host) -> None:
    for call in (make_call("chat"), make_call("embedding"), make_call("moderation", input=["a"])):
        assert await seen(host.media, call) == [call]


# --- what is refused ---------------------------------------------------------------------------

WHERE = "messages[0].content[1].image_url.url"


async def refused(media: Media, call: Call, *capabilities: Capability) -> InferHubError:
    with pytest.raises((Invalid, EgressRefused)) as caught:
        await seen(media, call, *capabilities)
    error = caught.value
    assert error.http == 400
    assert "127.0.0.1" not in error.message
    assert not media.concerns(call)
    return error


INSIDE = [
    "http://127.1/",
    "http://0.0.0.0/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2130706433/",
    "http://0x7f.0.0.1/",
    "http://localhost/",
    "http://metadata.google.internal/",
    "http://a\\@b.example/",
    "http://user:pass@b.example/",
    "http://b.example:22/",
    "gopher://b.example/",
    "file:///etc/passwd",
    "ftp://b.example/a.png",
    "//b.example/a.png",
    "/etc/passwd",
    "",
    "http://b.example/ü.png",
]


@pytest.mark.parametrize("capability", [SEES, FETCHES], ids=["fetched", "passed on"])
@pytest.mark.parametrize("url", INSIDE)
async def test_addresses_of_the_inside_are_refused_whoever_would_fetch(
    host: Host, url: str, capability: Capability
) -> None:
    error = await refused(host.media, asking(url), capability)
    assert isinstance(error, EgressRefused)
    assert error.param == WHERE
    assert host.asked == []


@pytest.mark.parametrize("path", ["/inside", "/metadata"])
async def test_a_redirect_to_the_inside_is_refused(host: Host, path: str) -> None:
    error = await refused(host.media, asking(host.url(path)))
    assert isinstance(error, EgressRefused)
    assert error.param == WHERE
    assert "169.254" not in error.message


async def test_a_name_that_turns_to_the_inside_is_refused(host: Host) -> None:
    """The DNS answers with another address each time: what was checked is what is dialled."""
    host.names["rebind.example"] = [["127.0.0.1"], ["127.0.0.1"]]
    error = await refused(host.media, asking(host.url("/p.png", host="rebind.example")))
    assert isinstance(error, EgressRefused)
    assert host.asked == []


async def test_an_unknown_name_reads_like_one_of_the_inside(host: Host) -> None:
    host.names["inside.example"] = [["10.0.0.1"]]
    unknown = await refused(host.media, asking(host.url("/", host="nowhere.example")))
    inside = await refused(host.media, asking(host.url("/", host="inside.example")))
    assert unknown.message == inside.message


@pytest.mark.parametrize(
    ("paths", "kind", "code"),
    [
        (["/zip.png"], "image", "invalid_file"),
        (["/d.pdf"], "image", "invalid_file"),
        (["/p.png"], "file", "invalid_file"),
        (["/huge.png"], "image", "url_not_allowed"),
        (["/large.png?1", "/large.png?2"], "image", "file_too_large"),
        (["/missing.png"], "image", "url_not_fetched"),
        (["/slow.png"], "image", "url_not_fetched"),
    ],
)
async def test_content_that_is_not_what_it_should_be(
    host: Host, paths: list[str], kind: str, code: str
) -> None:
    error = await refused(host.media, asking(*map(host.url, paths), kind=kind))
    assert error.wire_code == code
    field = "image_url.url" if kind == "image" else "file.file_data"
    assert error.param in {f"messages[0].content[{at + 1}].{field}" for at in range(len(paths))}


async def test_a_host_that_is_not_there_is_the_callers_mistake() -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    fetcher = Fetcher(allow=[f"127.0.0.1:{port}"])
    media = Media(fetcher.get, MediaPool().clean_image, allow=[f"127.0.0.1:{port}"])
    with pytest.raises(Invalid) as caught:
        await seen(media, asking(f"http://127.0.0.1:{port}/"))
    assert caught.value.wire_code == "url_not_fetched"
    await fetcher.close()


async def test_a_failure_ends_the_other_fetches(host: Host) -> None:
    error = await refused(host.media, asking(host.url("/slow.png"), host.url("/zip.png")))
    assert error.wire_code == "invalid_file"


async def test_a_cancelled_call_ends_its_fetches(host: Host) -> None:
    task = asyncio.create_task(seen(host.media, asking(host.url("/slow.png"))))
    async with asyncio.timeout(10):
        while not host.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while host.at_once:
            await asyncio.sleep(0.01)


async def test_too_many_are_refused_before_any_is_fetched(host: Host) -> None:
    error = await refused(host.media, asking(*[host.url("/p.png")] * 5))
    assert error.param == "messages[0].content[5].image_url.url"
    assert host.asked == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,not base64!", "invalid_base64"),
        ("data:image/png;base64,iVBORw0KGg", "invalid_base64"),
        ("data:image/png;base64,", "invalid_base64"),
        ("data:image/png,abc", "invalid_base64"),
        ("data:", "invalid_base64"),
        ("data:" + "a" * 300 + ";base64,AAAA", "invalid_base64"),
        (as_data(PNG + bytes(1000)), "file_too_large"),
        (as_data(b"PK\x03\x04" + bytes(50)), "invalid_file"),
        (as_data(b"<svg/>", "image/svg+xml"), "invalid_file"),
        (as_data(PDF, "application/pdf"), "invalid_file"),
    ],
)
async def test_enclosed_pictures_that_are_none(host: Host, url: str, code: str) -> None:
    error = await refused(host.media, asking(url))
    assert (error.wire_code, error.param) == (code, WHERE)


async def test_an_enclosed_pdf_that_is_none(host: Host) -> None:
    error = await refused(host.media, asking(as_data(PNG, "application/pdf"), kind="file"))
    assert error.param == "messages[0].content[1].file.file_data"


@pytest.mark.parametrize(("data", "is_refused"), [("UklGRg==", False), ("not base64", True), ("", True)])
async def test_sound_is_base64(host: Host, data: str, is_refused: bool) -> None:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    call = make_call("chat", messages=[{"role": "user", "content": [part]}])
    if not is_refused:
        assert await seen(host.media, call) == [call]
        return
    assert (await refused(host.media, call)).param == "messages[0].content[0].input_audio.data"
