"""What an upstream sends is foreign: how its JSON is read, its words are cleaned, its statuses understood.

Every reader of `wire/` that is fed by a remote backend uses it. Nothing that cannot be read is ever echoed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import msgspec

from inferhub.core.errors import (
    BackendRefused,
    InferHubError,
    Overloaded,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)

T = TypeVar("T")

NOT_JSON = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises. The last one for nesting without end, in fields that nobody reads too."""

MIN_SECRET_CHARS = 6
"""Shorter values are not replaced: that would garble messages and hide nothing."""
_MAX_MESSAGE = 600
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,16}")
# A request that the upstream understood and will refuse again.
_REFUSALS = {400, 404, 409, 413, 422}


def json_reader(shape: type[T], instead: str) -> Callable[[bytes | str], T]:
    """A decoder that raises `UpstreamFailed` for anything else: "The upstream sent {instead}."."""
    decode = msgspec.json.Decoder(shape).decode

    def read(data: bytes | str) -> T:
        try:
            return decode(data)
        except NOT_JSON as error:
            raise UpstreamFailed(f"The upstream sent {instead}.") from error

    return read


def error_of(
    status: int, message: str, retry_after_s: float | None, refused: Callable[[str], InferHubError]
) -> InferHubError:
    """What a status means at every vendor; `message` was cleaned. `refused` judges what the upstream says of
    a request that it understood and will refuse again."""
    match status:
        case 401 | 403:
            # Not the client's key and not the client's business: nothing of the answer is passed on.
            return UpstreamDenied()
        case 402:
            return UpstreamExhausted()
        case 429:
            said = f": {message}" if message else "."
            return UpstreamRateLimited(
                f"The upstream's rate limit was hit{said}", retry_after_s=retry_after_s
            )
        case 503 | 529:
            return Overloaded("The upstream is overloaded.", retry_after_s=retry_after_s)
    if status in _REFUSALS and message:
        return refused(message)
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


def reported(message: str) -> UpstreamFailed:
    """A failure that came inside an answer which had begun well; `message` was cleaned."""
    if message:
        return UpstreamFailed(f"The upstream reported an error: {message}")
    return UpstreamFailed("The upstream reported an error inside its answer.")


def clean_text(text: str, secrets: Collection[str] = ()) -> str:
    """Foreign text made fit for an answer and a log line: one line, short, no secret, no address."""
    for secret in secrets:
        if len(secret) >= MIN_SECRET_CHARS:
            text = text.replace(secret, "[redacted]")
    text = _ADDRESS.sub("0x…", _UNPRINTABLE.sub(" ", text[: 4 * _MAX_MESSAGE])).strip()
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"


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
