"""Reads the errors of OpenAI-style upstreams into our error tree.

Called by remote backends with a refused response. What an upstream says is foreign text: it is cleaned,
shortened and freed of secrets here, and a page of HTML never gets through.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from inferhub.core.errors import (
    BackendRefused,
    ContextOverflow,
    InferHubError,
    Overloaded,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)

_MAX_MESSAGE = 600
_MAX_WORD = 64
_MIN_SECRET = 6
"""Shorter values are not replaced: that would garble messages and hide nothing."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,16}")
_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]+")
# A request that the upstream understood and will refuse again.
_REFUSALS = {400, 404, 409, 413, 422}


class _Problem(msgspec.Struct):
    """What an upstream's error says, after cleaning."""

    message: str | None = None
    param: str | None = None
    code: str | None = None


def read_error(
    status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()
) -> InferHubError:
    """The error that a response with this status means. `headers` must look up names in lower case."""
    problem = _read_problem(body, secrets)
    retry_after_s = read_retry_after_s(headers)
    said = f": {problem.message}" if problem.message else "."
    match status:
        case 401 | 403:
            # Not the client's key and not the client's business: nothing of the answer is passed on.
            return UpstreamDenied()
        case 429 if problem.code == "insufficient_quota":
            return UpstreamExhausted(code=problem.code)
        case 429:
            return UpstreamRateLimited(
                f"The upstream's rate limit was hit{said}", retry_after_s=retry_after_s
            )
        case 503 | 529:
            return Overloaded("The upstream is overloaded.", retry_after_s=retry_after_s)
    if status in _REFUSALS and problem.message:
        kind = ContextOverflow if problem.code == ContextOverflow.code else BackendRefused
        return kind(problem.message, param=problem.param, code=problem.code)
    if status in (400, 413, 422):
        return BackendRefused(f"The upstream refused the request with HTTP {status} and gave no reason.")
    if 300 <= status < 400:
        return UpstreamFailed(
            f"The upstream answered with a redirect (HTTP {status}); redirects are not followed."
        )
    if status in (404, 405):
        return UpstreamFailed(
            f"The upstream has no such address (HTTP {status}); its base_url is probably wrong."
        )
    return UpstreamFailed(f"The upstream failed with HTTP {status}.")


def read_stream_error(error: Any, secrets: Collection[str] = ()) -> UpstreamFailed:
    """An error object that came inside a successful answer."""
    problem = _clean({"error": error}, secrets)
    if problem.message:
        return UpstreamFailed(f"The upstream reported an error: {problem.message}")
    return UpstreamFailed("The upstream reported an error inside its answer.")


def read_retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds or an HTTP date); None if absent."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _number(text: str | None) -> float | None:
    """A finite number of at least zero, however strange the text."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _read_problem(body: bytes, secrets: Collection[str]) -> _Problem:
    try:
        return _clean(msgspec.json.decode(body), secrets)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Problem()


def _clean(answer: Any, secrets: Collection[str]) -> _Problem:
    """OpenAI's envelope, and the two habits beside it: `error` as a string, and a flat object."""
    if not isinstance(answer, dict):
        return _Problem()
    error = answer.get("error", answer if answer.get("object") == "error" else None)
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return _Problem()
    message = error.get("message")
    return _Problem(
        message=clean_text(message, secrets) or None if isinstance(message, str) else None,
        param=_word(error.get("param"), secrets),
        code=_word(error.get("code"), secrets),
    )


def clean_text(text: str, secrets: Collection[str] = ()) -> str:
    """Foreign text made fit for an answer and a log line: one line, short, no secret, no address."""
    for secret in secrets:
        if len(secret) >= _MIN_SECRET:
            text = text.replace(secret, "[redacted]")
    text = _ADDRESS.sub("0x…", _UNPRINTABLE.sub(" ", text[: 4 * _MAX_MESSAGE])).strip()
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"


def _word(value: Any, secrets: Collection[str]) -> str | None:
    """A machine-readable name, or None for anything else (some servers put a number or a phrase there)."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_WORD or not _WORD.fullmatch(value):
        return None
    return None if any(secret in value for secret in secrets if len(secret) >= _MIN_SECRET) else value
