"""What an error means for routing: where the call may go next, and what its endpoint is blamed for. Pure.

Two questions, because the answers differ: an endpoint that refuses a long prompt has done nothing wrong, and
one that says it is full is well.
"""

from __future__ import annotations

from enum import Enum, auto

from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    ContextOverflow,
    DeadlineExceeded,
    Draining,
    EndpointStalled,
    InferHubError,
    LedgerFull,
    NoEndpoint,
    Overloaded,
    ServingError,
    StoreFailed,
    UpstreamExhausted,
    UpstreamRateLimited,
)
from inferhub.core.traffic import Cause


class Blame(Enum):
    """What becomes of an endpoint that answered with an error."""

    NOTHING = auto()
    """The request, the client or InferHub itself was at fault."""
    FULL = auto()
    """Rests a moment; asked all the same where nobody else is left, because it decides itself."""
    LIMITED = auto()
    """Not asked at all before the time it named."""
    FAULT = auto()
    """Counts towards its circuit breaker."""


_BY_CLASS: tuple[tuple[type[InferHubError], Cause | None, Blame], ...] = (
    # The first class that fits decides.
    (ContextOverflow, Cause.CONTEXT_LENGTH, Blame.NOTHING),
    (ContentFiltered, Cause.CONTENT_FILTER, Blame.NOTHING),
    (UpstreamRateLimited, Cause.RATE_LIMIT, Blame.LIMITED),
    (Overloaded, Cause.OVERLOAD, Blame.FULL),
    # Leaving as planned is no fault, and nothing was begun there: the same place may have a successor.
    (Draining, Cause.FAILURE, Blame.FULL),
    (NoEndpoint, Cause.FAILURE, Blame.NOTHING),
    (EndpointStalled, Cause.TIMEOUT, Blame.FAULT),
    # The call has no time left, or InferHub cannot serve it wherever it goes.
    (DeadlineExceeded, None, Blame.NOTHING),
    (BackendRefused, None, Blame.NOTHING),
    (StoreFailed, None, Blame.NOTHING),
    (LedgerFull, None, Blame.NOTHING),
    (ServingError, Cause.FAILURE, Blame.FAULT),
)

_REST_S = 1.0
_EXHAUSTED_REST_S = 60.0
MAX_REST_S = 60.0
"""However long a vendor asks for: it may have been wrong, and then one call finds out."""


def cause_of(error: InferHubError) -> Cause | None:
    """Why another endpoint may do better; None where none would."""
    return next((cause for kind, cause, _ in _BY_CLASS if isinstance(error, kind)), None)


def blame_of(error: InferHubError) -> Blame:
    return next((blame for kind, _, blame in _BY_CLASS if isinstance(error, kind)), Blame.NOTHING)


def rest_s(error: InferHubError) -> float:
    """How long an endpoint that refused for lack of capacity is left alone."""
    if error.retry_after_s is not None:
        return min(max(error.retry_after_s, 0.0), MAX_REST_S)
    return _EXHAUSTED_REST_S if isinstance(error, UpstreamExhausted) else _REST_S
