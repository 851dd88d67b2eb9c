"""Reads Google's errors, `{"error": {code, message, status, details}}`, into our error tree.

The gemini backend calls it with refused responses and with error events. What an upstream says is foreign
text: it is cleaned, shortened and freed of secrets, and nothing else of a body gets through.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from inferhub.core.errors import (
    BackendRefused,
    ContextOverflow,
    EndpointStalled,
    InferHubError,
    Overloaded,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.wire.foreign import NOT_JSON, clean_text, error_of, read_retry_after_s, reported

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s", re.ASCII)
# Google has no status of its own for it; these are its words for prompts and for embedded texts.
_TOO_LONG = re.compile(
    r"(input|prompt) token count.{0,40}exceeds|exceeds the maximum number of tokens|input is too long", re.I
)
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""What a status of HTTP stands for where the body does not say; the canonical codes of Google's APIs."""


class _Status(msgspec.Struct):
    """Google's error, after a first look."""

    http: int
    name: str
    message: str
    details: list[dict[str, Any]]

    def of_type(self, kind: str) -> Iterator[dict[str, Any]]:
        return (detail for detail in self.details if str(detail.get("@type", "")).endswith(f".{kind}"))


def read_error(
    status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()
) -> InferHubError:
    """The error that a response with this status means. `headers` must look up names in lower case."""
    try:
        answer = msgspec.json.decode(body)
    except NOT_JSON:
        answer = None
    if isinstance(answer, list) and answer:
        # The address for streams wraps its errors into a list where it was not asked for events.
        answer = answer[0]
    error = answer.get("error") if isinstance(answer, dict) else None
    retry_after_s = read_retry_after_s(headers)
    if not isinstance(error, dict) and status not in _STATUSES:
        return error_of(status, "", retry_after_s, BackendRefused)
    return _judge(_status(status, error, secrets), retry_after_s)


def read_stream_error(error: Any, secrets: Collection[str] = ()) -> InferHubError:
    """An error object that came inside a successful answer."""
    code = error.get("code") if isinstance(error, dict) else None
    found = _status(code if isinstance(code, int) else 500, error, secrets)
    judged = _judge(found, None)
    if isinstance(judged, UpstreamFailed) and found.message:
        return reported(found.message)
    return judged


def _status(http: int, error: Any, secrets: Collection[str]) -> _Status:
    said = error if isinstance(error, dict) else {}
    name, message, details = said.get("status"), said.get("message"), said.get("details")
    return _Status(
        http,
        name if isinstance(name, str) else _STATUSES.get(http, ""),
        clean_text(message, secrets) if isinstance(message, str) else "",
        [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else [],
    )


def _judge(found: _Status, retry_after_s: float | None) -> InferHubError:
    match found.name:
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            # Not the client's key and not the client's business: nothing of the answer is passed on.
            return UpstreamDenied()
        case "FAILED_PRECONDITION":
            return UpstreamDenied(
                "The upstream does not serve this account (country or billing); its operator has to mend it."
            )
        case "INVALID_ARGUMENT" | "OUT_OF_RANGE" | "NOT_FOUND" | "UNIMPLEMENTED" | "ALREADY_EXISTS":
            return _refused(found)
        case "RESOURCE_EXHAUSTED":
            return _exhausted(found, retry_after_s)
        case "UNAVAILABLE":
            return Overloaded("The upstream is overloaded.", retry_after_s=_delay_s(found) or retry_after_s)
        case "DEADLINE_EXCEEDED":
            return EndpointStalled("The upstream ran out of its own time.")
    return UpstreamFailed(f"The upstream failed with HTTP {found.http}.")


def _refused(found: _Status) -> InferHubError:
    if any(str(info.get("reason", "")).startswith("API_KEY_") for info in found.of_type("ErrorInfo")):
        # A wrong key is an invalid argument to Google.
        return UpstreamDenied()
    if not found.message:
        if found.name == "NOT_FOUND":
            return UpstreamFailed(
                f"The upstream has no such address (HTTP {found.http}); its base_url is probably wrong."
            )
        return BackendRefused(f"The upstream refused the request with HTTP {found.http} and gave no reason.")
    if _TOO_LONG.search(found.message):
        return ContextOverflow(found.message)
    return BackendRefused(found.message)


def _exhausted(found: _Status, retry_after_s: float | None) -> InferHubError:
    quotas = [
        str(violation.get("quotaId", ""))
        for failure in found.of_type("QuotaFailure")
        for violation in failure.get("violations") or ()
        if isinstance(violation, dict)
    ]
    if any("PerDay" in quota for quota in quotas):
        # It comes with a delay of seconds all the same.
        return UpstreamExhausted("InferHub's quota of the day at the upstream is used up.")
    return UpstreamRateLimited(
        "The upstream's rate limit was hit.", retry_after_s=_delay_s(found) or retry_after_s
    )


def _delay_s(found: _Status) -> float | None:
    for info in found.of_type("RetryInfo"):
        match = _DURATION.fullmatch(str(info.get("retryDelay", "")))
        if match:
            return float(match[1])
    return None
