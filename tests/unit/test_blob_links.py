"""Signed addresses of pictures, and the ring that puts them in the pictures' place."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio

from inferhub.core.call import Call, Delta, Emit, Finished, Started
from inferhub.core.errors import NotFound, StoreFailed
from inferhub.core.usage import Usage
from inferhub.gateway.blobs import BlobLinks
from inferhub.gateway.surface import base_url
from inferhub.modalities.image import ImageDelta
from inferhub.pipeline.links import Links
from inferhub.stores import open_blobs
from inferhub.stores.blobs.keeper import Blob, Blobs
from inferhub.testing.calls import TESTER, Collector, make_call

PEPPER = b"pepper of the tests"


class Clock:
    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[Blobs]:
    # Files outlive their addresses here, so that it is the address that expires.
    blobs = await open_blobs(f"file://{tmp_path}/blobs", ttl_s=3600, max_bytes=10_000)
    yield blobs
    await blobs.close()


@pytest.fixture
def links(blobs: Blobs, clock: Clock) -> BlobLinks:
    return BlobLinks(blobs, PEPPER, clock=clock)


async def opened(links: BlobLinks, url: str, **changed: str) -> Blob:
    parts = urlsplit(url)
    tenant, file = parts.path.removeprefix("/v1/blobs/").split("/")
    given = {"tenant": tenant, "file": file, **{name: v[0] for name, v in parse_qs(parts.query).items()}}
    return await links.find(**{**given, **changed})


async def test_an_address_opens_its_file(links: BlobLinks) -> None:
    url = await links.keep("ten_a", b"picture", "jpeg")
    assert url.startswith("/v1/blobs/ten_a/")
    assert await opened(links, url) == Blob(b"picture", "image/jpeg")


async def test_it_opens_nothing_else_and_nobody_can_make_one(links: BlobLinks, blobs: Blobs) -> None:
    url, other = [await links.keep("ten_a", data, "png") for data in (b"one", b"two")]
    query = {name: values[0] for name, values in parse_qs(urlsplit(other).query).items()}
    file = urlsplit(other).path.rpartition("/")[2]
    later = str(int(query["expires"]) + 1)
    forged = BlobLinks(blobs, b"another pepper")
    theirs = parse_qs(urlsplit(await forged.keep("ten_a", b"x", "png")).query)["signature"][0]
    for changed in (
        {"signature": ""},
        {"signature": theirs},
        {"signature": query["signature"]},
        {"signature": "ü" * 43},
        {"file": file},
        {"tenant": "ten_b"},
        {"expires": later},
        {"expires": ""},
        {"expires": "9" * 30},
        {"expires": "²"},
        {"tenant": "ten_a\n" + file},
    ):
        with pytest.raises(NotFound):
            await opened(links, url, **changed)


async def test_it_ends_with_its_time(links: BlobLinks, clock: Clock) -> None:
    url = await links.keep("ten_a", b"picture", "png")
    clock.ahead_s = 3590
    assert await opened(links, url)
    clock.ahead_s = 3601
    with pytest.raises(NotFound):
        await opened(links, url)


async def test_a_public_address_is_written_in_front(blobs: Blobs) -> None:
    links = BlobLinks(blobs, PEPPER, public_url="https://hub.example.com/ai/")
    assert (await links.keep("ten_a", b"x", "png")).startswith("https://hub.example.com/ai/v1/blobs/ten_a/")


@pytest.mark.parametrize(
    ("host", "base"),
    [
        (b"hub:8000", "http://hub:8000"),
        (b"[::1]:80", "http://[::1]:80"),
        (b"evil/path", ""),
        (b"a b", ""),
        (b"user@host", ""),
        (b"", ""),
    ],
)
def test_without_one_it_is_the_host_that_the_client_called(host: bytes, base: str) -> None:
    assert base_url({b"host": host}) == base


# --- the ring ----------------------------------------------------------------------------------


async def painter(call: Call, emit: Emit) -> None:
    await emit(Started("m", "w"))
    await emit(Delta(ImageDelta("progress", step=1, steps=1)))
    await emit(Delta(ImageDelta("image", 0, b"one")))
    await emit(Delta(ImageDelta("image", 1, url="https://vendor.example/two")))
    await emit(Finished(Usage(images=2)))


async def test_pictures_become_addresses_of_their_caller(links: BlobLinks) -> None:
    call = make_call("image", response_format="url", n=2)
    call = replace(call, principal=replace(TESTER, tenant_id="ten_x"))
    seen = Collector()
    await Links(links.keep)(call, seen, painter)
    assert [type(chunk) for chunk in seen.chunks] == [Started, Delta, Delta, Delta, Finished]
    images = [chunk.payload for chunk in seen.chunks if isinstance(chunk, Delta)][1:]
    assert [image.data for image in images] == [b"", b""]
    assert images[1].url == "https://vendor.example/two"
    assert images[0].url.startswith("/v1/blobs/ten_x/")
    assert (await opened(links, images[0].url)).data == b"one"


async def test_without_the_wish_nothing_is_kept() -> None:
    async def keep(tenant: str, data: bytes, ending: str) -> str:
        raise AssertionError(tenant)

    seen = Collector()
    await Links(keep)(make_call("image"), seen, painter)
    assert [chunk.payload.data for chunk in seen.chunks if isinstance(chunk, Delta)][1] == b"one"


async def test_a_store_that_fails_fails_the_call() -> None:
    async def keep(tenant: str, data: bytes, ending: str) -> str:
        raise StoreFailed

    seen = Collector()
    with pytest.raises(StoreFailed):
        await Links(keep)(make_call("image", response_format="url"), seen, painter)
    assert not any(isinstance(chunk, Finished) for chunk in seen.chunks)
