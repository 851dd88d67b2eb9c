"""One endpoint's turn at a call, from asking it to its end. Made by `router`, driven by the attempt ring."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Literal

from inferhub.core.errors import DeadlineExceeded, InferHubError, Overloaded
from inferhub.core.usage import Usage
from inferhub.routing.causes import cause_of
from inferhub.routing.choose import Candidate

if TYPE_CHECKING:
    from inferhub.routing.journey import Journey


class Trial:
    """A context: entering counts the call in flight, leaving counts it out.

    Tell it how the call ended by `succeeded`, `failed` or `cancelled`, once; the first one counts. Where
    nobody told it, leaving does: an `InferHubError` has failed, everything else was cancelled.
    """

    __slots__ = (
        "_began_s",
        "_condition",
        "_content_s",
        "_is_over",
        "_is_probe",
        "_journey",
        "_load",
        "_place",
        "candidate",
    )

    def __init__(self, journey: Journey, candidate: Candidate) -> None:
        self._journey = journey
        self.candidate = candidate
        self._is_over = False
        self._content_s: float | None = None

    def __enter__(self) -> Trial:
        journey = self._journey
        self._condition = condition = journey.condition(self.candidate)
        self._load = condition.load
        self._began_s = journey.now()
        self._is_probe = condition.began(id(self), self._began_s, journey.cost)
        foreign = self._load - condition.in_flight + 1
        self._place = condition.room.enter(journey.caller, self._began_s, foreign)
        journey.entered(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if isinstance(error, InferHubError):
            self.failed(error)
        else:
            self.cancelled()
        return False

    def first_content(self) -> None:
        """The first piece of content came; keep-alives and roles are none. Later calls do nothing."""
        if self._content_s is not None or self._is_over:
            return
        journey = self._journey
        self._content_s = now_s = journey.now()
        condition = self._condition
        condition.answers(id(self))
        if journey.tells_first_token:
            condition.sampled(now_s, self._load, now_s - self._began_s)
            self._answered(now_s)

    def succeeded(self, usage: Usage | None = None) -> None:
        """The answer came to its clean end. `usage` corrects what a spilled call was expected to cost."""
        if self._is_over:
            return
        journey = self._journey
        now_s = journey.now()
        condition = self._condition
        first_s = self._content_s
        if first_s is not None and not journey.tells_first_token:
            # An upstream that is asked for a whole answer sends it in one piece, whose time says nothing of
            # the first token. Where most of the answer came after its first piece, it was one.
            waited_s = first_s - self._began_s
            if now_s - first_s >= waited_s:
                condition.sampled(now_s, self._load, waited_s)
        condition.succeeded(now_s, is_probe=self._is_probe)
        if not journey.tells_first_token:
            self._answered(now_s)
        self._end(usage, is_billed=True, outcome="ok")

    def failed(self, error: InferHubError) -> None:
        """It raised. What the error says decides whether the endpoint is to blame."""
        if self._is_over:
            return
        journey = self._journey
        now_s = journey.now()
        self._condition.failed(error, now_s, journey.chance, is_probe=self._is_probe)
        if isinstance(error, Overloaded):
            self._condition.room.refused(self._place, now_s)
        elif isinstance(error, DeadlineExceeded) and self._content_s is None:
            self._condition.room.stalled(self._place, now_s)
        journey.spoil(self.candidate.model, cause_of(error))
        self._end(None, is_billed=self._content_s is not None, outcome=error.code)

    def cancelled(self) -> None:
        """The client left, the call ran out of time, or another endpoint was quicker: nobody's fault."""
        if self._is_over:
            return
        journey = self._journey
        condition = self._condition
        now_s = journey.now()
        waited_s = now_s - self._began_s
        if self._content_s is None and journey.is_longer_than_predicted(condition, self._load, waited_s):
            # It would have taken at least as long. A slow endpoint whose calls are all given up would
            # otherwise look as quick as it once was.
            condition.sampled(now_s, self._load, waited_s)
        condition.abandoned(is_probe=self._is_probe)
        self._end(None, is_billed=True, outcome="cancelled")

    def _answered(self, now_s: float) -> None:
        journey = self._journey
        call = journey.call
        # Whoever goes on talking is answered when he has said something, not when there is a slot.
        if call.incoming is None:
            units = 1.0 if call.stream else journey.cost or 1.0
            self._condition.room.answered(self._place, now_s, units, is_whole=not call.stream)

    def _end(self, usage: Usage | None, *, is_billed: bool, outcome: str) -> None:
        self._is_over = True
        journey = self._journey
        self._condition.ended(id(self), journey.cost)
        self._condition.room.leave(self._place, journey.now())
        journey.left(self, usage, is_billed=is_billed, outcome=outcome)
