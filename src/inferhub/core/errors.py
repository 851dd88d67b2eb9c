"""The error tree. A class's docstring says when to raise it and is its default message.

InferHubError
├── RequestError
│   ├── Invalid
│   │   ├── ContextOverflow
│   │   └── Unsupported
│   ├── Unauthenticated
│   ├── Forbidden
│   ├── NotFound
│   │   ├── ModelNotFound
│   │   └── UnknownWorker
│   ├── MethodNotAllowed
│   ├── Conflict
│   ├── TooLarge
│   ├── UnsupportedMedia
│   ├── EgressRefused
│   └── LimitReached
│       ├── RateLimited
│       └── QuotaExceeded
├── ServingError
│   ├── NoEndpoint
│   ├── Overloaded
│   │   └── OutOfMemory
│   ├── EndpointLost
│   ├── UpstreamFailed
│   │   └── UpstreamDenied
│   ├── UpstreamRateLimited
│   │   └── UpstreamExhausted
│   ├── DeadlineExceeded
│   │   └── EndpointStalled
│   ├── BackendRefused
│   │   └── ContentFiltered
│   ├── StoreFailed
│   ├── LedgerFull
│   └── Draining
├── SetupError
│   ├── WeightsCorrupt
│   ├── WeightsMissing
│   ├── CatalogCorrupt
│   └── PortTaken
├── ServerUnreachable
└── InternalError
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from inferhub.core.quota import Reading

if TYPE_CHECKING:
    from inferhub.core.call import Failed


class InferHubError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    """Stable machine-readable name; the envelope's `code` unless an instance overrides it."""
    type: ClassVar[str] = "api_error"
    http: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    default_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        reason: str | None = None,
    ) -> None:
        """`reason` is one of `REASONS`, where the class has one."""
        self.message = message or inspect.cleandoc(type(self).__doc__ or "").partition("\n")[0]
        self.param = param
        self.wire_code = code or self.code
        """What clients see as `code`: finer than the class where OpenAI is finer."""
        self.retry_after_s = retry_after_s
        self.reason = self.default_reason if reason is None else reason
        """What was lacking, for programs that act on it: `x-inferhub-reason`. Empty where it was not room."""
        self.endpoint: str | None = None
        """Where it happened; the pipeline fills it in."""
        self.attempts = 1
        """How often the pipeline tried."""
        self.trail: tuple[Failed, ...] = ()
        """What was tried before the attempt that ended with this error."""
        self.readings: tuple[Reading, ...] = ()
        """How full the caller's limits are, where admission looked at them."""
        self.pending_s: float | None = None
        """Of a refusal for lack of room: how long what the worker has already will take it."""
        super().__init__(self.message)


REASONS: dict[str, str] = {
    "rate_limit": "A rate of the caller's own is used up for now.",
    "quota": "A budget or an allowance of the caller's own is used up.",
    "gateway_full": "The gateway process has as many calls as it may have.",
    "concurrency_limit": "Every endpoint of the model has as many calls from here as it can answer soon.",
    "shed_batch": "There is no room for work that may come later; more urgent calls are still taken.",
    "queue_full": "The queue of the model, on its worker or at its upstream, is full.",
    "out_of_memory": "The engine's memory does not hold more work at once.",
    "cold_start": "The model is being loaded, and enough calls wait for it.",
    "no_endpoint": "No worker offers the model at present.",
    "endpoint_unhealthy": "Every endpoint of the model has failed too often and is left alone for a while.",
    "draining": "The server or worker is leaving.",
    "upstream_rate_limit": "The upstream refused for a limit of its own.",
    "media_full": "Uploads, or sounds and pictures to be decoded, have used up their room.",
    "connection_full": "As many WebSockets are open, or answers on one of them under way, as may be.",
    "store_failed": "A database behind InferHub does not answer.",
    "ledger_full": "Usage cannot be written down.",
}
"""Why there was no room → what that means. Stable: alarms and clients go by these words."""


def family(root: type[InferHubError]) -> Iterator[type[InferHubError]]:
    """A class and all below it."""
    yield root
    for child in root.__subclasses__():
        yield from family(child)


class RequestError(InferHubError):
    """The request cannot be served as it stands; the caller can fix it."""

    code = "invalid_request"
    type = "invalid_request_error"
    http = 400


class Invalid(RequestError):
    """A parameter or the body is not what the API allows."""

    code = "invalid_value"


class ContextOverflow(Invalid):
    """The prompt does not fit into the model's context; the message names both lengths."""

    code = "context_length_exceeded"


class Unsupported(Invalid):
    """A known parameter that this model cannot honour."""

    code = "unsupported_parameter"


class Unauthenticated(RequestError):
    """Missing, malformed, unknown or revoked API key."""

    code = "invalid_api_key"
    type = "authentication_error"
    http = 401


class Forbidden(RequestError):
    """The key is known but may not do this."""

    code = "permission_denied"
    type = "permission_error"
    http = 403


class NotFound(RequestError):
    """Nothing lives at this address."""

    code = "not_found"
    http = 404


class ModelNotFound(NotFound):
    """No model or route has this name."""

    code = "model_not_found"


class UnknownWorker(NotFound):
    """The orchestrator does not know this worker, or this life of it; it has to register."""

    code = "unknown_worker"


class MethodNotAllowed(RequestError):
    """The address exists but does not answer this method."""

    code = "method_not_allowed"
    http = 405


class Conflict(RequestError):
    """The request contradicts what is already there."""

    code = "conflict"
    http = 409


class TooLarge(RequestError):
    """The body is larger than this server accepts."""

    code = "request_too_large"
    http = 413


class UnsupportedMedia(RequestError):
    """The body's content type or encoding is not one this address reads."""

    code = "unsupported_media_type"
    http = 415


class EgressRefused(RequestError):
    """A URL that InferHub does not fetch, or that leads to what it does not accept; the message says why."""

    code = "url_not_allowed"


class LimitReached(RequestError):
    """A limit of the caller has no room for this request; the message names the limit."""

    code = "limit_reached"
    type = "rate_limit_error"
    http = 429
    default_reason = "rate_limit"


class RateLimited(LimitReached):
    """Too many requests, tokens or calls at once for now; waiting helps."""

    code = "rate_limit_exceeded"


class QuotaExceeded(LimitReached):
    """A budget is used up, or the request alone is larger than a limit; waiting a moment does not help."""

    code = "insufficient_quota"
    type = "insufficient_quota"
    default_reason = "quota"


class ServingError(InferHubError):
    """The request is fine; serving it failed."""

    code = "serving_error"
    http = 500
    retryable = True


class NoEndpoint(ServingError):
    """The model is known but no worker offers it at present."""

    code = "no_endpoint"
    type = "overloaded_error"
    http = 503
    default_reason = "no_endpoint"


class Overloaded(ServingError):
    """Every slot is busy and the queue is full."""

    code = "overloaded"
    type = "overloaded_error"
    http = 503
    default_reason = "queue_full"


class OutOfMemory(Overloaded):
    """The engine's memory does not hold so much work at once."""

    code = "out_of_memory"
    default_reason = "out_of_memory"


class EndpointLost(ServingError):
    """The worker or engine died while it held the call."""

    code = "endpoint_lost"
    http = 502


class UpstreamFailed(ServingError):
    """The upstream answered with an error, with garbage, or stopped before the end."""

    code = "upstream_error"
    http = 502


class UpstreamDenied(UpstreamFailed):
    """The upstream refused InferHub's credentials; its operator has to mend them."""

    code = "upstream_denied"
    retryable = False


class UpstreamRateLimited(ServingError):
    """The upstream refused for its own rate limit."""

    code = "upstream_rate_limited"
    type = "rate_limit_error"
    http = 429
    default_reason = "upstream_rate_limit"


class UpstreamExhausted(UpstreamRateLimited):
    """InferHub's quota at the upstream is used up; waiting does not bring it back."""

    code = "upstream_quota_exhausted"
    retryable = False


class DeadlineExceeded(ServingError):
    """The call ran out of time; the message names which limit."""

    code = "timeout"
    type = "timeout_error"
    http = 504
    retryable = False


class EndpointStalled(DeadlineExceeded):
    """One endpoint was silent for too long, while the call itself still has time."""

    code = "endpoint_stalled"
    retryable = True


class BackendRefused(ServingError):
    """The model or vendor said no for a reason that a retry will not change."""

    code = "backend_refused"
    type = "invalid_request_error"
    http = 400
    retryable = False


class ContentFiltered(BackendRefused):
    """The vendor's content filter refused the request before anything was answered."""

    code = "content_filter"


class StoreFailed(ServingError):
    """A database behind InferHub does not answer, or answers with an error."""

    code = "store_failed"
    http = 503
    default_reason = "store_failed"


class LedgerFull(ServingError):
    """Usage cannot be written down, so nothing that costs money is begun; the log names the disk."""

    code = "ledger_full"
    http = 503
    retryable = False
    default_reason = "ledger_full"


class Draining(ServingError):
    """The worker is leaving; always safe to retry elsewhere."""

    code = "draining"
    type = "overloaded_error"
    http = 503
    default_reason = "draining"


class SetupError(InferHubError):
    """InferHub cannot start or change as asked; the message says how to mend it."""

    code = "setup_error"
    type = "invalid_request_error"
    http = 400


class WeightsCorrupt(SetupError):
    """A weight file does not have the content it must have."""

    code = "weights_corrupt"


class WeightsMissing(SetupError):
    """A weight file is not on this machine yet."""

    code = "weights_missing"


class CatalogCorrupt(SetupError):
    """The catalog database cannot be read."""

    code = "catalog_corrupt"


class PortTaken(SetupError):
    """Another process already listens on this address."""

    code = "port_taken"


class ServerUnreachable(InferHubError):
    """No InferHub server answers at this address. Raised by the client, never sent by a server."""

    code = "server_unreachable"
    http = 503


class InternalError(InferHubError):
    """An unexpected failure inside InferHub; the log has the details under this request id."""

    code = "internal_error"
