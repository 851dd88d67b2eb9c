"""What every place for files promises its keeper, each a real one, and what the keeper makes of it."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores import open_blobs
from inferhub.stores.blobs import files, s3
from inferhub.stores.blobs.base import Objects
from inferhub.stores.blobs.keeper import Blobs
from inferhub.testing.backing import Seaweed, running_seaweed


@pytest_asyncio.fixture(params=["file", "s3"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Objects]:
    store: Objects
    if request.param == "file":
        store = await files.open_objects(f"file://{tmp_path}/blobs")
    else:
        store = await s3.open_objects(request.getfixturevalue("seaweed").fresh())
    yield store
    await store.close()


async def names(objects: Objects) -> set[str]:
    return {entry.name async for entry in objects.entries()}


async def test_what_was_written_is_read_with_its_size_and_age(objects: Objects) -> None:
    before_s = time.time()
    assert await objects.read("ten_a/one.png") is None
    await objects.write("ten_a/one.png", b"\x00picture")
    await objects.write("ten_b/two.png", b"")
    found = await objects.read("ten_a/one.png")
    assert found is not None
    assert found[1] == b"\x00picture"
    assert found[0].name == "ten_a/one.png"
    assert found[0].size_bytes == 8
    assert before_s - 2 <= found[0].written_s <= time.time() + 2
    assert await names(objects) == {"ten_a/one.png", "ten_b/two.png"}


async def test_what_is_removed_is_gone_and_may_be_removed_again(objects: Objects) -> None:
    await objects.write("ten_a/one.png", b"x")
    for _ in range(2):
        await objects.remove("ten_a/one.png")
        assert await objects.read("ten_a/one.png") is None
    assert await names(objects) == set()


async def test_twenty_writers_at_once(objects: Objects) -> None:
    await asyncio.gather(*(objects.write(f"ten_a/{n}.png", bytes([n]) * 1000) for n in range(20)))
    assert len(await names(objects)) == 20
    found = await objects.read("ten_a/7.png")
    assert found is not None
    assert found[1] == b"\x07" * 1000


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


async def test_a_file_is_kept_for_its_tenant_until_it_is_too_old(objects: Objects) -> None:
    clock = Clock()
    blobs = Blobs(objects, ttl_s=600, max_bytes=10_000, clock=clock)
    file = await blobs.put("ten_a", b"picture", "webp")
    found = await blobs.get("ten_a", file)
    assert found is not None
    assert (found.data, found.media_type) == (b"picture", "image/webp")
    assert await blobs.get("ten_b", file) is None
    clock.ahead_s = 700
    assert await blobs.get("ten_a", file) is None
    await blobs.sweep()
    assert await names(objects) == set()


async def test_the_oldest_leave_when_there_is_no_room(objects: Objects) -> None:
    blobs = Blobs(objects, ttl_s=600, max_bytes=1_000)
    # Ages differ by more than any store's clock is coarse: a second, in S3.
    first = await blobs.put("ten_a", b"1" * 400, "png")
    await asyncio.sleep(1.1)
    second = await blobs.put("ten_a", b"2" * 400, "png")
    third = await blobs.put("ten_b", b"3" * 400, "png")
    assert await blobs.get("ten_a", first) is None
    assert await blobs.get("ten_a", second) is not None
    assert await blobs.get("ten_b", third) is not None
    with pytest.raises(StoreFailed):
        await blobs.put("ten_a", b"4" * 1_001, "png")


@pytest.mark.parametrize(
    ("tenant", "file"),
    [
        ("..", "0" * 32 + ".png"),
        ("ten_a", "../../etc/passwd"),
        ("ten_a", "0" * 32 + ".html"),
        ("ten_a", "0" * 32),
        ("ten_a/../ten_b", "0" * 32 + ".png"),
        ("", "0" * 32 + ".png"),
    ],
)
async def test_names_that_were_never_given_find_nothing(objects: Objects, tenant: str, file: str) -> None:
    assert await Blobs(objects, ttl_s=600, max_bytes=1_000).get(tenant, file) is None


async def test_nobody_else_on_the_machine_reads_the_files(tmp_path: Path) -> None:
    objects = await files.open_objects(f"file://{tmp_path}/blobs")
    await objects.write("ten_a/one.png", b"x")
    for path in (tmp_path / "blobs", tmp_path / "blobs" / "ten_a", tmp_path / "blobs" / "ten_a" / "one.png"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


async def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    blobs = await open_blobs(f"file://{tmp_path}/blobs", ttl_s=600, max_bytes=1_000)
    folder = tmp_path / "blobs" / "ten_a"
    folder.mkdir()
    half = folder / "abc.partial"
    half.write_bytes(b"x")
    os.utime(half, (time.time() - 700, time.time() - 700))
    await blobs.sweep()
    assert list(folder.iterdir()) == []


async def test_a_server_that_is_away_fails_as_a_store_and_says_no_secret(tmp_path: Path) -> None:
    with running_seaweed(tmp_path) as server:
        blobs = await open_blobs(server.fresh(), ttl_s=600, max_bytes=1_000)
        await blobs.put("ten_a", b"x", "png")
        server.kill()
        with pytest.raises(StoreFailed) as failure:
            await blobs.put("ten_a", b"x", "png")
    assert "secret" not in str(failure.value)


async def test_a_wrong_secret_is_refused(seaweed: Seaweed) -> None:
    objects = await s3.open_objects(seaweed.fresh().replace("not-a-secret", "not-the-secret"))
    with pytest.raises(StoreFailed):
        await objects.write("ten_a/one.png", b"x")


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "file://relative", "s3://", "s3://bucket?tls=no", "s3:///prefix"]
)
async def test_addresses_that_are_none_are_refused_at_the_start(url: str) -> None:
    with pytest.raises(SetupError) as refusal:
        await open_blobs(url, ttl_s=600, max_bytes=1_000)
    assert refusal.value.param == "blobs_url"
