"""The `x-ratelimit-…` headers and what errors say about trying again."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.call import Started
from inferhub.core.errors import Conflict, NoEndpoint, QuotaExceeded, RateLimited
from inferhub.core.quota import Meter, Reading, Unit, Window
from inferhub.gateway.answer import _started_headers
from inferhub.gateway.problems import error_headers
from inferhub.gateway.ratelimit import go_duration, ratelimit_headers


def reading(unit: Unit, limit: int, used: int, reset_s: float = 1.0, level: str = "key") -> Reading:
    return Reading(Meter(f"{level}:x:{unit}:minute", unit, Window.MINUTE, limit), used, reset_s)


def as_text(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (-3, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (0.9999, "1s"), (1, "1s"), (1.5, "1.5s"),
        (59.999, "59.999s"), (60, "1m0s"), (360, "6m0s"), (61.05, "1m1.05s"), (3600, "1h0m0s"),
        (90061.25, "25h1m1.25s"),
    ],
)  # fmt: skip
def test_durations_read_as_go_prints_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


_GO = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?")


@given(st.floats(min_value=0, max_value=31 * 86_400))
def test_durations_can_be_parsed_back_and_are_rounded_up(seconds: float) -> None:
    match = _GO.fullmatch(go_duration(seconds))
    assert match
    hours, minutes, s, ms = (float(part or 0) for part in match.groups())
    parsed_s = hours * 3600 + minutes * 60 + s + ms / 1000
    assert seconds - 1e-5 <= parsed_s <= seconds + 0.0011
    assert minutes < 60
    assert s < 60


def test_the_tightest_limit_of_a_unit_is_shown() -> None:
    headers = as_text(
        ratelimit_headers(
            [
                reading(Unit.REQUESTS, 100, 20, level="tenant"),
                reading(Unit.REQUESTS, 60, 55, 12.5),
                reading(Unit.TOKENS, 1000, 1200, 61),
                reading(Unit.USD, 5, 1),
            ]
        )
    )
    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "12.5s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m1s",
    }


def test_without_limits_there_are_no_headers() -> None:
    assert ratelimit_headers(()) == []


def test_an_answer_carries_them_in_its_head() -> None:
    started = Started("m", "e", readings=(reading(Unit.REQUESTS, 10, 1),))
    assert as_text(_started_headers(started))["x-ratelimit-remaining-requests"] == "9"


def test_an_error_after_admission_carries_them() -> None:
    error = NoEndpoint()
    error.readings = (reading(Unit.TOKENS, 10, 4),)
    assert as_text(error_headers(error))["x-ratelimit-remaining-tokens"] == "6"


def test_a_rate_limit_says_when_to_come_back() -> None:
    headers = as_text(error_headers(RateLimited(retry_after_s=0.25)))
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "250")
    assert "x-should-retry" not in headers


@pytest.mark.parametrize("error", [QuotaExceeded(), Conflict()])
def test_what_waiting_does_not_mend_is_not_to_be_retried(error: QuotaExceeded | Conflict) -> None:
    headers = as_text(error_headers(error))
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
