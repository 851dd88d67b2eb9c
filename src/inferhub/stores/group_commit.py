"""One thread with one SQLite connection: whatever was asked meanwhile becomes its next transaction.

Used by the SQLite answers of `counters`, `cache` and `responses`; knows nothing of any.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from inferhub.core.errors import InferHubError, StoreFailed

T = TypeVar("T")
S = TypeVar("S", bound="Session")

MAX_GROUP = 64
MAX_WAITING = 10_000


class Session(Protocol):
    """What the work is done on, in the thread alone."""

    def begin(self) -> None: ...

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...

    def explain(self, error: Exception) -> InferHubError:
        """What callers are told of an error in here."""


class FileSession:
    """The plain half of a `Session`: one connection, and transactions that are for writing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def begin(self) -> None:
        # At once for writing: a read that becomes a write later would fail instead of waiting its turn.
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


class _Job(Generic[S]):
    __slots__ = ("answer", "error", "future", "work")

    def __init__(self, work: Callable[[S], object], future: asyncio.Future[object]) -> None:
        self.work = work
        self.future = future
        self.answer: object = None
        self.error: InferHubError | None = None


class GroupCommit(Generic[S]):
    """Runs work in groups of one transaction. An error undoes the group, and everybody in it hears of it."""

    def __init__(self, session: S, name: str, timeout_s: float) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._name = name
        self._jobs: SimpleQueue[_Job[S] | None] = SimpleQueue()
        self._waiting = 0
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[S], T]) -> T:
        """What `work` returns, once it is committed. Raises `StoreFailed`, also when it takes too long."""
        if self._is_closed:
            raise StoreFailed(f"The {self._name} are closed.")
        if self._waiting >= MAX_WAITING:
            raise StoreFailed(f"The {self._name} are too slow: {MAX_WAITING} operations wait.")
        future: asyncio.Future[T] = self._loop.create_future()
        # The late one is not waited for: its transaction may still be committed.
        timer = self._loop.call_later(self._timeout_s, self._give_up, future)
        self._waiting += 1
        self._jobs.put(_Job(work, future))  # type: ignore[arg-type]
        try:
            return await future
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Finish what was asked, then close the connection. Later calls fail."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, self._timeout_s)

    def _give_up(self, future: asyncio.Future[T]) -> None:
        if not future.done():
            future.set_exception(StoreFailed(f"The {self._name} did not answer in {self._timeout_s:g} s."))

    # --- in the thread ----------------------------------------------------------------------------
    def _work(self) -> None:
        is_open = True
        while is_open:
            group, is_open = self._next_group()
            if group:
                self._commit(group)
                self._tell(group)
        self._session.close()

    def _next_group(self) -> tuple[list[_Job[S]], bool]:
        job = self._jobs.get()
        group: list[_Job[S]] = []
        while job is not None:
            group.append(job)
            if len(group) == MAX_GROUP:
                return group, True
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return group, True
        return group, False

    def _commit(self, group: list[_Job[S]]) -> None:
        session = self._session
        try:
            session.begin()
            for job in group:
                if not job.future.done():
                    job.answer = job.work(session)
            session.commit()
        except Exception as error:
            with suppress(sqlite3.Error):  # what failed first is what they are told
                session.rollback()
            for job in group:
                job.error = session.explain(error)
                job.error.__cause__ = error

    def _tell(self, group: list[_Job[S]]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, group)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _deliver(self, group: list[_Job[S]]) -> None:
        self._waiting -= len(group)
        for job in group:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.answer)
