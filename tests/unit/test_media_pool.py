"""The processes of a pool: as many as allowed, gone when idle, cancelled, killed or orphaned, and none left over."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from inferhub.core.errors import Draining, Invalid, Overloaded
from inferhub.media import MediaLimits, MediaPool, Picture, wav_header

SOUND = wav_header(16_000) + bytes(64_000)
PICTURE = Picture(64, 48, bytes(range(256)) * 36)


def is_running(pid: int) -> bool:
    """An orphan may be a zombie until somebody reaps it; it runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def read(pid: int, what: str) -> str:
    return Path(f"/proc/{pid}/{what}").read_text()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def all_of(source: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in source])


async def waiting(started: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """Somebody who says a little, and then nothing."""
    yield bytes(3_200)
    if started is not None:
        started.set()
    await asyncio.Event().wait()


async def busy_child(pool: MediaPool) -> tuple[asyncio.Task[bytes], int]:
    before = pool.pids
    task = asyncio.create_task(all_of(pool.decode_live(waiting(), format="pcm")))
    await until(lambda: bool(pool.pids - before))
    [pid] = pool.pids - before
    return task, pid


@pytest.fixture
async def pool() -> AsyncIterator[MediaPool]:
    pool = MediaPool()
    yield pool
    pids = pool.pids
    await pool.close()
    assert not any(map(is_running, pids))


async def test_a_pool_costs_nothing_until_it_is_used(pool: MediaPool) -> None:
    assert not pool.pids


async def test_a_child_does_one_job_after_the_other(pool: MediaPool) -> None:
    await pool.warm("audio")
    pids = pool.pids
    for _ in range(3):
        assert await all_of(pool.decode_audio(SOUND)) == bytes(64_000)
        assert await pool.encode_image(PICTURE, "png")
        with pytest.raises(Invalid):
            await all_of(pool.decode_audio(b"fLaC" + bytes(100)))
    assert pool.pids == pids
    assert len(pids) == 1


async def test_twenty_jobs_at_once_take_no_more_children_than_allowed() -> None:
    pool = MediaPool(MediaLimits(jobs_at_once=3))
    most = 0

    async def job() -> bytes:
        nonlocal most
        data = await pool.encode_image(PICTURE, "png")
        most = max(most, len(pool.pids))
        again = await pool.decode_image(data)
        assert again == PICTURE
        return data

    assert len(set(await asyncio.gather(*(job() for _ in range(20))))) == 1
    assert 1 <= most <= 3
    await pool.close()


async def test_who_waits_too_long_or_behind_too_many_is_told_so() -> None:
    pool = MediaPool(MediaLimits(streams_at_once=1, waiting=1, wait_s=0.3))
    task, _ = await busy_child(pool)
    second = asyncio.create_task(all_of(pool.decode_live(waiting(), format="pcm")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="Too many"):
        await all_of(pool.decode_live(waiting(), format="pcm"))
    with pytest.raises(Overloaded, match="took too long"):
        await second
    assert await all_of(pool.decode_audio(SOUND)), "what is there as a whole waits for no stream"
    task.cancel()
    await asyncio.wait([task])
    await pool.close()


async def test_idle_children_end() -> None:
    pool = MediaPool(MediaLimits(idle_s=0.05))
    await pool.warm("image")
    [pid] = pool.pids
    await until(lambda: not pool.pids)
    await until(lambda: not is_running(pid))
    assert await pool.encode_image(PICTURE, "png")
    await pool.close()


async def test_a_child_is_replaced_after_some_jobs() -> None:
    pool = MediaPool(MediaLimits(jobs_per_child=2))
    seen = set()
    for _ in range(6):
        await pool.encode_image(PICTURE, "png")
        seen |= pool.pids
    assert len(pool.pids) == 0
    await pool.close()


async def test_cancelling_ends_the_child_at_once(pool: MediaPool) -> None:
    task, pid = await busy_child(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_running(pid)
    assert not pool.pids
    assert await all_of(pool.decode_audio(SOUND))


async def test_closing_the_iterator_ends_the_child_and_the_source(pool: MediaPool) -> None:
    ended = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(32_000)
        finally:
            ended.set()

    async with aclosing(pool.encode_audio(source(), rate_hz=16_000, format="mp3")) as pieces:
        assert await anext(pieces)
        [pid] = pool.pids
    assert ended.is_set()
    assert not is_running(pid)


async def test_an_iterator_that_is_dropped_ends_the_child(pool: MediaPool) -> None:
    async for _ in pool.decode_live(waiting(), format="pcm", input_rate_hz=8_000):
        break
    gc.collect()
    await until(lambda: not pool.pids)


async def test_who_reads_slowly_is_not_waited_for_with_all_of_it_in_memory(pool: MediaPool) -> None:
    """The pipe is the back-pressure: the source is not asked for more than what fits into it."""
    given = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(400):
            given += 32_000
            yield bytes(32_000)

    async with aclosing(pool.decode_live(source(), format="pcm")) as pieces:
        assert await anext(pieces)
        last = -1
        while last != given:
            last = given
            await asyncio.sleep(0.3)
        assert given < 3 * 1024**2
        rest = [len(piece) async for piece in pieces]
        assert sum(rest) > 400 * 32_000 * 0.9


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_child_that_dies_fails_one_request(pool: MediaPool, number: signal.Signals) -> None:
    task, pid = await busy_child(pool)
    os.kill(pid, number)
    with pytest.raises(Invalid) as caught:
        await task
    assert (caught.value.http, caught.value.wire_code, caught.value.param) == (400, "invalid_audio", "audio")
    assert await all_of(pool.decode_audio(SOUND))


async def test_an_idle_child_that_died_is_replaced(pool: MediaPool) -> None:
    await pool.warm("image")
    [pid] = pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not pool.pids)
    assert await pool.encode_image(PICTURE, "png")


async def test_a_child_that_does_not_answer_is_killed() -> None:
    pool = MediaPool(MediaLimits(time_s=8))
    task, silent = await busy_child(pool)
    await pool.warm("audio")
    [pid] = pool.pids - {silent}
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Invalid):
        await all_of(pool.decode_audio(SOUND))
    assert not is_running(pid)
    assert not task.done(), "there it is the client that says nothing"
    task.cancel()
    await asyncio.wait([task])
    await pool.close()


async def test_a_job_that_computes_for_too_long_is_ended() -> None:
    pool = MediaPool(MediaLimits(cpu_s=1, duration_s=10**6, input_bytes=2**31))

    silence = wav_header(4_000) + bytes(2**26)
    with pytest.raises(Invalid) as caught:
        await all_of(pool.decode_audio(silence, rate_hz=192_000))
    assert caught.value.wire_code == "invalid_audio"
    await pool.close()


async def test_a_closed_pool_has_no_children_and_takes_no_jobs() -> None:
    pool = MediaPool()
    task, _ = await busy_child(pool)
    await pool.warm("audio")
    pids = pool.pids
    assert len(pids) == 2
    await pool.close()
    with pytest.raises(Draining):
        await task
    with pytest.raises(Draining):
        await pool.warm("image")
    assert not any(map(is_running, pids))


async def test_children_know_none_of_our_secrets_and_open_no_files(
    pool: MediaPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENDOR_API_KEY", "canary")
    task, pid = await busy_child(pool)
    assert b"canary" not in read(pid, "environ").encode()
    await until(lambda: "Max open files            0 " in read(pid, "limits"))
    limits = read(pid, "limits")
    assert f"Max address space         {MediaLimits().memory_bytes} " in limits
    assert "Max file size             0 " in limits
    task.cancel()
    await asyncio.wait([task])


ORPHANS = """
import asyncio
from inferhub.media import MediaPool

async def forever():
    yield bytes(3200)
    await asyncio.Event().wait()

async def main():
    pool = MediaPool()
    await pool.warm("image")
    async for _ in pool.decode_live(forever(), format="pcm"):
        await pool.encode_image(__import__("inferhub.media").media.Picture(1, 1, b"abc"), "png")
        print(*pool.pids, flush=True)

asyncio.run(main())
"""


async def test_children_die_with_their_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:  # noqa: ASYNC220
        assert parent.stdout is not None
        pids = [int(word) for word in (await asyncio.to_thread(parent.stdout.readline)).split()]
        assert len(pids) >= 1
        assert all(map(is_running, pids))
        parent.kill()
    await until(lambda: not any(map(is_running, pids)))
