"""Gauges, tickets and marks as rows of an SQLite file, inside one transaction at a time.

Used by `sqlite`, in its thread alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from inferhub.core.errors import InferHubError, StoreFailed
from inferhub.stores.counters.base import LEASE_S, REMEMBER_S
from inferhub.stores.counters.book import Book, Ticket
from inferhub.stores.counters.sqlite_file import translate
from inferhub.stores.counters.window import Clock, Gauge, Instant, is_idle

_MOST_DUE = 256
"""Tickets that one transaction gives back or forgets, so that none takes long."""
_MOST_KEPT = 10_000
"""Gauges in memory."""
_CLEAN_EVERY = 256
"""Transactions between two looks at some gauges and marks, whether they may be forgotten."""
_CLEANED_AT_ONCE = 512

_GAUGE = "SELECT state FROM gauges WHERE key = ?"
_SAVE_GAUGE = "INSERT INTO gauges VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET state = excluded.state"
_TICKET = "SELECT state FROM tickets WHERE id = ?"
_SAVE_TICKET = (
    "INSERT INTO tickets VALUES (?, ?, ?) "
    "ON CONFLICT (id) DO UPDATE SET state = excluded.state, due_ms = excluded.due_ms"
)
_DUE = "SELECT id, state FROM tickets WHERE due_ms <= ? ORDER BY due_ms LIMIT ?"
_FORGET_TICKET = "DELETE FROM tickets WHERE id = ?"
_MARK = (
    "INSERT INTO marks VALUES (?, ?) "
    "ON CONFLICT (mark) DO UPDATE SET until_ms = excluded.until_ms WHERE until_ms <= ?"
)
_SOME_GAUGES = "SELECT key, state FROM gauges WHERE key > ? ORDER BY key LIMIT ?"


class SqliteSession:
    """One connection; `begin`, any number of operations, then `commit`."""

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Clock) -> None:
        self._connection = connection
        self._path = path
        self._clock = clock
        self._decode_gauge = msgspec.msgpack.Decoder(Gauge).decode
        self._decode_ticket = msgspec.msgpack.Decoder(Ticket).decode
        self._encode = msgspec.msgpack.Encoder().encode
        # As in the file. Kept from one transaction to the next while no other process writes.
        self._gauges: dict[str, Gauge] = {}
        self._version = -1
        # Read or changed in this transaction.
        self._changed_gauges: set[str] = set()
        self._tickets: dict[str, Ticket] = {}
        self._changed_tickets: set[str] = set()
        self._has_looked = False
        self._until_cleaning = _CLEAN_EVERY
        self._cleaned_to = ""
        self.book = Book(self, REMEMBER_S)

    @property
    def now(self) -> Instant:
        """Asked for inside a transaction, so that it never goes back from one process to the next."""
        return self._clock()

    # --- the transaction --------------------------------------------------------------------------
    def begin(self) -> None:
        self._changed_gauges.clear()
        self._tickets.clear()
        self._changed_tickets.clear()
        self._has_looked = False
        self._connection.execute("BEGIN IMMEDIATE")
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version or len(self._gauges) > _MOST_KEPT:
            self._gauges.clear()
            self._version = version

    def commit(self) -> None:
        encode, write = self._encode, self._connection.executemany
        write(_SAVE_GAUGE, [(key, encode(self._gauges[key])) for key in self._changed_gauges])
        changed = ((ticket, self._tickets[ticket]) for ticket in self._changed_tickets)
        write(_SAVE_TICKET, [(ticket, encode(state), state.due_ms) for ticket, state in changed])
        self._until_cleaning -= 1
        if not self._until_cleaning:
            self._until_cleaning = _CLEAN_EVERY
            self._clean(self.now)
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        self._gauges.clear()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()

    def explain(self, error: Exception) -> InferHubError:
        """What callers are told of an error in here."""
        if isinstance(error, sqlite3.Error):
            return translate(self._path, error)
        if isinstance(error, msgspec.MsgspecError):
            return StoreFailed(f"The counters {self._path} hold what no InferHub wrote: {error}.")
        return StoreFailed(f"The counters {self._path} failed: {type(error).__name__}.")

    # --- Rows -------------------------------------------------------------------------------------
    def gauge(self, key: str) -> Gauge:
        gauge = self._gauges.get(key)
        if gauge is None:
            row = self._connection.execute(_GAUGE, (key,)).fetchone()
            gauge = self._gauges[key] = self._decode_gauge(row[0]) if row else Gauge()
        return gauge

    def save_gauge(self, key: str, gauge: Gauge) -> None:
        self._gauges[key] = gauge
        self._changed_gauges.add(key)

    def ticket(self, ticket: str) -> Ticket | None:
        state = self._tickets.get(ticket)
        if state is None:
            row = self._connection.execute(_TICKET, (ticket,)).fetchone()
            if row:
                state = self._tickets[ticket] = self._decode_ticket(row[0])
        return state

    def save_ticket(self, ticket: str, state: Ticket) -> None:
        self._tickets[ticket] = state
        self._changed_tickets.add(ticket)

    def lapsed(self, now: Instant) -> Iterable[tuple[str, Ticket]]:
        if self._has_looked:
            return ()
        self._has_looked = True
        lapsed: list[tuple[str, Ticket]] = []
        for ticket, state in self._connection.execute(_DUE, (now.steady_ms, _MOST_DUE)).fetchall():
            decoded = self._decode_ticket(state)
            if decoded.holds:
                lapsed.append((ticket, decoded))
            else:
                self._connection.execute(_FORGET_TICKET, (ticket,))
        return lapsed

    # --- the rest ---------------------------------------------------------------------------------
    def mark_once(self, mark: str, ttl_s: float) -> bool:
        now_ms = self.now.wall_ms
        done = self._connection.execute(_MARK, (mark, now_ms + int(ttl_s * 1000), now_ms))
        return done.rowcount == 1

    def ping(self) -> None:
        self._connection.execute("SELECT count(*) FROM marks").fetchone()

    def after_a_reboot(self) -> None:
        """Leases that an earlier run of the machine left run anew, in the steady time of this one."""
        now_ms = self.now.steady_ms
        latest_ms = now_ms + int(REMEMBER_S * 1000)
        again_ms = now_ms + int(LEASE_S * 1000)
        self._connection.execute("UPDATE tickets SET due_ms = ? WHERE due_ms > ?", (again_ms, latest_ms))

    def _clean(self, now: Instant) -> None:
        rows = self._connection.execute(_SOME_GAUGES, (self._cleaned_to, _CLEANED_AT_ONCE)).fetchall()
        for key, state in rows:
            if is_idle(self._decode_gauge(state), now):
                self._connection.execute("DELETE FROM gauges WHERE key = ?", (key,))
                self._gauges.pop(key, None)
        self._cleaned_to = rows[-1][0] if len(rows) == _CLEANED_AT_ONCE else ""
        self._connection.execute("DELETE FROM marks WHERE until_ms <= ?", (now.wall_ms,))
