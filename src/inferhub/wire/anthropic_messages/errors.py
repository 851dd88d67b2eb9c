"""Anthropic's names for errors, by HTTP status. Written by the gateway, read by the backend."""

from __future__ import annotations

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


def anthropic_status(http: int) -> int:
    """The status that Anthropic's clients know for it: they call 503 overloaded 529."""
    return 529 if http == 503 else http


def anthropic_type(http: int) -> str:
    """`error.type` of an answer with this status."""
    status = anthropic_status(http)
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
