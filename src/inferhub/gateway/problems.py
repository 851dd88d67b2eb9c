"""The error tree as HTTP: status, headers and the envelope that clients of an address expect.

The only place that knows any of them.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from inferhub.core.call import Failed
from inferhub.core.errors import (
    Conflict,
    DeadlineExceeded,
    InferHubError,
    QuotaExceeded,
    ServingError,
    Unauthenticated,
)
from inferhub.gateway.ratelimit import Headers, ratelimit_headers
from inferhub.modalities.base import Problem
from inferhub.wire.anthropic_messages.errors import anthropic_status, anthropic_type

__all__ = [
    "ANTHROPIC",
    "MAX_JITTER",
    "OPENAI",
    "Form",
    "Headers",
    "envelope",
    "error_headers",
    "form_at",
    "problem_of",
    "trail_headers",
]

_MAX_MESSAGE_CHARS = 2000
_MAX_TRAIL = 20
MAX_JITTER = 1.5
"""Clients that were refused in one moment come back at times of their own, up to so many times later."""
_NOT_PLAIN = re.compile(r"[^\x21-\x7e]|[,;]")
# Control characters forge log lines; addresses of objects help an attacker.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]+|\b0x[0-9a-fA-F]{6,}\b")


def problem_of(error: InferHubError) -> Problem:
    """The error as clients may read it."""
    message = _UNSAFE.sub(" ", error.message)[:_MAX_MESSAGE_CHARS]
    return Problem(message, error.type, error.param, error.wire_code)


class ErrorBody(msgspec.Struct):
    """Every error, as OpenAI's clients read it: all four keys always."""

    error: Problem


def envelope(error: InferHubError) -> bytes:
    return msgspec.json.encode(ErrorBody(problem_of(error)))


@dataclass(frozen=True, slots=True)
class Form:
    """How the clients of one address want to be told of errors."""

    status: Callable[[InferHubError], int]
    body: Callable[[InferHubError, str], bytes]
    """(error, request id) → JSON."""
    envelope: type[msgspec.Struct]
    """What `body` writes, for the API document."""
    request_id_header: bytes | None = None
    """Where their SDK looks for the request's id, if not in `x-request-id`."""


OPENAI = Form(status=lambda error: error.http, body=lambda error, _: envelope(error), envelope=ErrorBody)


class AnthropicProblem(msgspec.Struct):
    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, tag_field="type", tag="error"):
    """Every error, as Anthropic's clients read it."""

    error: AnthropicProblem
    request_id: str


def _anthropic_body(error: InferHubError, request_id: str) -> bytes:
    problem = AnthropicProblem(anthropic_type(error.http), problem_of(error).message)
    return msgspec.json.encode(AnthropicErrorBody(problem, request_id))


ANTHROPIC = Form(
    status=lambda error: anthropic_status(error.http),
    body=_anthropic_body,
    envelope=AnthropicErrorBody,
    request_id_header=b"request-id",
)

_FORMS = {"/v1/messages": ANTHROPIC, "/messages": ANTHROPIC}


def form_at(path: str) -> Form:
    """The form of an address, whether or not anything lives there."""
    for prefix, form in _FORMS.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return form
    return OPENAI


def error_headers(error: InferHubError) -> Headers:
    headers: Headers = []
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    wait_s = error.retry_after_s
    if wait_s is not None:
        # Of a lack of room, so that those who were refused together do not come back together. What an
        # upstream asked for is passed on as it is.
        if error.http == 503:
            wait_s *= random.uniform(1.0, MAX_JITTER)  # noqa: S311 - spreads retries, keeps no secret
        headers.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))
        headers.append((b"retry-after-ms", str(max(1, math.ceil(wait_s * 1000))).encode()))
    if error.reason:
        headers.append((b"x-inferhub-reason", error.reason.encode("ascii")))
    if isinstance(error, ServingError):
        headers.append((b"x-inferhub-attempts", str(error.attempts).encode()))
        if error.endpoint:
            headers.append((b"x-inferhub-upstream", error.endpoint.encode("latin-1", "replace")))
    headers += trail_headers(error.trail)
    if _is_final(error):
        # Official clients retry 409, 429 and 5xx by themselves; here that would only cost twice.
        headers.append((b"x-should-retry", b"false"))
    headers += ratelimit_headers(error.readings)
    return headers


def trail_headers(trail: Sequence[Failed]) -> Headers:
    """`x-inferhub-trail`: what was tried before, oldest first, as `endpoint;error code;seconds`."""
    if not trail:
        return []
    entries = [f"{_NOT_PLAIN.sub('_', f.endpoint)};{f.code};{f.after_s:.3f}" for f in trail[-_MAX_TRAIL:]]
    return [(b"x-inferhub-trail", ", ".join(entries).encode("ascii"))]


def _is_final(error: InferHubError) -> bool:
    if isinstance(error, ServingError):
        # Whoever was silent to us until the limit has worked, or been paid, for nothing once already.
        return not error.retryable or isinstance(error, DeadlineExceeded)
    return isinstance(error, Conflict | QuotaExceeded)
