"""Prices: exact, dated, versioned; and what a hub.yaml may not say about them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.errors import SetupError
from inferhub.core.prices import PriceBook, check_price_dates, cost, cost_nano_usd, version_of
from inferhub.core.usage import Price, Usage
from inferhub.settings.spec import load_spec

MODELS = (
    "models:\n- {name: m, backend: echo}\n- {name: other, backend: echo}\nroutes:\n- {name: r, model: m}\n"
)


def prices(*rows: str) -> tuple[Price, ...]:
    return load_spec(MODELS + "prices:\n" + "".join(f"- {row}\n" for row in rows), env={}).prices


def refusal(*rows: str) -> str:
    with pytest.raises(SetupError) as caught:
        prices(*rows)
    return caught.value.message


def day(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def test_each_unit_is_billed_once_and_exactly() -> None:
    (price,) = prices(
        "{model: m, input_per_mtok: '0.15', cached_input_per_mtok: 0.075, output_per_mtok: '0.60',"
        " reasoning_per_mtok: 3, per_audio_minute: '0.006', per_million_characters: 15, per_image: '0.04',"
        " per_megapixel: '0.000000000001', per_request: '0.01'}"
    )
    assert cost(price, Usage()) == Decimal("0.01")
    assert cost(price, Usage(1_000_000)) == Decimal("0.16")
    assert cost(price, Usage(1_000_000, cached_tokens=1_000_000)) == Decimal("0.085")
    assert cost(price, Usage(3, 10, 1, 4)) == Decimal("0.01") + (
        2 * Decimal("0.15") + Decimal("0.075") + 6 * Decimal("0.6") + 4 * Decimal(3)
    ) / Decimal(10**6)
    assert cost(price, Usage(audio_ms=61_500)) == Decimal("0.01") + Decimal("0.006") * 61_500 / 60_000
    assert cost(price, Usage(characters=1)) == Decimal("0.010015")
    assert cost(price, Usage(images=2, pixels=1)) == Decimal("0.090000000000000001")


def test_cached_and_reasoning_tokens_cost_what_the_others_do_unless_it_is_said() -> None:
    first, free = prices(
        "{model: m, input_per_mtok: 2, output_per_mtok: 8}",
        "{model: other, input_per_mtok: 2, cached_input_per_mtok: 0, output_per_mtok: 8, reasoning_per_mtok: 0}",
    )
    usage = Usage(10, 10, 10, 10)
    assert cost(first, usage) == Decimal("0.0001")
    assert cost(free, usage) == 0


@given(
    st.integers(0, 2**40), st.integers(0, 2**40), st.decimals("0", "10000", places=12), st.integers(0, 2**40)
)
def test_a_cost_is_exact_however_large(tokens: int, cached: int, amount: Decimal, pixels: int) -> None:
    cached = min(cached, tokens)
    row = f"{{model: m, input_per_mtok: '{amount:f}', cached_input_per_mtok: '0.000000000001', per_megapixel: 7}}"
    (price,) = prices(row)
    millionths = int(amount * 10**12) * (tokens - cached) + cached + 7 * 10**12 * pixels
    assert int(cost(price, Usage(tokens, cached_tokens=cached, pixels=pixels)).scaleb(18)) == millionths
    nano = cost_nano_usd(price, Usage(tokens, cached_tokens=cached, pixels=pixels))
    assert nano == -(-millionths // 10**9)


def test_the_latest_row_that_has_begun_is_valid() -> None:
    book = PriceBook(
        prices(
            "{model: m, from: 2027-02-01, input_per_mtok: 3}",
            "{model: m, input_per_mtok: 1}",
            "{model: m, from: 2027-01-01, input_per_mtok: 2}",
            "{model: other, from: 2027-01-01, input_per_mtok: 2}",
        )
    )

    def at(model: str, when: float) -> Decimal | None:
        price = book.at(model, when)
        return price.input_token * 10**6 if price else None

    assert at("m", 0) == 1
    assert at("m", day("2027-01-01") - 0.001) == 1
    assert at("m", day("2027-01-01")) == 2
    assert at("m", day("2030-01-01")) == 3
    assert at("other", day("2027-01-01") - 1) is None
    assert at("unknown", 0) is None
    assert book.bill("unknown", Usage(5), 0) == (Decimal(0), "")


def test_a_version_changes_with_the_content_only() -> None:
    a, b = (
        prices("{model: m, input_per_mtok: '0.10'}"),
        prices("{model: m, input_per_mtok: 0.1, output_per_mtok: 0}"),
    )
    assert a[0].version == b[0].version == version_of(a[0])
    assert len(a[0].version) == 12
    for change in (
        {"model": "x"},
        {"valid_from": 1},
        {"output_token": Decimal(1)},
        {"request": Decimal("0.1")},
    ):
        assert version_of(replace(a[0], **change)) != a[0].version  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "column", "what"),
    [
        ("{model: nn, input_per_mtok: 1}", 4, "unknown model 'nn'"),
        ("{model: othr}", 4, "Did you mean 'other'?"),
        ("{model: r}", 4, "It is a route; name the models that it leads to"),
        (
            "{model: m, input_per_mtok: -1}",
            14,
            "input_per_mtok cannot be -1; allowed: US dollars from 0 to 10000",
        ),
        ("{model: m, per_image: 10000.01}", 14, "per_image cannot be 10000.01"),
        ("{model: m, per_image: '0.0000000000001'}", 14, "at most 12 decimals"),
        ("{model: m, per_image: 0.1234567890123456}", 14, "per_image cannot be"),
        ("{model: m, per_image: 1e400}", 14, "per_image cannot be"),
        ("{model: m, per_image: nan}", 14, "per_image cannot be 'nan'"),
        ("{model: m, per_image: '1e3'}", 14, "per_image cannot be '1e3'"),
        ("{model: m, per_image: ' 1'}", 14, "per_image cannot be ' 1'"),
        ("{model: m, per_image: '\u0661'}", 14, "per_image cannot be"),
        ("{model: m, per_image: yes}", 14, "per_image cannot be 'yes'"),
        ("{model: m, per_image: true}", 14, "per_image cannot be True"),
        ("{model: m, per_image: [1]}", 14, "per_image cannot be a list"),
        ("{model: m, from: 2027-02-30}", 14, "from cannot be '2027-02-30'; allowed: a date such as"),
        ("{model: m, from: 20270201}", 14, "from cannot be 20270201"),
        ("{model: m, valid_from: 2027-02-01}", 14, "unknown key 'valid_from'"),
        ("{model: m, input_per_mtk: 1}", 14, "Did you mean 'input_per_mtok'?"),
        ("{input_per_mtok: 1}", 3, "the key 'model' is missing"),
        ("{model: m}", 4, "model 'm' has a price without 'from' already: prices[0]"),
        ("{model: m, from: 2030-01-01}", 14, "model 'm' has a price from 2030-01-01 already: prices[1]"),
    ],
)
def test_a_bad_price_is_refused_where_it_stands(row: str, column: int, what: str) -> None:
    message = refusal("{model: m}", "{model: m, from: 2030-01-01}", row)
    assert f"hub.yaml:9:{column}: " in message, message
    assert what in message


def test_a_price_may_come_from_the_environment() -> None:
    text = MODELS + "prices: [{model: m, input_per_mtok: '${P}', from: '${D}'}]"
    (price,) = load_spec(text, env={"P": "0.5", "D": "2027-01-01"}).prices
    assert (price.input_token, price.valid_from) == (Decimal("0.0000005"), day("2027-01-01"))


NOW = day("2026-11-22") + 3600


def test_a_price_cannot_begin_in_the_past() -> None:
    past, today, future = (
        prices(f"{{model: m, from: {date}, input_per_mtok: 1}}")
        for date in ("2026-11-21", "2026-11-22", "2026-12-01")
    )
    for new in (today, future, prices("{model: m, input_per_mtok: 1}")):
        check_price_dates((), new, NOW)
    with pytest.raises(SetupError, match=r"'m' from 2026-11-21.*in the past.*2026-11-22") as caught:
        check_price_dates((), past, NOW)
    assert caught.value.param == "prices"
    spec = load_spec(
        "models: [{name: m, backend: echo}]\nprices:\n  - {model: m}\n  - {model: m, from: 2020-01-31}\n",
        env={},
    )
    with pytest.raises(SetupError, match=r"hub.yaml:4:16: 'm' from 2020-01-31"):
        check_price_dates((), spec.prices, NOW, spec.price_places)
    # What was there before its day came may stay, but not change.
    check_price_dates(past, past, NOW)
    with pytest.raises(SetupError):
        check_price_dates(past, prices("{model: m, from: 2026-11-21, input_per_mtok: 2}"), NOW)
    # A row without a date may change: it takes effect now.
    check_price_dates(prices("{model: m}"), prices("{model: m, input_per_mtok: 2}"), NOW)
