"""Every usage store answers alike: each event once, sums exact, pages whole, tenants apart. On real servers."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import astuple, replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inferhub.core.errors import Invalid
from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores import open_usage
from inferhub.stores.usage.base import MAX_PAGE, Dimension, Interval, UsageFilter, UsageRow, UsageStore
from inferhub.stores.usage.consumer import UsageConsumer
from inferhub.stores.usage.questions import SUMS
from inferhub.testing.backing import ClickHouse, Postgres

KINDS = ("sqlite", "postgres", "clickhouse")
MONTH = datetime(2026, 3, 1, tzinfo=UTC)
START_MS = int(MONTH.timestamp() * 1000)
DAY_MS = 86_400_000
ALL = UsageFilter(0, START_MS * 2)
DIMENSIONS: tuple[Dimension, ...] = (
    "tenant",
    "project",
    "key",
    "modality",
    "model",
    "day",
    "status",
    "source",
)
NAMES = (
    "gpt",
    "x'; DROP TABLE usage_events; --",
    'quo"te` \\back\\n slash \\\' %s {p1:String} $1 ?1 :a',
    "línea\nnueva\ttab",
    "模型🦊",
    "é",
    "e\u0301",
    "",
    "Z",
    "a",
)  # fmt: skip


def event(number: int, **changes: Any) -> UsageEvent:
    plain = UsageEvent(
        id=f"call_{number:024x}",
        request_id=f"req-{number}",
        at_ms=START_MS + number,
        tenant_id="ten_a",
        project_id="prj_a",
        key_id="key_a",
        modality="chat",
        model="gpt",
        requested_model="gpt",
        source="reported",
        cost_usd=Decimal("0.000000000000000001"),
    )
    return replace(plain, **changes)


def random_events(count: int, seed: int, days: int = 20) -> list[UsageEvent]:
    chance = random.Random(seed)

    def one(number: int) -> UsageEvent:
        tokens = [chance.choice((0, chance.randrange(5000))) for _ in range(4)]
        has_begun = chance.random() < 0.7
        return event(
            number,
            # Some at the very same moment.
            at_ms=START_MS + chance.randrange(days * DAY_MS if chance.random() < 0.7 else 4),
            tenant_id=f"ten_{chance.randrange(3)}",
            project_id=f"prj_{chance.randrange(4)}",
            key_id=f"key_{chance.randrange(6)}",
            modality=chance.choice(("chat", "embedding", "speech")),
            model=chance.choice(NAMES),
            requested_model=chance.choice(NAMES),
            status=chance.choice(("ok", "ok", "ok", "cancelled", "lost", "upstream_error")),
            source=chance.choice(("reported", "estimated", "unknown")),
            attempts=chance.randrange(1, 4),
            is_stream=chance.random() < 0.5,
            input_tokens=tokens[0],
            cached_tokens=tokens[1],
            output_tokens=tokens[2],
            reasoning_tokens=tokens[3],
            total_tokens=sum(tokens),
            audio_ms=chance.randrange(10**7),
            characters=chance.randrange(4096),
            images=chance.randrange(3),
            pixels=chance.randrange(10**9),
            latency_ms=chance.uniform(1, 60_000),
            first_token_ms=chance.uniform(1, 900) if has_begun else None,
            # From a billionth of a billionth to thousands of dollars: floats would lose the small ones.
            cost_usd=Decimal(chance.randrange(10 ** chance.randrange(1, 22))).scaleb(-18),
            price_version=chance.choice(("", "v1")),
        )

    return [one(number) for number in range(count)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/usage.db"
    server: Postgres | ClickHouse = request.getfixturevalue(kind)
    return server.fresh()


Opener = Callable[[], Any]


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Opener]:
    """Opens the same store again, as another process would."""
    async with AsyncExitStack() as stack:

        async def open_one() -> UsageStore:
            store = await open_usage(url)
            stack.push_async_callback(store.close)
            return store

        yield open_one


@pytest.fixture
async def store(opened: Opener) -> UsageStore:
    found: UsageStore = await opened()
    return found


async def total(store: UsageStore, where: UsageFilter = ALL) -> tuple[int, Decimal]:
    rows = (await store.summary(where, ())).rows
    return (rows[0].calls, rows[0].cost_usd) if rows else (0, Decimal(0))


async def whole_summary(
    store: UsageStore, where: UsageFilter, by: Sequence[Dimension], limit: int
) -> list[UsageRow]:
    rows: list[UsageRow] = []
    after = None
    while True:
        page = await store.summary(where, by, after=after, limit=limit)
        assert len(page.rows) <= limit
        rows += page.rows
        after = page.next_after
        if after is None:
            return rows
        assert len(page.rows) == limit


async def all_events(store: UsageStore, where: UsageFilter, limit: int = MAX_PAGE) -> list[UsageEvent]:
    found: list[UsageEvent] = []
    while page := await store.events(
        where, after=(found[-1].at_ms, found[-1].id) if found else None, limit=limit
    ):
        found += page
    return found


# --- the oracle ------------------------------------------------------------------------------------


def is_in(one: UsageEvent, where: UsageFilter) -> bool:
    names = ("tenant_id", "project_id", "key_id", "model", "modality")
    wanted = [(getattr(where, name), getattr(one, name)) for name in names]
    return where.from_ms <= one.at_ms < where.until_ms and all(w in (None, is_) for w, is_ in wanted)


def key_of(one: UsageEvent, by: Iterable[Dimension]) -> tuple[str, ...]:
    day = datetime.fromtimestamp(one.at_ms / 1000, UTC).strftime("%Y-%m-%d")
    values = {"tenant": one.tenant_id, "project": one.project_id, "key": one.key_id, "day": day}
    return tuple(values[name] if name in values else getattr(one, name) for name in by)


def grouped(
    events: Iterable[UsageEvent], key: Callable[[UsageEvent], Any]
) -> list[tuple[Any, list[UsageEvent]]]:
    groups: dict[Any, list[UsageEvent]] = defaultdict(list)
    for one in events:
        groups[key(one)].append(one)
    return sorted(groups.items())


def check_row(row: UsageRow, members: Sequence[UsageEvent], kind: str) -> None:
    assert row.calls == len(members)
    assert row.errors == sum(one.status not in ("ok", "cancelled") for one in members)
    for name in SUMS:
        assert getattr(row, name) == sum(getattr(one, name) for one in members), name
    with localcontext(prec=60):
        assert row.cost_usd == sum(one.cost_usd for one in members)
    check_percentiles(row, members, kind)


def check_percentiles(row: UsageRow | Interval, members: Sequence[UsageEvent], kind: str) -> None:
    for measure in ("latency_ms", "first_token_ms"):
        values = sorted(
            getattr(one, measure)
            for one in members
            if one.status == "ok" and getattr(one, measure) is not None
        )
        for percent in (50, 95):
            found = getattr(row, f"{measure}_p{percent}")
            if not values:
                assert found is None
                continue
            rank = math.ceil(len(values) * percent / 100) - 1
            # ClickHouse's digest estimates; the others name the value.
            slack = max(1, math.ceil(len(values) * 0.02)) if kind == "clickhouse" else 0
            low, high = values[max(0, rank - slack)], values[min(len(values) - 1, rank + slack)]
            tolerance = 1e-4 if slack else 0
            assert low * (1 - tolerance) <= found <= high * (1 + tolerance), (measure, percent)


# --- taking events once ----------------------------------------------------------------------------


async def test_an_event_comes_back_as_it_was_written(store: UsageStore) -> None:
    events = random_events(300, seed=1)
    await store.write(events)
    found = await all_events(store, ALL, limit=97)
    assert found == sorted(events, key=lambda one: (one.at_ms, one.id))


async def test_the_same_batch_twice_counts_once(store: UsageStore, opened: Opener) -> None:
    events = random_events(200, seed=2)
    await store.write(events, token="batch-1")
    once = await total(store)
    await store.write(events, token="batch-1")
    await store.write(events, token="another name")
    await (await opened()).write(events)
    assert await total(store) == once == (200, sum((one.cost_usd for one in events), Decimal(0)))
    calls = sum(step.calls for step in await store.timeline(ALL, "day", limit=MAX_PAGE))
    assert calls == 200


async def test_overlapping_batches_count_each_event_once(store: UsageStore) -> None:
    events = random_events(500, seed=3)
    chance = random.Random(4)
    for _ in range(12):
        start = chance.randrange(450)
        await store.write(events[start : start + chance.randrange(1, 200)], token=f"t{chance.random()}")
    await store.write(events)
    assert await total(store) == (500, sum((one.cost_usd for one in events), Decimal(0)))
    assert sum(step.calls for step in await store.timeline(ALL, "hour", limit=MAX_PAGE)) == 500


async def test_another_batch_under_the_same_token_is_not_lost(store: UsageStore) -> None:
    await store.write([event(1), event(2)], token="0:100")
    await store.write([event(3), event(4)], token="0:100")
    assert (await total(store))[0] == 4


async def test_an_event_that_is_known_is_not_changed(store: UsageStore) -> None:
    first = event(1, status="ok", cost_usd=Decimal(1))
    await store.write([first])
    await store.write([replace(first, status="lost", cost_usd=Decimal(5)), event(2)])
    await store.write([event(3), replace(event(3), cost_usd=Decimal(9))])
    assert await all_events(store, ALL) == [first, event(2), event(3)]


async def test_nothing_is_written_by_an_empty_batch(store: UsageStore) -> None:
    await store.write([])
    assert (await store.summary(ALL, ())).rows == ()
    assert (await store.summary(ALL, ("tenant",))) == (await store.summary(ALL, ("day",)))
    assert await store.events(ALL) == ()
    assert await store.timeline(ALL, "minute") == ()


async def test_writers_at_one_moment_take_each_event_once(store: UsageStore, opened: Opener) -> None:
    events = random_events(600, seed=5)
    batches = [events[start : start + 200] for start in range(0, 500, 100)]
    stores = [store, await opened(), await opened()]
    backwards = [batch[::-1] for batch in batches]
    await asyncio.gather(
        *(
            one.write(batch)
            for one, some in zip(stores, (batches, backwards, batches), strict=True)
            for batch in some
        )
    )
    assert await total(store) == (600, sum((one.cost_usd for one in events), Decimal(0)))
    assert len(await all_events(store, ALL)) == 600


async def test_processes_that_start_at_once_make_one_schema(opened: Opener) -> None:
    stores = await asyncio.gather(*(opened() for _ in range(4)))
    for number, one in enumerate(stores):
        await one.write([event(number)])
    assert (await total(stores[0]))[0] == 4


async def test_odd_values_are_cut_and_keep_nothing_out(store: UsageStore) -> None:
    odd = event(
        1,
        model="m" * 5000,
        requested_model="nul\0 and \ud800",
        latency_ms=math.nan,
        first_token_ms=math.inf,
        input_tokens=10**40,
        output_tokens=-5,
        cost_usd=Decimal("1e30"),
    )
    await store.write([odd, event(2, cost_usd=Decimal("NaN")), event(3, cost_usd=Decimal("1e-30"))])
    found, *others = await all_events(store, ALL)
    assert found.model == "m" * 512
    assert found.requested_model == "nul\ufffd and ?"
    assert (found.latency_ms, found.first_token_ms, found.output_tokens) == (0, 0, 0)
    assert (found.input_tokens, found.cost_usd) == (10**12, Decimal(10**6))
    assert [one.cost_usd for one in others] == [0, 0]


async def test_the_spools_records_arrive_through_the_consumer(store: UsageStore) -> None:
    begin = Begin(
        id="call_1", request_id="r", at_ms=START_MS, tenant_id="t", project_id="p", key_id="k",
        modality="chat", model="m",
    )  # fmt: skip
    consumer = UsageConsumer(store)
    await consumer.take([begin, event(1), event(2), begin], "0:1")
    await consumer.take([begin], "1:2")
    assert (await total(store))[0] == 2


# --- sums ------------------------------------------------------------------------------------------


async def test_every_sum_is_what_the_oracle_says(store: UsageStore, kind: str) -> None:
    events = random_events(5000, seed=6)
    for start in range(0, 5000, 700):
        await store.write(events[start : start + 700], token=str(start))
    chance = random.Random(7)
    combinations = [by for size in range(3) for by in itertools.permutations(DIMENSIONS, size)]
    combinations = chance.sample(combinations, 30)
    combinations += [(), ("tenant", "project", "key", "day"), ("day", "model", "status", "source")]
    whole = UsageFilter(START_MS + DAY_MS, START_MS + 15 * DAY_MS)
    filters = [
        whole,
        replace(whole, tenant_id="ten_1"),
        replace(whole, tenant_id="ten_2", key_id="key_3", from_ms=START_MS + 12345),
        replace(whole, model=NAMES[1], project_id="prj_1"),
        replace(whole, model=NAMES[2], modality="speech"),
    ]
    for by in combinations:
        where = chance.choice(filters)
        expected = grouped((one for one in events if is_in(one, where)), partial(key_of, by=by))
        rows = await whole_summary(store, where, by, limit=chance.choice((7, 100, MAX_PAGE)))
        assert [row.keys for row in rows] == [key for key, _ in expected], by
        for row, (_, members) in zip(rows, expected, strict=True):
            check_row(row, members, kind)


@pytest.mark.parametrize("narrowed", [{}, {"tenant_id": "ten_1"}, {"model": NAMES[1]}, {"key_id": "key_2"}])
@pytest.mark.parametrize("step", ["minute", "hour", "day"])
async def test_timelines_are_what_the_oracle_says(
    store: UsageStore, kind: str, step: Any, narrowed: dict[str, str]
) -> None:
    events = random_events(1500, seed=8, days=1)
    await store.write(events)
    length = {"minute": 60_000, "hour": 3_600_000, "day": DAY_MS}[step]
    for where in (
        UsageFilter(START_MS, START_MS + DAY_MS, **narrowed),
        UsageFilter(START_MS + 1234, START_MS + DAY_MS - 777, **narrowed),
    ):
        found: list[Interval] = []
        while page := await store.timeline(
            where, step, after_ms=found[-1].at_ms if found else None, limit=500
        ):
            found += page
        expected = grouped(
            (one for one in events if is_in(one, where)), lambda one: one.at_ms // length * length
        )
        assert [one.at_ms for one in found] == [key for key, _ in expected]
        for row, (_, members) in zip(found, expected, strict=True):
            assert row.calls == len(members)
            assert row.errors == sum(one.status not in ("ok", "cancelled") for one in members)
            check_percentiles(row, members, kind)


async def test_costs_beyond_what_floats_and_64_bits_hold_stay_exact(store: UsageStore) -> None:
    costs = [Decimal("999999.999999999999999999"), Decimal("-0.000000000000000001"), Decimal("9.3e-10")]
    await store.write([event(n, cost_usd=costs[n % 3]) for n in range(3000)])
    with localcontext(prec=60):
        assert (await total(store))[1] == sum(costs, Decimal(0)) * 1000


# --- pages, tenants, names -------------------------------------------------------------------------


async def test_pages_hold_every_event_once_while_others_write(store: UsageStore, opened: Opener) -> None:
    before = random_events(800, seed=9)
    await store.write(before)
    writer: UsageStore = await opened()
    is_read = asyncio.Event()

    async def go_on_writing() -> int:
        number = 10_000
        while not is_read.is_set():
            await writer.write([event(number + n, tenant_id="ten_1") for n in range(20)])
            number += 20
        return number

    task = asyncio.create_task(go_on_writing())
    try:
        found = await all_events(store, ALL, limit=37)
        keys = [row.keys for row in await whole_summary(store, ALL, ("key", "model", "status"), limit=11)]
    finally:
        is_read.set()
        assert await task > 10_000
    ids = [one.id for one in found]
    assert len(ids) == len(set(ids))
    assert {one.id for one in before} <= set(ids)
    assert len(keys) == len(set(keys))
    assert {key_of(one, ("key", "model", "status")) for one in before} <= set(keys)


async def test_a_tenants_filter_shows_nothing_of_another(store: UsageStore) -> None:
    events = random_events(900, seed=10)
    await store.write(events)
    for tenant in ("ten_0", "ten_1", "ten_2"):
        where = replace(ALL, tenant_id=tenant)
        assert {one.tenant_id for one in await all_events(store, where)} == {tenant}
        rows = await whole_summary(store, where, ("tenant", "key"), limit=50)
        assert {row.keys[0] for row in rows} == {tenant}
        assert sum(step.calls for step in await store.timeline(where, "day", limit=50)) == sum(
            one.tenant_id == tenant for one in events
        )
    for stranger in ("ten_", "ten_%", "ten_1' OR '1'='1", "TEN_1", "ten_1 ", "", "\\"):
        where = replace(ALL, tenant_id=stranger)
        assert await store.events(where) == ()
        assert (await store.summary(where, ("tenant",))).rows == ()
        assert await store.timeline(where, "day") == ()


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_is_only_a_name(store: UsageStore, name: str) -> None:
    events = [event(n, tenant_id=name or "t", model=one, key_id=one) for n, one in enumerate(NAMES)]
    await store.write(events)
    where = replace(ALL, model=name)
    assert [one.model for one in await store.events(where)] == [name]
    rows = await whole_summary(store, ALL, ("model", "key"), limit=1)
    assert [row.keys for row in rows] == sorted((one, one) for one in NAMES)


async def test_what_cannot_be_asked_is_refused(store: UsageStore) -> None:
    questions: tuple[Any, ...] = (
        (("model", "id; DROP TABLE usage_events"), None, 10),
        (DIMENSIONS[:5], None, 10),
        (("day", "day"), None, 10),
        (("day",), ("a", "b"), 10),
        (("day",), None, 0),
        (("day",), None, MAX_PAGE + 1),
    )
    for by, after, limit in questions:
        with pytest.raises(Invalid):
            await store.summary(ALL, by, after=after, limit=limit)
    with pytest.raises(Invalid):
        await store.events(ALL, limit=MAX_PAGE + 1)
    with pytest.raises(Invalid):
        await store.timeline(ALL, "second", limit=10)  # type: ignore[arg-type]


async def test_what_was_written_is_there_after_closing(store: UsageStore, opened: Opener) -> None:
    events = random_events(50, seed=11)
    await store.write(events)
    again: UsageStore = await opened()
    await again.ping()
    assert [astuple(one) for one in await all_events(again, ALL)] == [
        astuple(one) for one in sorted(events, key=lambda one: (one.at_ms, one.id))
    ]
