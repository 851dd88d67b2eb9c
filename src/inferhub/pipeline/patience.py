"""The limits in time of one attempt: until the first content, between two pieces, and the whole call's end.

`leg` enters a `Watch` around a dispatch, `deadline` an `Alarm` around everything. Time spent waiting for a
slow client is the client's, not the endpoint's.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from inferhub.core.errors import DeadlineExceeded, EndpointStalled
from inferhub.core.traffic import Patience


@dataclass(frozen=True, slots=True)
class Limits:
    """What an endpoint is waited for."""

    first_token_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0

    def under(self, patience: Patience) -> Limits:
        """With a route's own limits, where it has any."""
        first_s, idle_s = patience.first_token_timeout_s, patience.idle_timeout_s
        if first_s is None and idle_s is None:
            return self
        return Limits(
            self.first_token_timeout_s if first_s is None else first_s,
            self.idle_timeout_s if idle_s is None else idle_s,
        )


ENDLESS = Limits(math.inf, math.inf)
"""For calls whose client goes on talking: whoever listens may be silent for as long as the client is."""


class Alarm:
    """A scope that ends the work inside it when the time has come, as `asyncio.timeout` does.

    Its own because that one makes a timer for every change of the time, and a token changes it: here a
    token only stores a number, and the timer looks at it when it fires. In half of the time, too.
    """

    __slots__ = ("_cancelling", "_due_s", "_has_rung", "_loop", "_task", "_timer")

    def __init__(self, due_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """`due_s` is on the clock of the loop."""
        self._due_s = due_s
        self._loop = loop
        self._has_rung = False

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - coroutines run in tasks
        self._task = task
        # Whoever cancelled the task before is not us.
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_at(self._due_s, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if not self._has_rung:
            return
        is_only_ours = self._task.uncancel() <= self._cancelling
        if is_only_ours and kind is asyncio.CancelledError:
            raise self.ended() from error

    def ended(self) -> DeadlineExceeded:
        """What to tell."""
        return out_of_time()

    def _look(self) -> None:
        if self._loop.time() >= self._due_s:
            self._has_rung = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(self._due_s, self._look)


class Watch(Alarm):
    """Of one attempt. Raises `EndpointStalled` for the endpoint's silence, else what an alarm raises."""

    __slots__ = ("_deadline_s", "_end_s", "_idle_s", "_limit")

    def __init__(self, limits: Limits, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        # The loop has its own clock, the call time.monotonic().
        self._end_s = now_s + deadline_s - time.monotonic()
        super().__init__(min(self._end_s, now_s + limits.first_token_timeout_s), loop)
        self._deadline_s = deadline_s
        self._idle_s = limits.idle_timeout_s
        self._limit = "first_token_timeout_s"

    def rest(self) -> None:
        """Someone else is waited for: only the end of the whole call counts now."""
        self._due_s = self._end_s

    def expect(self) -> None:
        """The next piece is due within the limit for silence."""
        self._limit = "idle_timeout_s"
        self._due_s = due_s = min(self._loop.time() + self._idle_s, self._end_s)
        if due_s < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(due_s, self._look)

    def ended(self) -> DeadlineExceeded:
        if time.monotonic() >= self._deadline_s:
            return out_of_time()
        return EndpointStalled(f"The endpoint took too long: {_MEANING[self._limit]} ({self._limit}).")


def out_of_time() -> DeadlineExceeded:
    """The whole call's limit, wherever it struck."""
    return DeadlineExceeded(
        "The call took too long: the limit for the whole call is over (request_timeout_s)."
    )


_MEANING = {
    "first_token_timeout_s": "no content arrived in time",
    "idle_timeout_s": "the answer stopped arriving",
}
