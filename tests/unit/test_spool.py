"""The write-ahead spool: what is written is billed once, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from zlib import crc32

import pytest

from inferhub.core.errors import Conflict, LedgerFull, SetupError, StoreFailed
from inferhub.core.usage import LostEvent, Usage
from inferhub.stores.spool.drain import Drain
from inferhub.stores.spool.feed import Feed
from inferhub.stores.spool.files import Files
from inferhub.stores.spool.frames import BEGIN, END, MAX_FRAME_BYTES, Record, decode, encode, pack, parse
from inferhub.stores.spool.progress import ENTRIES
from inferhub.stores.spool.slots import open_spool
from inferhub.stores.spool.spool import Spool
from inferhub.testing.failing_files import FailingFiles, Fault
from inferhub.testing.ledgers import Ledgers, drain_all, make_begin, make_event, work

MIB = 1024**2


class Taker:
    """A consumer in memory that may be down."""

    def __init__(self, name: str = "taker", *, wants_begins: bool = False) -> None:
        self.name = name
        self.wants_begins = wants_begins
        self.taken: list[Record] = []
        self.offers: list[tuple[str, tuple[str, ...]]] = []
        self.failures = 0

    async def take(self, records: list[Record], token: str) -> None:  # type: ignore[override]
        self.offers.append((token, tuple(record.id for record in records)))
        if self.failures:
            self.failures -= 1
            raise StoreFailed("away")
        self.taken += records


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[Ledgers]:
    books = Ledgers(tmp_path)
    yield books
    books.close()


async def take_all(spool: Spool, taker: Taker) -> list[Record]:
    feed = Feed(spool, taker, 100)  # type: ignore[arg-type]
    while feed.behind_bytes:
        assert await feed.step() is not None
    return taker.taken


# --- the plain way -----------------------------------------------------------------------------


async def test_what_is_written_comes_out_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    events = []
    for number in range(10):
        begin = make_begin(f"call_{number}")
        spool.begin(begin)
        events.append(make_event(begin, number, cost_usd="0.000000000000000001", endpoint="wörker"))
        spool.end(events[-1])
    assert await take_all(spool, Taker()) == events
    both = await take_all(spool, Taker("both", wants_begins=True))
    assert [record.id for record in both] == [event.id for event in events for _ in range(2)]
    assert spool.open_calls == 0
    spool.close()


async def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    spools = [open_spool(tmp_path, 64 * MIB) for _ in range(3)]
    assert [s.own.folder.name for s in spools] == ["0", "1", "2"]
    with pytest.raises(Conflict):
        Spool(tmp_path / "1", 64 * MIB)
    spools[1].own.close()
    successor = open_spool(tmp_path, 64 * MIB)
    assert successor.own.folder.name == "1"
    for spool in (spools[0].own, successor.own, spools[2].own):
        spool.close()


async def test_what_a_dead_process_left_is_taken_over_and_emptied(tmp_path: Path) -> None:
    first, second = open_spool(tmp_path, 64 * MIB).own, open_spool(tmp_path, 64 * MIB).own
    done, cut_off = make_begin("done"), make_begin("cut_off")
    second.begin(done)
    second.end(make_event(done, 1))
    second.begin(cut_off)
    second.close()
    first.close()
    spools = open_spool(tmp_path, 64 * MIB)
    assert [orphan.folder.name for orphan in spools.orphans] == ["1"]
    taker = Taker()
    drain = Drain(spools.own, [taker], orphans=spools.orphans, linger_s=0.01)
    running = asyncio.create_task(drain.run())
    assert await drain.flush(10)
    async with asyncio.timeout(10):
        while not spools.orphans[0].is_closed:
            await asyncio.sleep(0.01)
    running.cancel()
    assert {record.id for record in taker.taken} == {"done", "cut_off"}
    spools.own.close()
    # Nothing is left to adopt, and the numbers of the folder's segments go on.
    again = open_spool(tmp_path, 64 * MIB)
    assert again.orphans == ()
    reused = Spool(tmp_path / "1", 64 * MIB)
    begin = make_begin("later")
    reused.begin(begin)
    reused.end(make_event(begin, 1))
    assert [record.id for record in await take_all(reused, Taker())] == ["later"]
    reused.close()
    again.own.close()


async def test_segments_rotate_are_deleted_and_carry_open_calls(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB, segment_bytes=3000)
    long = make_begin("long")
    entry = spool.begin(long)
    spool.marks[entry] += 5
    for number in range(50):
        begin = make_begin(f"call_{number}")
        spool.begin(begin)
        spool.end(make_event(begin, 1))
    assert len(spool.segments) > 5
    taker = Taker(wants_begins=True)
    await take_all(spool, taker)
    assert [record.id for record in taker.taken].count("long") == 1
    spool.release(spool.segments[-1].number)
    assert len(spool.segments) == 1
    assert spool.used_bytes == sum(p.stat().st_size for p in (tmp_path / "0").glob("*.log"))
    spool.close()
    recovered = Spool(tmp_path / "0", 64 * MIB, bill=lambda m, u, at: (Decimal(u.output_tokens), "v1"))
    assert recovered.lost == 1
    (lost,) = [r for r in await take_all(recovered, taker) if isinstance(r, LostEvent)]
    assert (lost.id, lost.status, lost.source) == ("long", "lost", "estimated")
    assert (lost.input_tokens, lost.output_tokens, lost.total_tokens, lost.cost_usd) == (7, 5, 12, Decimal(5))
    recovered.close()


async def test_a_lost_call_that_delivered_nothing_is_unknown_and_free(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    spool.begin(make_begin("silent", meters=["tenant:a:usd:day"]))
    spool.close()
    recovered = Spool(tmp_path / "0", 64 * MIB, bill=lambda m, u, at: (Decimal(9), "v1"))
    (lost,) = await take_all(recovered, Taker())
    assert isinstance(lost, LostEvent)
    assert (lost.source, lost.total_tokens, lost.cost_usd) == ("unknown", 0, Decimal(0))
    assert lost.meters == ("tenant:a:usd:day",)
    recovered.close()


async def test_more_calls_than_progress_entries_are_written_all_the_same(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 256 * MIB)
    entries = [spool.begin(make_begin(f"c{n}")) for n in range(ENTRIES + 3)]
    assert entries[-1] == 0
    assert len(set(entries)) == ENTRIES
    for n in range(ENTRIES + 3):
        spool.end(make_event(make_begin(f"c{n}"), 1))
    assert len({spool.begin(make_begin(f"d{n}")) for n in range(100)}) == 100
    spool.close()


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"\x00" * 5 * MIB, b"{", struct.pack("<II", 400, 7) + b"B1234"])
async def test_a_torn_tail_is_cut_off(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    begin = make_begin("whole")
    spool.begin(begin)
    spool.end(make_event(begin, 1))
    path = spool.segments[-1].path
    spool.close()
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(tail)
    recovered = Spool(tmp_path / "0", 64 * MIB)
    assert "torn" in caplog.text
    assert path.stat().st_size == size
    assert [record.id for record in await take_all(recovered, Taker())] == ["whole"]
    recovered.close()


async def test_a_damaged_record_costs_only_itself(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    for name in ("a", "b", "c"):
        begin = make_begin(name)
        spool.begin(begin)
        spool.end(make_event(begin, 1))
    path = spool.segments[-1].path
    data = bytearray(path.read_bytes())
    spool.close()
    second_end = parse(bytes(data), is_whole=True).frames[3]
    data[second_end.start + 40] ^= 1
    path.write_bytes(data)
    recovered = Spool(tmp_path / "0", 64 * MIB)
    found = {record.id: record for record in await take_all(recovered, Taker())}
    assert set(found) == {"a", "b", "c"}
    assert isinstance(found["b"], LostEvent)
    recovered.close()


def test_frames_survive_any_cut_and_any_window() -> None:
    begins = [make_begin(f"c{n}", model="x" * n) for n in range(20)]
    data = b"".join(pack(BEGIN, n, encode(begin)) for n, begin in enumerate(begins))
    for cut in range(len(data) + 1):
        parsed = parse(data[:cut], is_whole=False)
        assert parsed.damaged_bytes == 0
        rest = parse(data[parsed.end :], is_whole=True)
        assert len(parsed.frames) + len(rest.frames) == 20
    parsed = parse(data, is_whole=True)
    assert [decode(data, frame) for frame in parsed.frames] == begins
    assert [frame.entry for frame in parsed.frames] == list(range(20))


def test_a_large_hole_in_a_window_is_stepped_over_with_progress() -> None:
    good = pack(END, 0, encode(make_event(make_begin("c"))))
    data = good + b"\x07" * (3 * MAX_FRAME_BYTES) + good
    found, at = 0, 0
    for _ in range(100):
        window = data[at : at + 2 * MAX_FRAME_BYTES]
        parsed = parse(window, is_whole=at + len(window) == len(data))
        found, at = found + len(parsed.frames), at + parsed.end
        if at == len(data):
            break
    assert (found, at) == (2, len(data))


@pytest.mark.parametrize("content", [b"", b"{}x", b'{"segment":"x"}', b'{"segment":99,"start":0}'])
async def test_a_damaged_cursor_begins_again(tmp_path: Path, content: bytes) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    begin = make_begin("a")
    spool.begin(begin)
    spool.end(make_event(begin, 1))
    await take_all(spool, Taker())
    (tmp_path / "0" / "cursor-taker").write_bytes(content)
    assert [record.id for record in await take_all(spool, Taker())] == ["a"]
    spool.close()


def test_a_checksum_is_of_the_whole_payload() -> None:
    frame = pack(BEGIN, 3, b"{}")
    assert struct.unpack_from("<I", frame, 4)[0] == crc32(frame[8:])


# --- full --------------------------------------------------------------------------------------


def test_a_full_spool_refuses_new_calls_and_still_takes_ends(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 100_000)
    assert spool.has_room
    begun = []
    while spool.refused == 0:
        begin = make_begin(f"c{len(begun)}")
        with suppress(LedgerFull):
            spool.begin(begin)
            begun.append(begin)
    assert 20 < len(begun) < 1000
    for begin in begun:
        spool.end(make_event(begin, 1))
    assert spool.unwritten == 0
    assert spool.used_bytes <= 100_000
    assert spool.refused == 1
    spool.close()


async def test_a_full_disk_loses_no_event_and_recovers_by_itself(tmp_path: Path) -> None:
    files = FailingFiles()
    spool = Spool(tmp_path / "0", 64 * MIB, files=files)
    begins = [make_begin(f"c{n}") for n in range(5)]
    for begin in begins:
        spool.begin(begin)
    files.fail_from_now(errno.ENOSPC)
    for begin in begins:
        spool.end(make_event(begin, 1))
    assert spool.unwritten == 5
    assert not spool.has_room
    with pytest.raises(LedgerFull):
        spool.begin(make_begin("refused"))
    files.mend()
    spool.begin(make_begin("again"))
    assert spool.unwritten == 0
    assert {record.id for record in await take_all(spool, Taker())} == {b.id for b in begins}
    spool.close()


def test_the_reserve_is_given_up_for_ends(tmp_path: Path) -> None:
    class Disk(Files):
        room = 0
        is_full = False

        def write(self, descriptor: int, data: bytes) -> int:
            if self.is_full and self.room < len(data):
                raise OSError(errno.ENOSPC, "full")
            return super().write(descriptor, data)

        def truncate(self, descriptor: int, size: int) -> None:
            self.room += os.fstat(descriptor).st_size - size
            super().truncate(descriptor, size)

        def allocate(self, descriptor: int, size: int) -> None:
            if self.is_full:
                raise OSError(errno.ENOSPC, "full")
            super().allocate(descriptor, size)

    disk = Disk()
    spool = Spool(tmp_path / "0", 64 * MIB, files=disk)
    begin = make_begin("a")
    spool.begin(begin)
    disk.is_full = True
    spool.end(make_event(begin, 1))
    assert spool.unwritten == 0
    with pytest.raises(LedgerFull):
        spool.begin(make_begin("b"))
    disk.is_full = False
    spool.begin(make_begin("b"))
    spool.close()


def test_a_folder_that_cannot_be_used_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="spool_dir"):
        open_spool(tmp_path / "file", 64 * MIB)


# --- the drain ---------------------------------------------------------------------------------


async def test_a_store_that_is_down_gets_the_same_batches_later(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    for number in range(30):
        begin = make_begin(f"c{number}")
        spool.begin(begin)
        spool.end(make_event(begin, 1))
    usage, events = Taker("usage"), Taker("events", wants_begins=True)
    usage.failures = 2
    drain = Drain(spool, [usage, events], batch_records=20, linger_s=0.01)  # type: ignore[list-item]
    assert drain.backlog().bytes > 0
    assert drain.backlog().oldest_s > 0 or drain.backlog().oldest_s == 0.0
    running = asyncio.create_task(drain.run())
    assert await drain.flush(20)
    running.cancel()
    assert len(usage.taken) == 30
    assert len(events.taken) == 60
    assert usage.offers[0] == usage.offers[1] == usage.offers[2]
    assert len({token for token, _ in usage.offers}) == 3
    assert drain.backlog().bytes == 0
    spool.close()


async def test_a_batch_has_the_same_boundaries_after_a_crash(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    for number in range(4):
        begin = make_begin(f"c{number}")
        spool.begin(begin)
        spool.end(make_event(begin, 1))
    down = Taker()
    down.failures = 1
    assert await Feed(spool, down, 100).step() is None  # type: ignore[arg-type]
    for number in range(4, 8):
        begin = make_begin(f"c{number}")
        spool.begin(begin)
        spool.end(make_event(begin, 1))
    spool.close()
    reopened = Spool(tmp_path / "0", 64 * MIB)
    taker = Taker()
    await take_all(reopened, taker)
    assert taker.offers[0] == down.offers[0]
    assert [record.id for record in taker.taken] == [f"c{n}" for n in range(8)]
    reopened.close()


async def test_flush_gives_up_in_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "0", 64 * MIB)
    begin = make_begin("a")
    spool.begin(begin)
    spool.end(make_event(begin, 1))
    taker = Taker()
    taker.failures = 10**6
    drain = Drain(spool, [taker])  # type: ignore[list-item]
    running = asyncio.create_task(drain.run())
    assert not await drain.flush(0.1)
    running.cancel()
    spool.close()


async def test_fsync_commits_in_groups(tmp_path: Path) -> None:
    class Counting(Files):
        syncs = 0

        def fsync(self, descriptor: int) -> None:
            self.syncs += 1
            super().fsync(descriptor)

    files = Counting()
    spool = Spool(tmp_path / "0", 64 * MIB, fsync=True, files=files)
    before = files.syncs

    async def one(number: int) -> None:
        begin = make_begin(f"c{number}")
        spool.begin(begin)
        await spool.sync()
        spool.end(make_event(begin, 1))
        await spool.sync()

    await asyncio.gather(*(one(n) for n in range(100)))
    assert 0 < files.syncs - before < 20
    assert len(await take_all(spool, Taker())) == 100
    spool.close()


async def test_a_failing_fsync_refuses_the_call_and_goes_on_in_a_new_file(tmp_path: Path) -> None:
    files = FailingFiles(error=errno.EIO)
    spool = Spool(tmp_path / "0", 64 * MIB, fsync=True, files=files)
    spool.begin(make_begin("a"))
    files.fail_from_now(errno.EIO)
    with pytest.raises(LedgerFull):
        await spool.sync()
    files.mend()
    spool.end(make_event(make_begin("a"), 1))
    await spool.sync()
    assert len(spool.segments) == 2
    spool.close()


# --- every write point -------------------------------------------------------------------------


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("fault", ["error", "half"])
async def test_no_failing_write_loses_or_doubles_an_event(
    tmp_path: Path, fault: Fault, for_good: bool
) -> None:
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        ledgers = Ledgers(folder)
        files = FailingFiles(at, fault, for_good=for_good)
        try:
            spool = await work(folder, ledgers, files)
        except SetupError:
            files.mend()
            spool = await work(folder, ledgers, files)
        files.mend()
        spool.retry()
        assert spool.unwritten == 0
        assert spool.open_calls == 0
        await drain_all(spool, ledgers)
        spool.close()
        # Opened again, it must have nothing more to say.
        spool = Spool(folder / "spool", 64 * MIB)
        assert spool.lost == 0
        await drain_all(spool, ledgers)
        spool.close()
        ledgers.check()
        assert set(ledgers.events()) == set(ledgers.begun.lines())
        assert all(event.status == "ok" for event in ledgers.events().values())
        ledgers.close()
        if not files.has_failed:
            break
    assert at > 50


def test_usage_that_contradicts_itself_becomes_an_estimate() -> None:
    assert Usage(10, 5, 20, 9).checked() == Usage(10, 5, 10, 5, "estimated")
    assert Usage(-1, -2, -3, -4).checked() == Usage(source="estimated")
    assert Usage(2**70, images=-1).checked() == Usage(2**40, source="estimated")
    fine = Usage(10, 5, 10, 5)
    assert fine.checked() is fine
