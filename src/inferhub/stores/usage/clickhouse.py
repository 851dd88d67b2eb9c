"""Usage in ClickHouse over HTTP: one native insert per batch, bills from the events, metrics from views.

Sums are exact at any moment, merged or not. Percentiles are estimates (t-digest), off by about one rank in
a hundred at most; SQLite and PostgreSQL name the exact rank.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from aiohttp import ClientError
from clickhouse_connect import get_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import Error, OperationalError

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.core.usage import UsageEvent
from inferhub.stores.usage import questions, schema
from inferhub.stores.usage._clickhouse_url import Address, parse
from inferhub.stores.usage.base import Dimension, Interval, Page, Step, UsageFilter
from inferhub.stores.usage.rows import COLUMNS, from_row, to_row

CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_S = 10.0
ATTEMPTS = 2
"""A server that came back may have left us dead connections."""
IDS_OF_A_LOOKUP = 2000
"""A server takes parameters of up to 128 KiB."""

_DENIED = {192, 193, 194, 497, 516}
_NO_DATABASE = 81


def _percentiles(value: str, condition: str) -> tuple[str, ...]:
    both = f"quantilesTDigestIf(0.5, 0.95)({value}, {condition})"
    return (f"{both}[1]", f"{both}[2]")


def _placeholder(number: int, value: Any) -> str:
    return f"{{p{number}:{'Int64' if isinstance(value, int) else 'String'}}}"


_EVENTS = questions.Dialect(
    placeholder=_placeholder,
    day="toString(toDate(fromUnixTimestamp64Milli(at_ms, 'UTC')))",
    bucket="(intDiv(at_ms, {step}) * {step})",
    costs=("SUM(cost_usd)",),
    # A row that came twice and is not merged yet counts once.
    table="usage_events FINAL",
    percentiles=(
        *_percentiles("latency_ms", "status = 'ok'"),
        *_percentiles("ifNull(first_token_ms, 0)", "status = 'ok' AND first_token_ms IS NOT NULL"),
    ),
)
_VIEWS = {"minute": "usage_by_minute", "hour": "usage_by_hour", "day": "usage_by_hour"}
_VIEW_STEP: dict[Step, Step] = {"minute": "minute", "hour": "hour", "day": "hour"}
_TYPES = {
    "is_stream": "Bool",
    "latency_ms": "Float64",
    "first_token_ms": "Nullable(Float64)",
    "cost_usd": "Decimal(38, 18)",
    **dict.fromkeys(("at_ms", "attempts", "total_tokens", *questions.SUMS), "Int64"),
    **dict.fromkeys(("id", "request_id", "tenant_id", "project_id", "key_id"), "String"),
}
_COLUMN_TYPES = [_TYPES.get(name, "LowCardinality(String)") for name in COLUMNS]

_EVERY_QUERY = {
    "max_execution_time": int(STATEMENT_TIMEOUT_S),
    # An id's month never changes, so partitions need no look at each other.
    "do_not_merge_across_partitions_select_final": 1,
}
_EVERY_INSERT = {
    "async_insert": 0,
    "wait_end_of_query": 1,
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # A backlog, or a clock that was wrong for a while, may reach far.
    "max_partitions_per_insert_block": 0,
}

T = TypeVar("T")


async def open_usage(url: str) -> ClickHouseUsage:
    """Open `clickhouse://…` or `clickhouses://…`, migrated where needed. Raises `SetupError`."""
    address = parse(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S + STATEMENT_TIMEOUT_S):
            client = await _client(address)
            try:
                await _migrate(client, address.where)
            except BaseException:
                await client.close()
                raise
    except (TimeoutError, OSError, ClientError, Error, ValueError) as error:
        raise _unusable(address.where, error) from error
    return ClickHouseUsage(client, address.where)


async def _client(address: Address) -> AsyncClient:
    return await get_async_client(
        interface="https" if address.is_tls else "http",
        host=address.host,
        port=address.port,
        username=address.user,
        password=address.password,
        database=address.database,
        ca_cert=address.ca_file,
        connect_timeout=CONNECT_TIMEOUT_S,
        send_receive_timeout=STATEMENT_TIMEOUT_S,
        connector_limit=8,
        query_retries=0,
        # A session would let one statement at a time through.
        autogenerate_session_id=False,
        # In the body: a thousand ids are too long for an address.
        form_encode_query_params=True,
        client_name="inferhub",
    )


class ClickHouseUsage:
    """A `UsageStore`."""

    def __init__(self, client: AsyncClient, where: str) -> None:
        self._client = client
        self._where = where

    async def write(self, events: Sequence[UsageEvent], *, token: str = "") -> None:
        """One insert, hence one part per month: a batch over the end of a month may be half there while the
        server is down, and is completed when it is tried again."""
        if events:
            rows = {row[0]: row for row in map(to_row, reversed(events))}
            await self._run(lambda: self._write(rows, token))

    async def _write(self, rows: dict[str, list[Any]], token: str) -> None:
        # The events would forget what came twice, their views would not; so it is left out here. Two
        # writers at one moment can still both bring it, and then only the token, or FINAL, tells.
        known = await self._known(list(rows.values()))
        new = [row for id_, row in rows.items() if id_ not in known]
        if not new:
            return
        # Of the content, too: another batch under the same name must never be taken for this one.
        digest = hashlib.sha256(token.encode("utf-8", "replace"))
        digest.update("\n".join(row[0] for row in new).encode())
        await self._client.insert(
            "usage_events",
            list(zip(*new, strict=True)),
            column_names=COLUMNS,
            column_type_names=_COLUMN_TYPES,
            column_oriented=True,
            settings={**_EVERY_INSERT, "insert_deduplication_token": digest.hexdigest()},
        )

    async def _known(self, rows: Sequence[list[Any]]) -> set[str]:
        found: set[str] = set()
        # By time, so that a lookup reads few granules of the primary key.
        ordered = sorted(rows, key=lambda row: row[2])
        for start in range(0, len(ordered), IDS_OF_A_LOOKUP):
            chunk = ordered[start : start + IDS_OF_A_LOOKUP]
            parameters = {
                "tenants": sorted({row[3] for row in chunk}),
                "ids": [row[0] for row in chunk],
                "first": chunk[0][2],
                "last": chunk[-1][2],
            }
            answer = await self._client.query(
                "SELECT id FROM usage_events WHERE tenant_id IN {tenants:Array(String)} "
                "AND at_ms >= {first:Int64} AND at_ms <= {last:Int64} AND id IN {ids:Array(String)}",
                parameters,
                _EVERY_QUERY,
            )
            found.update(row[0] for row in answer.result_rows)
        return found

    async def summary(
        self,
        where: UsageFilter,
        by: Sequence[Dimension],
        *,
        after: tuple[str, ...] | None = None,
        limit: int = 100,
    ) -> Page:
        questions.check_dimensions(by, after)
        questions.check_limit(limit)
        query = questions.Query(_EVENTS)
        found = await self._fetch(query, questions.summary(query, where, by, after, limit))
        return questions.to_page([(*row[:-4], *map(_number, row[-4:])) for row in found], len(by), limit)

    async def events(
        self, where: UsageFilter, *, after: tuple[int, str] | None = None, limit: int = 100
    ) -> tuple[UsageEvent, ...]:
        questions.check_limit(limit)
        query = questions.Query(_EVENTS)
        sql = questions.events(query, where, after, limit, ", ".join(COLUMNS))
        return tuple(map(from_row, await self._fetch(query, sql)))

    async def timeline(
        self, where: UsageFilter, step: Step, *, after_ms: int | None = None, limit: int = 100
    ) -> tuple[Interval, ...]:
        """From the views where they can answer: whole intervals of everybody, a tenant or a model."""
        questions.check_step(step)
        questions.check_limit(limit)
        query = questions.Query(_EVENTS)
        ask = _from_view if _is_of_a_view(where, step) else questions.timeline
        sql = ask(query, where, step, after_ms, limit)
        found = await self._fetch(query, sql)
        return tuple(questions.to_interval((*row[:3], *map(_number, row[3:]))) for row in found)

    async def ping(self) -> None:
        await self._run(lambda: self._client.query("SELECT 1 FROM usage_schema LIMIT 1"))

    async def close(self) -> None:
        try:
            await self._client.close()
        except (OSError, ClientError, Error):
            # It held no more than sockets.
            return

    async def _fetch(self, query: questions.Query, sql: str) -> list[Sequence[Any]]:
        parameters = {f"p{number}": value for number, value in enumerate(query.values, 1)}
        answer = await self._run(lambda: self._client.query(sql, parameters, _EVERY_QUERY))
        return list(answer.result_rows)

    async def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Raises `StoreFailed`. `work` may run twice."""
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT_S):
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        return await work()
                    except (OSError, ClientError, OperationalError) as error:
                        if attempt == ATTEMPTS or getattr(error, "code", None) is not None:
                            raise
        except TimeoutError as error:
            raise StoreFailed(
                f"The usage store {self._where} did not answer in {STATEMENT_TIMEOUT_S:g} s."
            ) from error
        except (OSError, ClientError, Error, ValueError) as error:
            raise StoreFailed(f"The usage store {self._where} failed: {_reason(error)}.") from error
        raise AssertionError


# --- the views -------------------------------------------------------------------------------------


def _is_of_a_view(where: UsageFilter, step: Step) -> bool:
    length = questions.STEP_MS[_VIEW_STEP[step]]
    is_whole = where.from_ms % length == 0 and where.until_ms % length == 0
    return is_whole and where.project_id is None and where.key_id is None and where.modality is None


def _from_view(
    query: questions.Query, where: UsageFilter, step: Step, after_ms: int | None, limit: int
) -> str:
    length = questions.STEP_MS[step]
    bucket = f"(intDiv(bucket_ms, {length}) * {length})"
    terms = query.where(where, "bucket_ms")
    if after_ms is not None:
        terms += f" AND {bucket} > {query.bind(after_ms)}"
    merged = [f"quantilesTDigestIfMerge(0.5, 0.95)({name})" for name in ("latency", "first_token")]
    percentiles = ", ".join(f"{both}[{index}]" for both in merged for index in (1, 2))
    return (
        f"SELECT {bucket}, sum(calls), sum(errors), {percentiles} FROM {_VIEWS[step]} "  # noqa: S608
        f"WHERE {terms} GROUP BY {bucket} ORDER BY {bucket} LIMIT {query.bind(limit)}"
    )


def _number(value: float | None) -> float | None:
    """ClickHouse's percentile of nothing is not a number."""
    return None if value is None or math.isnan(value) else float(value)


# --- opening ---------------------------------------------------------------------------------------


async def _migrate(client: AsyncClient, where: str) -> None:
    """ClickHouse has no lock to hold meanwhile; its files are written so that several processes may run
    them at once, and again after one that was cut off."""
    await client.command(
        "CREATE TABLE IF NOT EXISTS usage_schema (number UInt32, applied_at DateTime DEFAULT now()) "
        "ENGINE = MergeTree ORDER BY number"
    )
    found = await client.query("SELECT max(number) FROM usage_schema")
    for migration in schema.missing("clickhouse", int(found.result_rows[0][0]), where):
        for statement in migration.statements:
            await client.command(statement)
        await client.command("INSERT INTO usage_schema (number) VALUES", data=f"({migration.number})")


def _unusable(where: str, error: BaseException) -> SetupError:
    code = getattr(error, "code", None)
    if code in _DENIED:
        return SetupError(
            f"ClickHouse at {where} refuses the user or password of usage_url, or the user may not make "
            "tables there. Correct them, or grant it.",
            param="usage_url",
        )
    if code == _NO_DATABASE:
        return SetupError(
            f"ClickHouse has no database {where}. Create it, or name another one in usage_url.",
            param="usage_url",
        )
    if code is None:
        return SetupError(
            f"No ClickHouse answers at {where} ({_reason(error)}). Start it, or correct usage_url; the port "
            "is that of the HTTP interface.",
            param="usage_url",
            code="store_unreachable",
        )
    return SetupError(
        f"ClickHouse at {where} cannot hold the usage: {_reason(error)}. Mend that, or change usage_url.",
        param="usage_url",
    )


def _reason(error: BaseException) -> str:
    """ClickHouse's texts repeat the statement; its codes are enough."""
    code, name = getattr(error, "code", None), getattr(error, "name", None)
    if code is None:
        return type(error).__name__
    return f"code {code}{f' {name}' if name else ''}"
