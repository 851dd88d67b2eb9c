"""A small workload over a spool, and the three ledgers to judge it by: upstream, billed, received.

The books are files that outlive a killed process; a line is one `os.write`. Used by the fault sweeps.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from inferhub.core.errors import LedgerFull
from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores.spool.feed import Feed
from inferhub.stores.spool.files import Files
from inferhub.stores.spool.frames import Record
from inferhub.stores.spool.spool import Spool

CALLS = 12
TOKENS = 3
SEGMENT_BYTES = 2500


def make_begin(call_id: str, **fields: object) -> Begin:
    values = {"request_id": f"req_{call_id}", "at_ms": 1_800_000_000_000, "tenant_id": "ten_a"}
    values |= {"project_id": "prj_a", "key_id": "ih_a", "modality": "chat", "model": "m", "input_tokens": 7}
    return msgspec.convert({"id": call_id, **values, **fields}, Begin)


def make_event(begin: Begin, output_tokens: int = 0, **fields: object) -> UsageEvent:
    values = {
        name: getattr(begin, name)
        for name in ("id", "request_id", "at_ms", "tenant_id", "project_id", "key_id", "modality", "model")
    }
    tokens = {"input_tokens": 7, "output_tokens": output_tokens, "total_tokens": 7 + output_tokens}
    return msgspec.convert(
        {**values, "requested_model": begin.model, "source": "reported", **tokens, **fields}, UsageEvent
    )


class Book:
    """Lines of one ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\n".encode())

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()

    def close(self) -> None:
        os.close(self._descriptor)


class Ledgers:
    """Upstream, received and billed, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.upstream = Book(folder / "upstream")
        self.received = Book(folder / "received")
        self.begun = Book(folder / "begun")
        self.billed = Book(folder / "billed")
        self.tokens = Book(folder / "tokens")

    def close(self) -> None:
        for book in (self.upstream, self.received, self.begun, self.billed, self.tokens):
            book.close()

    def events(self) -> dict[str, UsageEvent]:
        """By id. A repeated event must be the same in every byte, as must a repeated batch."""
        batches: dict[str, str] = {}
        for line in self.tokens.lines():
            token, ids = line.split(" ", 1)
            assert batches.setdefault(token, ids) == ids, f"batch {token} changed"
        events: dict[str, UsageEvent] = {}
        for line in self.billed.lines():
            event = msgspec.json.decode(line, type=UsageEvent)
            assert events.setdefault(event.id, event) == event, f"{event.id} changed"
        return events

    def check(self) -> None:
        """upstream ≥ billed ≥ received for each call, and each begun call billed exactly once."""
        events = self.events()
        upstream, received = Counter(self.upstream.lines()), Counter(self.received.lines())
        begun = self.begun.lines()
        assert set(begun) <= set(events), f"lost: {set(begun) - set(events)}"
        # A call may be killed between its begin and the line that says so.
        assert len(set(events) - set(begun)) <= 1
        for call_id in {*upstream, *received, *events}:
            billed = events[call_id].output_tokens
            assert upstream[call_id] >= billed >= received[call_id], call_id


class Sink:
    """A consumer that keeps what it takes in the books."""

    wants_begins = False

    def __init__(self, ledgers: Ledgers, name: str = "sink") -> None:
        self.name = name
        self._ledgers = ledgers

    async def take(self, records: Sequence[Record], token: str) -> None:
        self._ledgers.tokens.note(f"{token} {','.join(record.id for record in records)}")
        for record in records:
            self._ledgers.billed.note(msgspec.json.encode(record).decode())


async def drain_all(spool: Spool, ledgers: Ledgers, batch_records: int = 5) -> None:
    feed = Feed(spool, Sink(ledgers), batch_records)
    while feed.behind_bytes:
        assert await feed.step() is not None
    spool.release(feed.segment)


async def work(folder: Path, ledgers: Ledgers, files: Files, *, prefix: str = "c") -> Spool:
    """Calls that overlap, one that stays open across segments, and a drain that runs between them."""
    spool = Spool(folder / "spool", 64 * 1024**2, files=files, segment_bytes=SEGMENT_BYTES)
    feed = Feed(spool, Sink(ledgers), 5)
    held: tuple[Begin, int] | None = None
    for number in range(CALLS):
        begin = make_begin(f"{prefix}{number}")
        try:
            entry = spool.begin(begin)
        except LedgerFull:
            continue
        ledgers.begun.note(begin.id)
        tag = spool.marks[entry]
        for count in range(1, TOKENS + 1):
            ledgers.upstream.note(begin.id)
            spool.marks[entry] = tag + count
            ledgers.received.note(begin.id)
        if number == 0:
            held = (begin, entry)
        else:
            spool.end(make_event(begin, TOKENS))
        if number % 3 == 2:
            await feed.step()
            spool.release(feed.segment)
    if held:
        spool.end(make_event(held[0], TOKENS))
    return spool
