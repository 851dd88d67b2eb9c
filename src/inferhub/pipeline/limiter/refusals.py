"""A refusal as the error that the client gets: which limit, how large, and whether waiting helps."""

from __future__ import annotations

from inferhub.core.errors import LimitReached, QuotaExceeded, RateLimited
from inferhub.core.quota import NANO_USD, Meter, Refusal, Unit, Window

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
_EVERY = {Window.NOW: "", Window.MINUTE: " per minute", Window.DAY: " per day", Window.MONTH: " per month"}


def refused(refusal: Refusal) -> LimitReached:
    claim, meter = refusal.claim, refusal.claim.meter
    what = f"{_NOUN[meter.unit]}{_EVERY[meter.window]} of this {meter.key.partition(':')[0]}"
    numbers = f"limit {_shown(meter, meter.limit)}, requested {_shown(meter, claim.amount)}"
    error: LimitReached
    if claim.amount > meter.limit:
        # No retry time: the same request can never fit.
        error = QuotaExceeded(f"Request too large for {what}: {numbers}.")
    elif meter.unit is Unit.USD:
        error = QuotaExceeded(f"The {what} has no room for this request: {numbers}{_left(refusal)}.")
    else:
        error = RateLimited(
            f"Rate limit reached for {what}: {numbers}{_left(refusal)}.", retry_after_s=refusal.retry_after_s
        )
    error.readings = refusal.readings
    return error


def _left(refusal: Refusal) -> str:
    meter = refusal.claim.meter
    for reading in refusal.readings:
        if reading.meter.key == meter.key:
            return f", left {_shown(meter, reading.remaining)}"
    return ""


def _shown(meter: Meter, amount: int) -> str:
    if meter.unit is not Unit.USD:
        return str(amount)
    dollars, nano = divmod(amount, NANO_USD)
    fraction = f"{nano:09d}".rstrip("0").ljust(2, "0")
    return f"${dollars}.{fraction}"
