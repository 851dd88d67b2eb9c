"""What was decided for the last calls of this process, and what came of it: the memory of `inferhub why`.

Written by each `Journey`, read by the admin API. Costs next to nothing until somebody asks: what a decision
was made by is kept as it is, and put into words on demand.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from inferhub.core.call import Call
from inferhub.routing.choose import Candidate
from inferhub.routing.scorers import BY_ENDPOINT
from inferhub.routing.verdict import SCORE, Scored, Verdict

MAX_CALLS = 10_000
MAX_BYTES = 16 * 1024**2
MAX_STEPS = 16
"""Of one call; more are made only by calls that nobody answers."""
MAX_FOUND = 20
"""Calls of one request id, which clients may use again."""
_CALL_BYTES = 500
_STEP_BYTES = 300
_CANDIDATE_BYTES = 250


class Choice(NamedTuple):
    """Somebody was chosen, or nobody."""

    after_s: float
    model: str
    endpoint: str
    """Empty where nobody was left."""
    cause: str
    """What the attempt before failed for."""
    why: tuple[tuple[str, float], ...] = ()
    """Terms of the choice among models."""
    verdict: Verdict | None = None
    """Of the choice among the endpoints of the model; None where there was nothing to choose."""


class End(NamedTuple):
    """An attempt ended."""

    after_s: float
    endpoint: str
    outcome: str
    """`ok`, `cancelled`, or the code of the error."""


class Trace:
    """Of one call."""

    __slots__ = ("at_s", "begun_s", "bytes", "is_kept", "key", "model", "request_id", "steps")

    def __init__(self, call: Call, begun_s: float) -> None:
        self.request_id = call.id
        self.key = call.key
        self.model = call.model
        self.at_s = time.time()
        self.begun_s = begun_s
        self.steps: list[Choice | End] = []
        self.bytes = _CALL_BYTES
        self.is_kept = True


class Decisions:
    """The newest calls, within bounds of number and memory."""

    def __init__(self, *, max_calls: int = MAX_CALLS, max_bytes: int = MAX_BYTES) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._traces: deque[Trace] = deque()
        self._bytes = 0

    def begin(self, call: Call, now_s: float) -> Trace:
        trace = Trace(call, now_s)
        self._traces.append(trace)
        self._grow(trace.bytes)
        return trace

    def chose(
        self,
        trace: Trace,
        now_s: float,
        candidate: Candidate | None,
        cause: str,
        verdict: Verdict | None = None,
    ) -> None:
        after_s = now_s - trace.begun_s
        if candidate is None:
            step = Choice(after_s, trace.model, "", cause, (), verdict)
        else:
            endpoint = candidate.endpoint.id
            step = Choice(after_s, candidate.model, endpoint, cause, candidate.why, verdict)
        self._add(trace, step, _STEP_BYTES + (_CANDIDATE_BYTES * len(verdict.told) if verdict else 0))

    def ended(self, trace: Trace, now_s: float, endpoint: str, outcome: str) -> None:
        self._add(trace, End(now_s - trace.begun_s, endpoint, outcome), _STEP_BYTES)

    def of(self, request_id: str) -> Sequence[Mapping[str, Any]]:
        """What is remembered of the calls with this id, the newest first, in words."""
        found = (t for t in reversed(self._traces) if request_id in (t.request_id, t.key))
        return [_told(trace) for trace, _ in zip(found, range(MAX_FOUND), strict=False)]

    def _add(self, trace: Trace, step: Choice | End, size: int) -> None:
        if not trace.is_kept or len(trace.steps) >= MAX_STEPS:
            return
        trace.steps.append(step)
        trace.bytes += size
        self._grow(size)

    def _grow(self, size: int) -> None:
        self._bytes += size
        while len(self._traces) > self._max_calls or (self._bytes > self._max_bytes and self._traces):
            oldest = self._traces.popleft()
            oldest.is_kept = False
            self._bytes -= oldest.bytes


def _told(trace: Trace) -> Mapping[str, Any]:
    return {
        "request_id": trace.request_id,
        "call_id": trace.key,
        "model": trace.model,
        "at": trace.at_s,
        "steps": [_choice(step) if isinstance(step, Choice) else _end(step) for step in trace.steps],
    }


def _end(step: End) -> Mapping[str, Any]:
    return {
        "step": "end",
        "after_ms": _ms(step.after_s),
        "endpoint": step.endpoint,
        "outcome": step.outcome,
    }


def _choice(step: Choice) -> Mapping[str, Any]:
    told: dict[str, Any] = {
        "step": "choice",
        "after_ms": _ms(step.after_s),
        "model": step.model,
        "endpoint": step.endpoint or None,
        "after_failure": step.cause or None,
        "terms": dict(step.why),
    }
    verdict = step.verdict
    if verdict is None:
        told["reason"] = "nobody is left" if not step.endpoint else "only"
        return told
    return {**told, **_verdict(verdict)}


def _verdict(verdict: Verdict) -> Mapping[str, Any]:
    weights = verdict.scheduling.weights
    return {
        "reason": verdict.reason,
        "endpoints": verdict.size,
        "left_out": dict(verdict.left_out),
        "not_well": list(verdict.skipped),
        "gate_s": verdict.gate_s,
        "too_busy": [{"endpoint": id_, "pending_s": round(s, 3)} for id_, s in verdict.gated],
        "would_wait": [{"endpoint": id_, "pending_s": round(s, 3)} for id_, s in verdict.queued],
        "weights": {name: getattr(weights, name) for name in (*BY_ENDPOINT, "prefix", "pending", "session")},
        "candidates": [_candidate(one) for one in sorted(verdict.scored, key=lambda s: -s[SCORE])],
    }


def _candidate(one: Scored) -> Mapping[str, Any]:
    id_, by_endpoint, pending_s, prefix, pending, session, score = one
    terms = {
        "prefix": prefix,
        **dict(zip(BY_ENDPOINT, by_endpoint, strict=True)),
        "pending": pending,
        "session": session,
    }
    return {
        "endpoint": id_,
        "score": round(score, 3),
        "pending_s": round(pending_s, 3),
        "terms": {name: round(value, 3) for name, value in terms.items()},
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
