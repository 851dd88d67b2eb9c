"""One dispatch of a call: what comes back from one endpoint, held until it says something.

`attempt` makes one for each endpoint it tries, `hedge` lets two of them run at once. A leg that fails before
it was heard leaves nothing behind; it never decides what comes next.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from inferhub.core.call import Call, Chunk, Delta, Emit, Failed, Finished, Handler, Started
from inferhub.core.errors import ContentFiltered, InternalError, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.pipeline.content import finish_of, has_content
from inferhub.pipeline.patience import Limits, Watch
from inferhub.pipeline.resume import Delivered
from inferhub.routing import Trial

_MAX_HELD_BYTES = 64 * 1024
FILTERED = "content_filter"


@dataclass(slots=True)
class Journal:
    """What the legs of one call share."""

    emit: Emit
    limits: Limits
    trail: list[Failed]
    delivered: Delivered | None = None
    """Kept where the answer may be continued; then nothing is passed on as the upstream wrote it."""
    sent: int = 0
    """How often the call was dispatched so far."""
    refuses_filtered: bool = False
    """Whether an answer that the vendor's filter ended before it began is asked for elsewhere."""
    model: str = ""
    """Whose answer it is, once it has begun."""

    @property
    def has_begun(self) -> bool:
        """Whether the client may have something, so that nothing can be begun anew."""
        return bool(self.model)


class Leg:
    """Made for one use."""

    __slots__ = (
        "_claim", "_held", "_is_open", "_journal", "_started", "_trial", "_usage", "_watch", "begun_s",
        "call",
    )  # fmt: skip

    def __init__(
        self, call: Call, trial: Trial, journal: Journal, claim: Callable[[Leg], None] | None = None
    ) -> None:
        """`claim` is asked before anything is passed on, and raises where another leg was heard first."""
        self.call = call
        self.begun_s = time.monotonic()
        self._trial = trial
        self._journal = journal
        self._claim = claim
        self._is_open = False
        self._held = b""
        self._started: Started | None = None
        self._usage: Usage | None = None
        self._watch: Watch

    async def run(self, inner: Handler) -> None:
        """Raises what the endpoint raises, and `EndpointStalled` for its silence."""
        with self._trial as trial:
            with Watch(self._journal.limits, self.call.deadline_s) as self._watch:
                await inner(self.call, self._take)
            trial.succeeded(self._usage)

    # Not a coroutine of its own: it runs for every token.
    def _take(self, chunk: Chunk) -> Awaitable[None]:
        if type(chunk) is Delta:
            return self._deliver(chunk)
        if type(chunk) is Finished:
            return self._end(chunk)
        assert type(chunk) is Started  # noqa: S101 - there is no fourth kind
        return self._hold(chunk)

    async def _hold(self, started: Started) -> None:
        self._started = started

    async def _deliver(self, delta: Delta) -> None:
        payload, journal, watch = delta.payload, self._journal, self._watch
        if not has_content(payload) and finish_of(payload) is None:
            return self._hold_silence(delta)
        delivered = journal.delivered
        if delivered is not None and delta.raw is not None:
            delta = Delta(payload, None, delta.more)
        watch.rest()
        if not self._is_open:
            self._refuse_filtered(payload)
            await self._open()
        if self._held and delta.raw is not None:
            delta, self._held = Delta(payload, self._held + delta.raw, delta.more), b""
        if delivered is not None:
            delivered.take(payload)
        await journal.emit(delta)
        watch.expect()
        return None

    def _hold_silence(self, delta: Delta) -> None:
        """A sign of life: its bytes leave with the next piece, and nothing of it counts."""
        self._held += delta.raw or b""
        if len(self._held) > _MAX_HELD_BYTES:
            raise UpstreamFailed("The upstream sent many events, and nothing in them.")

    async def _end(self, finished: Finished) -> None:
        self._watch.rest()
        if not self._is_open:
            await self._open()
        delivered = self._journal.delivered
        if delivered is not None:
            finished = delivered.end(Finished(finished.usage, finished.cost_usd))
        elif self._held and self.call.stream and finished.raw is not None:
            finished = replace(finished, raw=self._held + finished.raw)
        self._usage = finished.usage
        await self._journal.emit(finished)

    async def _open(self) -> None:
        if self._claim is not None:
            self._claim(self)
        started, journal = self._started, self._journal
        if started is None:
            raise InternalError("An endpoint answered that nobody named.")
        self._is_open = True
        self._trial.first_content()
        if journal.sent > 1:
            # An answer that goes on elsewhere stays the answer of the model that began it.
            started = replace(
                started,
                model=journal.model or started.model,
                attempt=journal.sent,
                trail=tuple(journal.trail),
            )
        journal.model = started.model
        await journal.emit(started)

    def _refuse_filtered(self, payload: object) -> None:
        if (
            self._journal.refuses_filtered
            and finish_of(payload) == FILTERED
            and not has_content(payload)
            and not self.call.resume
        ):
            raise ContentFiltered("The vendor's content filter ended the answer before it began.")
