"""Calls that go on while something is broken: unary, streamed and cached ones, from a thread of their own.

For outage tests, whose main thread stops and starts the servers behind. It judges nothing: it remembers
what was answered, and what a ledger must therefore hold.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from inferhub.testing.raw_http import TIMEOUT_S, connect
from inferhub.testing.servers import Hub, wait_for
from inferhub.testing.talk import CHAT, Talk, chat_body

CALLERS = 4
PAUSE_S = 0.02
MORE_S = 90.0
"""For `more`, on a machine that is busy with other things."""
PAGE = 1000

_KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"stream": True},
    # Kept in the cache, and the next time answered from it.
    {"temperature": 0},
    {"temperature": 0},
)


@dataclass(frozen=True, slots=True)
class Made:
    """One call that has ended."""

    request_id: str
    status: int
    """0 where the answer broke off or never came."""
    elapsed_s: float
    said: str
    """What came instead of an answer."""


class Steady:
    """Calls `model` as fast as four patient callers do, from `with` to its end."""

    def __init__(self, url: str, key: str, model: str = "echo") -> None:
        self._talk = Talk(url, key)
        self._model = model
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="steady calls")
        self.prefix = f"steady_{secrets.token_hex(4)}_"
        """Of the request ids of these calls alone."""
        self.made: list[Made] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self.more(CALLERS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended.set()
        self._thread.join()

    def more(self, count: int = 3 * CALLERS) -> None:
        """Wait until so many calls have ended that began after now."""
        target = len(self.made) + CALLERS + count
        wait_for(lambda: len(self.made) >= target, MORE_S, f"{count} more calls")

    def until(self, probe: Callable[[], object], what: str) -> None:
        """Wait for `probe` while the calls go on."""
        wait_for(probe, MORE_S, what)

    @property
    def failed(self) -> list[Made]:
        return [made for made in self.made if made.status != 200]

    @property
    def answered(self) -> list[str]:
        """The request ids, sorted."""
        return sorted(made.request_id for made in self.made if made.status == 200)

    @property
    def slowest_s(self) -> float:
        return max(made.elapsed_s for made in self.made)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call_on(number))

    async def _call_on(self, number: int) -> None:
        while not self._has_ended.is_set():
            number += 1
            words = f"one two {number // len(_KINDS)}"
            self.made.append(await self._call(words, _KINDS[number % len(_KINDS)]))
            await asyncio.sleep(PAUSE_S)

    async def _call(self, words: str, kind: Mapping[str, Any]) -> Made:
        request_id = self.prefix + secrets.token_hex(8)
        body = chat_body(self._model, words, **kind)
        began_s = time.monotonic()
        status, said = 0, ""
        try:
            async with asyncio.timeout(TIMEOUT_S), connect(self._talk.url) as connection:
                await connection.send(self._talk.request("POST", CHAT, {"x-request-id": request_id}, body))
                head = await connection.head()
                text = await connection.body(head)
            is_whole = b"[DONE]" in text if kind.get("stream") else bool(text)
            status = head.status if is_whole else 0
            said = "" if status == 200 else text.decode(errors="replace")
        except (OSError, EOFError, TimeoutError) as error:
            said = repr(error)
        return Made(request_id, status, time.monotonic() - began_s, said)


def ledger(hub: Hub, **where: str) -> Iterator[dict[str, Any]]:
    """Every event of the usage store, as the admin API tells them."""
    query = "".join(f"&{name}={value}" for name, value in where.items())
    after = ""
    while True:
        page = hub.get(f"/admin/v1/usage/events?limit={PAGE}{query}{after}", timeout_s=30)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = f"&after={page['next_after']}"
