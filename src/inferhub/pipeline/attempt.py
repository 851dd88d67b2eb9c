"""Tries a call until somebody answers: elsewhere, again, at two places at once, or from where it broke off.

The only place that retries. Begins anew only while the client has nothing, goes on from what it has only
where the route says so, and stays inside the call's one deadline. Who comes next is `routing`'s to say.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from inferhub.core.call import Call, Delta, Emit, Failed, Handler
from inferhub.core.errors import InferHubError
from inferhub.core.traffic import Cause
from inferhub.pipeline.address import addressed, measured
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.hedge import Outcome, Race
from inferhub.pipeline.leg import Journal, Leg
from inferhub.pipeline.patience import ENDLESS, Limits
from inferhub.pipeline.resume import PREFILL, Delivered, may_resume
from inferhub.routing import Candidate, Journey, Router, cause_of
from inferhub.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_BACKOFF_S = 0.05
_BEATEN = "cancelled"
"""The code, in a trail, of an endpoint that was slower than the one asked beside it."""


class Attempt:
    """A ring. At most `max_attempts` dispatches a call, the first, hedges and continuations included."""

    def __init__(
        self,
        router: Router,
        directory: Callable[[], Directory],
        metrics: Metrics | None = None,
        *,
        max_attempts: int = 3,
        limits: Limits | None = None,
    ) -> None:
        self._router = router
        self._directory = directory
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._limits = limits or Limits()

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        directory = self._directory()
        call = measured(call, *self._router.measure(call, directory))
        with self._router.begin(call, directory) as journey:
            route = journey.route
            is_live = call.incoming is not None
            journal = Journal(emit, ENDLESS if is_live else self._limits.under(route.patience), [])
            if route.resume and may_resume(call) and not is_live:
                journal.delivered = Delivered()
            if route.fallbacks:
                journal.refuses_filtered = any(Cause.CONTENT_FILTER in f.on for f in route.fallbacks)
            knows_only = len(directory.endpoints.get(call.model, ())) == 1
            chain = _Chain(self, call, inner, journey, journal, knows_only=knows_only)
            await chain.run()

    def refresh(self, journey: Journey) -> None:
        journey.refresh(self._directory())

    @property
    def max_attempts(self) -> int:
        return self._max_attempts

    def count(self, candidate: Candidate, cause: Cause) -> None:
        if self._metrics is not None:
            self._metrics.attempts_failed.labels(candidate.endpoint.id, cause.value).inc()

    def count_over_budget(self) -> None:
        if self._metrics is not None:
            self._metrics.retries_refused.inc()


class _Chain:
    """The attempts of one call, one after the other. Made for one use."""

    __slots__ = ("_by_leg", "_call", "_inner", "_journal", "_journey", "_knows_only", "_ring", "_soonest_s")

    def __init__(
        self,
        ring: Attempt,
        call: Call,
        inner: Handler,
        journey: Journey,
        journal: Journal,
        *,
        knows_only: bool,
    ) -> None:
        self._ring = ring
        self._call = call
        self._inner = inner
        self._journey = journey
        self._journal = journal
        self._knows_only = knows_only
        """Whether there is one endpoint of this name and no need to say which."""
        self._by_leg: dict[Leg, Candidate] = {}
        self._soonest_s: float | None = None
        """The least that any endpoint asked to be left alone for."""

    async def run(self) -> None:
        candidate = self._journey.next(None)
        if candidate is None:
            raise self._journey.refusal()
        call = self._call
        while True:
            error, leg = await self._go(call, candidate)
            if error is None:
                return None
            self._complete(leg, error)
            found = self._elsewhere(leg, error)
            if found is None:
                raise error
            if self._is_same(leg, found):
                await self._pause(error)
            self._note(leg, error.code)
            candidate = found
            if self._journal.has_begun:
                rest = self._rest()
                if rest is None:
                    return await self._say_full()
                call = rest

    async def _go(self, call: Call, candidate: Candidate) -> tuple[InferHubError | None, Leg]:
        """The error of the leg that counts, or None. Raises what is no failure of an endpoint."""
        hedge_after_s = self._journey.hedge_after_s
        if (
            hedge_after_s is None
            or call.incoming is not None
            or self._journal.has_begun
            or self._journal.sent + 1 >= self._ring.max_attempts
        ):
            leg = self._leg(call, candidate)
            try:
                await leg.run(self._inner)
            except InferHubError as error:
                return error, leg
            return None, leg
        outcome = await self._race(call, candidate, hedge_after_s)
        if outcome.error is not None and not isinstance(outcome.error, InferHubError):
            raise outcome.error
        return outcome.error, outcome.leg

    async def _race(self, call: Call, candidate: Candidate, after_s: float) -> Outcome:
        race = Race(self._inner, self)

        def second() -> Leg | None:
            other = self._journey.hedge()
            return None if other is None else self._leg(call, other, race)

        return await race.run(self._leg(call, candidate, race), second, after_s)

    def _leg(self, call: Call, candidate: Candidate, race: Race | None = None) -> Leg:
        self._journal.sent = sent = self._journal.sent + 1
        if sent > 1 or not self._knows_only or candidate.model != call.model:
            call = addressed(call, candidate.model, candidate.endpoint.id, sent)
        trial = self._journey.try_(candidate)
        leg = Leg(call, trial, self._journal, race.claim if race else None)
        self._by_leg[leg] = candidate
        return leg

    def _elsewhere(self, leg: Leg, error: InferHubError) -> Candidate | None:
        """Where the call may go after this error; None: nowhere, and the client is told of it."""
        cause = cause_of(error)
        begun = self._journal.has_begun
        if cause is None or self._journal.sent >= self._ring.max_attempts:
            return None
        if self._call.incoming is not None:
            # What was said so far is gone, and nobody could say it again.
            return None
        if begun and not (self._journal.delivered and self._journal.delivered.is_text):
            return None
        if time.monotonic() >= self._call.deadline_s:
            return None
        self._ring.refresh(self._journey)
        candidate = self._journey.next(cause, must=frozenset((PREFILL,)) if begun else frozenset())
        if candidate is None or (self._is_same(leg, candidate) and not error.retryable):
            return None
        if not candidate.is_fallback and not self._journey.may_retry():
            self._ring.count_over_budget()
            return None
        return candidate

    def _is_same(self, leg: Leg, candidate: Candidate) -> bool:
        return self._by_leg[leg].key == candidate.key

    async def _pause(self, error: InferHubError) -> None:
        """Before the same endpoint is asked again. Raises the error where there is no time for it."""
        jitter = 0.5 + random.random()  # noqa: S311 - spreads retries, keeps no secret
        pause_s = _BACKOFF_S * 2 ** (self._journal.sent - 1) * jitter
        if time.monotonic() + pause_s >= self._call.deadline_s:
            raise error
        await asyncio.sleep(pause_s)

    def _rest(self) -> Call | None:
        delivered = self._journal.delivered
        assert delivered is not None  # noqa: S101 - `_elsewhere` looked
        return delivered.rest_of(self._call)

    async def _say_full(self) -> None:
        """The answer broke off where it had to end anyway: only its end was lost."""
        delivered = self._journal.delivered
        assert delivered is not None  # noqa: S101 - `_elsewhere` looked
        last, finished = delivered.full(self._call)
        await self._journal.emit(Delta(last))
        await self._journal.emit(finished)

    def _complete(self, leg: Leg, error: InferHubError) -> None:
        """What the client and the ledger learn beside the error itself."""
        error.endpoint = error.endpoint or self._by_leg[leg].endpoint.id
        error.attempts = self._journal.sent
        error.trail = tuple(self._journal.trail)
        if error.retry_after_s is not None:
            self._soonest_s = min(self._soonest_s or error.retry_after_s, error.retry_after_s)
            error.retry_after_s = self._soonest_s
        self._tell(leg, error)

    def _tell(self, leg: Leg, error: InferHubError) -> None:
        """One line and one count for each failure of an endpoint; a wrong request is none."""
        cause = cause_of(error)
        if cause is None:
            return
        candidate = self._by_leg[leg]
        self._ring.count(candidate, cause)
        named = {"request_id": self._call.id, "model": candidate.model, "endpoint": candidate.endpoint.id}
        _log.info("attempt %d failed: %s", self._journal.sent, error.code, extra=named)

    # What becomes of legs that do not count; `Race` says so.

    def failed(self, leg: Leg, error: BaseException) -> None:
        if isinstance(error, InferHubError):
            self._tell(leg, error)
            self._note(leg, error.code)
        else:
            self._note(leg, type(error).__name__)

    def beaten(self, leg: Leg) -> None:
        self._note(leg, _BEATEN)

    def _note(self, leg: Leg, code: str) -> None:
        after_s = time.monotonic() - leg.begun_s
        self._journal.trail.append(Failed(self._by_leg[leg].endpoint.id, code, after_s))
