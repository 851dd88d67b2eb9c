"""A refusal as the error that the client gets: which limit, how large, and whether waiting helps."""

from __future__ import annotations

from inferhub.core.errors import LimitReached, QuotaExceeded, RateLimited
from inferhub.core.quota import NANO_USD, Meter, Refusal, Unit, Window
from inferhub.modalities.tokens import DEFAULT_OUTPUT_TOKENS

_NOUN = {
    Unit.REQUESTS: "requests",
    Unit.TOKENS: "tokens",
    Unit.CONCURRENT: "calls at once",
    Unit.AUDIO_SECONDS: "seconds of audio",
    Unit.CHARACTERS: "spoken characters",
    Unit.IMAGES: "images",
    Unit.PIXELS: "pixels",
    Unit.USD: "budget",
}
_REMEDY = {
    Unit.TOKENS: f"Send a lower 'max_tokens' ({DEFAULT_OUTPUT_TOKENS} where it is left out)",
    Unit.USD: f"Send a lower 'max_tokens' ({DEFAULT_OUTPUT_TOKENS} where it is left out)",
    Unit.AUDIO_SECONDS: "Send less sound",
    Unit.CHARACTERS: "Send less text",
    Unit.IMAGES: "Ask for fewer images",
    Unit.PIXELS: "Ask for smaller images",
}
"""What makes the same request need less."""
_EVERY = {Window.NOW: "", Window.MINUTE: " per minute", Window.DAY: " per day", Window.MONTH: " per month"}


def refused(refusal: Refusal) -> LimitReached:
    claim, meter = refusal.claim, refusal.claim.meter
    what = f"{_NOUN[meter.unit]}{_EVERY[meter.window]} of this {meter.key.partition(':')[0]}"
    numbers = f"limit {_shown(meter, meter.limit)}, requested {_shown(meter, claim.amount)}"
    error: LimitReached
    if claim.amount > meter.limit:
        # No retry time: the same request can never fit.
        error = QuotaExceeded(f"Request too large for {what}: {numbers}. {_remedy(meter)}")
    elif meter.unit is Unit.USD:
        error = QuotaExceeded(
            f"The {what} has no room for this request: {numbers}{_left(refusal)}. "
            f"{_remedy(meter, is_used_up=_remaining(refusal) == 0)}"
        )
    else:
        error = RateLimited(
            f"Rate limit reached for {what}: {numbers}{_left(refusal)}.", retry_after_s=refusal.retry_after_s
        )
    error.readings = refusal.readings
    return error


def _remedy(meter: Meter, *, is_used_up: bool = False) -> str:
    if is_used_up:
        return f"Ask for a higher budget, or wait for the next {meter.window} (UTC)."
    noun = "budget" if meter.unit is Unit.USD else "limit"
    less = _REMEDY.get(meter.unit)
    return f"{less}, or ask for a higher {noun}." if less else f"Ask for a higher {noun}."


def _left(refusal: Refusal) -> str:
    left = _remaining(refusal)
    return "" if left is None else f", left {_shown(refusal.claim.meter, left)}"


def _remaining(refusal: Refusal) -> int | None:
    """Of the meter that refused."""
    key = refusal.claim.meter.key
    return next((reading.remaining for reading in refusal.readings if reading.meter.key == key), None)


def _shown(meter: Meter, amount: int) -> str:
    if meter.unit is not Unit.USD:
        return str(amount)
    dollars, nano = divmod(amount, NANO_USD)
    fraction = f"{nano:09d}".rstrip("0").ljust(2, "0")
    return f"${dollars}.{fraction}"
