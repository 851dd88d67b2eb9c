"""The error tree as HTTP: status, headers and OpenAI's envelope. The only place that knows either."""

from __future__ import annotations

import math
import re

import msgspec

from inferhub.core.errors import Conflict, InferHubError, QuotaExceeded, ServingError, Unauthenticated
from inferhub.gateway.ratelimit import Headers, ratelimit_headers

__all__ = ["Headers", "envelope", "error_headers"]

_MAX_MESSAGE_CHARS = 2000
# Control characters forge log lines; addresses of objects help an attacker.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]+|\b0x[0-9a-fA-F]{6,}\b")


def envelope(error: InferHubError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`, all four keys always."""
    message = _UNSAFE.sub(" ", error.message)[:_MAX_MESSAGE_CHARS]
    body = {"message": message, "type": error.type, "param": error.param, "code": error.wire_code}
    return msgspec.json.encode({"error": body})


def error_headers(error: InferHubError) -> Headers:
    headers: Headers = []
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
        headers.append((b"retry-after-ms", str(max(1, round(error.retry_after_s * 1000))).encode()))
    if isinstance(error, ServingError):
        headers.append((b"x-inferhub-attempts", str(error.attempts).encode()))
        if error.endpoint:
            headers.append((b"x-inferhub-upstream", error.endpoint.encode("latin-1", "replace")))
    if _is_final(error):
        # Official clients retry 409, 429 and 5xx by themselves; here that would only cost twice.
        headers.append((b"x-should-retry", b"false"))
    headers += ratelimit_headers(error.readings)
    return headers


def _is_final(error: InferHubError) -> bool:
    if isinstance(error, ServingError):
        return not error.retryable
    return isinstance(error, Conflict | QuotaExceeded)
