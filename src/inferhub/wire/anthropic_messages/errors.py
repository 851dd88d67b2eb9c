"""Anthropic's names for errors, by HTTP status, and our error tree for what its servers answer.

The gateway writes with it and the backend reads. What an upstream says is foreign text: cleaned, shortened
and freed of secrets before anybody sees it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from inferhub.core.errors import (
    BackendRefused,
    ContextOverflow,
    InferHubError,
    Unsupported,
    UpstreamExhausted,
    UpstreamFailed,
)
from inferhub.modalities.base import Problem
from inferhub.wire.foreign import NOT_JSON, clean_text, error_of, read_retry_after_s, reported

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STATUSES = {name: status for status, name in _TYPES.items()}
# What our error tree calls a type where Anthropic has no such word.
_OWN_TYPES = {"insufficient_quota": "rate_limit_error"}


def anthropic_status(http: int) -> int:
    """The status that Anthropic's clients know for it: they call 503 overloaded 529."""
    return 529 if http == 503 else http


def anthropic_type(http: int) -> str:
    """`error.type` of an answer with this status."""
    status = anthropic_status(http)
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def stream_error(problem: Problem) -> dict[str, Any]:
    """The body of the `error` event for a stream that broke."""
    kind = _OWN_TYPES.get(problem.type, problem.type)
    known = kind if kind in _STATUSES else "api_error"
    return {"type": "error", "error": {"type": known, "message": problem.message}}


# --- what upstreams answer --------------------------------------------------------------------

_TOO_LONG = re.compile(r"prompt is too long|exceed(?:s)? (?:the )?context (?:limit|window)", re.IGNORECASE)
_NO_CREDIT = re.compile(r"credit balance is too low", re.IGNORECASE)
_GONE = re.compile(r"^`(temperature|top_p|top_k)`.* (?:is deprecated|not supported)")
_PLACE = re.compile(r"^([a-z_]+(?:\.[A-Za-z0-9_]+)*): ")


class _Said(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Envelope(msgspec.Struct):
    error: _Said


def read_error(
    status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()
) -> InferHubError:
    """The error that a response with this status means. `headers` must look up names in lower case."""
    try:
        said = msgspec.json.decode(body, type=_Envelope).error
    except NOT_JSON:
        said = _Said()
    message = clean_text(said.message, secrets)
    return error_of(status, message, read_retry_after_s(headers), lambda why: _refusal(status, why))


def read_stream_error(error: Any, secrets: Collection[str] = ()) -> InferHubError:
    """An `error` event inside an answer that had begun with 200."""
    kind = error.get("type") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    status = _STATUSES.get(kind, 500) if isinstance(kind, str) else 500
    said = clean_text(message, secrets) if isinstance(message, str) else ""
    error_meant = error_of(status, said, None, lambda why: _refusal(status, why))
    return reported(said) if type(error_meant) is UpstreamFailed else error_meant


def _refusal(status: int, message: str) -> InferHubError:
    """A request that the upstream understood and will refuse again."""
    if _NO_CREDIT.search(message):
        return UpstreamExhausted()
    if _TOO_LONG.search(message):
        return ContextOverflow(message, param="messages")
    gone = _GONE.match(message)
    if gone:
        return Unsupported(message, param=gone[1])
    place = _PLACE.match(message)
    code = "request_too_large" if status == 413 else None
    return BackendRefused(message, param=place[1] if place else None, code=code)
