"""ClickHouse's HTTP interface over its embedded engine (chdb): a server for tests, in a process of its own.

`python -m inferhub.testing.clickhouse_http --port 0 --data DIR` prints `{"url": …}` as its first line; tests
start it with `testing.backing.running_clickhouse`. The engine is the real one; users, sessions' state,
external tables and cancelling a query are not there, and what is not there is refused. Never for production.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import importlib
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

MAX_BODY_BYTES = 128 * 1024 * 1024
"""Of a request, after decompression."""
MAX_RESULT_BYTES = 128 * 1024 * 1024
MAX_QUERIES = 100
"""Running and waiting; as `max_concurrent_queries` of a real server."""
_THREADS = 16
_MAX_LINE_BYTES = 1024 * 1024
_KEEP_ALIVE_S = 10.0
_STOP_GRACE_S = 10.0

_SYNTAX_ERROR, _BAD_ARGUMENTS, _NOT_IMPLEMENTED = 62, 36, 48
_TOO_MANY, _TOO_MUCH, _SESSION_IS_LOCKED = 202, 396, 373
_STATUS = {_SYNTAX_ERROR: 400, _BAD_ARGUMENTS: 400, 47: 404, 60: 404, 81: 404, _NOT_IMPLEMENTED: 501}
"""HTTP status by code of the exception; 500 for all others."""

_NOT_SETTINGS = frozenset(
    {
        "buffer_size",
        "client_protocol_version",
        "database",
        "default_format",
        "enable_http_compression",
        "http_headers_progress_interval_ms",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "send_progress_in_http_headers",
        "session_check",
        "session_id",
        "session_timeout",
        "user",
        "wait_end_of_query",
    }
)
"""Parameters of a request that are no setting of the engine."""

_DATA_INSERT = re.compile(
    rb"""\s*(?P<insert>INSERT\s+INTO\s+(?:TABLE\s+)?(?:`[^`]+`|"[^"]+"|[\w.])+\s*(?:\([^)]*\))?)
    \s*(?P<settings>SETTINGS\s[^;]*?)?\s*\bFORMAT\s+(?P<format>\w+)[ \t;]*(?:\n|$)""",
    re.IGNORECASE | re.VERBOSE,
)
"""An INSERT whose rows follow it; one with VALUES or SELECT is a query like any other."""


class Refused(Exception):
    """Answered with ClickHouse's own words and code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {text}" if not text.startswith("Code:") else text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Statement:
    """What one request asks of the engine."""

    sql: str
    """With `{rows}` for the name of the file of `rows`, where there are rows."""
    output_format: str
    database: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    rows: bytes | None = None
    """Of an INSERT, in the format that it names."""


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    counts: Mapping[str, int]

    def summary(self) -> str:
        """The header `X-ClickHouse-Summary`, whose numbers are strings."""
        return msgspec.json.encode({name: str(count) for name, count in self.counts.items()}).decode()


class Engine:
    """The embedded engine. One per process and data folder; `run` blocks, from any thread."""

    def __init__(self, data_dir: Path) -> None:
        self._connect: Callable[[str], Any] = importlib.import_module("chdb.state.sqlitelike").Connection
        self._path = str(data_dir)
        # The engine lives as long as one connection is open.
        self._root = self._connect(self._path)
        version, self.timezone = self._root.query("SELECT version(), timezone()", "TSV").bytes().split()
        self.version = version.decode()
        self.timezone = self.timezone.decode()

    def close(self) -> None:
        self._root.close()

    def run(self, statement: Statement) -> Answer:
        """Raises `Refused`."""
        try:
            with self._session(statement) as connection:
                if statement.rows is not None:
                    return self._insert(connection, statement, statement.rows)
                return self._query(connection, statement, statement.sql)
        except RuntimeError as error:
            raise self._refused(error) from error

    @contextmanager
    def _session(self, statement: Statement) -> Iterator[Any]:
        """A connection of this request alone (2 ms), so that its database and settings end with it."""
        connection = self._connect(self._path)
        try:
            if statement.database:
                connection.query(f"USE {_quoted(statement.database, '`')}")
            if statement.settings:
                settings = statement.settings.items()
                assignments = ", ".join(f"{_name(name)} = {_quoted(value)}" for name, value in settings)
                connection.query(f"SET {assignments}")
            yield connection
        finally:
            connection.close()

    @staticmethod
    def _query(connection: Any, statement: Statement, sql: str) -> Answer:
        if ";" in sql.rstrip("; \t\r\n"):
            # The embedded engine would run them all; a server refuses, and so does this function.
            connection.query("SELECT formatQuerySingleLine({q:String})", params={"q": _escaped(sql)})
        result = connection.query(sql, statement.output_format, params=dict(statement.parameters))
        if result.size() > MAX_RESULT_BYTES:
            raise Refused(_TOO_MUCH, f"The result is over {MAX_RESULT_BYTES} bytes. (TOO_MANY_ROWS_OR_BYTES)")
        counts = {
            "read_rows": result.storage_rows_read(),
            "read_bytes": result.storage_bytes_read(),
            "written_rows": result.rows_written(),
            "written_bytes": result.bytes_written(),
            "total_rows_to_read": 0,
            "result_rows": result.rows_read(),
            "result_bytes": result.size(),
        }
        return Answer(result.bytes(), counts)

    def _insert(self, connection: Any, statement: Statement, rows: bytes) -> Answer:
        # Not with chdb's `send_insert`: it reports rows as written that a constraint or a view refused.
        with tempfile.NamedTemporaryFile(dir=Path(self._path, "tmp")) as file:
            file.write(rows)
            file.flush()
            return self._query(connection, statement, statement.sql.replace("{rows}", _quoted(file.name)))

    def _refused(self, error: RuntimeError) -> Refused:
        found = re.search(r"Code: (\d+)", str(error))
        text = str(error)[found.start() :] if found else str(error)
        return Refused(int(found[1]) if found else 1000, f"{text.rstrip()} (version {self.version})\n")


def _name(text: str) -> str:
    if not re.fullmatch(r"\w{1,200}", text, re.ASCII):
        raise Refused(_BAD_ARGUMENTS, f"{text[:200]!r} is no name of a setting. (BAD_ARGUMENTS)")
    return text


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def _escaped(text: str) -> str:
    """As parameters of a query travel: tab-separated values."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


# --- HTTP --------------------------------------------------------------------------------------


class Service:
    """Requests in, statements to the engine's threads, answers out; the loop never waits for the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(_THREADS, "query")
        self._sessions: set[str] = set()
        self._queries = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/ping", self._ping)
        app.router.add_route("*", "/", self._answer)
        return app

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _answer(self, request: web.Request) -> web.Response:
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        headers = {"X-ClickHouse-Query-Id": query_id, "X-ClickHouse-Timezone": self._engine.timezone}
        try:
            statement = await read_statement(request)
            with self._turn(request.query.get("session_id")):
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(self._threads, self._engine.run, statement)
        except Refused as error:
            headers["X-ClickHouse-Exception-Code"] = str(error.code)
            return web.Response(status=_STATUS.get(error.code, 500), text=str(error), headers=headers)
        headers["X-ClickHouse-Format"] = statement.output_format
        headers["X-ClickHouse-Summary"] = answer.summary()
        body = answer.body
        encoding = _response_encoding(request)
        if encoding and body:
            headers["Content-Encoding"] = encoding
            body = _COMPRESS[encoding](body)
        return web.Response(body=body, content_type="application/octet-stream", headers=headers)

    @contextmanager
    def _turn(self, session_id: str | None) -> Iterator[None]:
        if self._queries >= MAX_QUERIES:
            raise Refused(_TOO_MANY, "Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)")
        if session_id in self._sessions:
            raise Refused(
                _SESSION_IS_LOCKED,
                f"Session {session_id} is locked by a concurrent client. (SESSION_IS_LOCKED)",
            )
        self._queries += 1
        if session_id:
            self._sessions.add(session_id)
        try:
            yield
        finally:
            self._queries -= 1
            self._sessions.discard(session_id or "")


async def read_statement(request: web.Request) -> Statement:
    """Raises `Refused`, and aiohttp's 413 for a body over the limit."""
    fields = {**_from_headers(request), **request.query}
    if request.content_type == "multipart/form-data":
        fields |= await _form_fields(request)
        body = b""
    else:
        body = await _body(request)
    if fields.get("compress") == "1" or fields.get("decompress") == "1":
        raise Refused(_NOT_IMPLEMENTED, "compress and decompress are not served here. (NOT_IMPLEMENTED)")
    settings = {
        name: value
        for name, value in fields.items()
        if name not in _NOT_SETTINGS and not name.startswith("param_")
    }
    if request.method == "GET":
        settings["readonly"] = "2"
    query = fields.get("query", "").encode()
    # A server reads its query from the parameter, and goes on with the body as if it were one text.
    text = query + b"\n" + body if query and body else query or body
    found = _DATA_INSERT.match(text)
    if found:
        source = b" FROM INFILE {rows} COMPRESSION 'none' "
        text = found["insert"] + source + (found["settings"] or b"") + b" FORMAT " + found["format"]
    try:
        sql = text.decode()
    except UnicodeDecodeError as error:
        raise Refused(_SYNTAX_ERROR, "Syntax error: the query is not UTF-8. (SYNTAX_ERROR)") from error
    return Statement(
        sql=sql,
        output_format=fields.get("default_format", "TabSeparated"),
        database=fields.get("database"),
        settings=settings,
        parameters={name[6:]: value for name, value in fields.items() if name.startswith("param_")},
        rows=found.string[found.end() :] if found else None,
    )


def _from_headers(request: web.Request) -> dict[str, str]:
    names = {"X-ClickHouse-Format": "default_format", "X-ClickHouse-Database": "database"}
    return {target: request.headers[name] for name, target in names.items() if name in request.headers}


async def _form_fields(request: web.Request) -> dict[str, str]:
    form = await request.post()
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    if len(fields) != len(form):
        raise Refused(_NOT_IMPLEMENTED, "External tables are not served here. (NOT_IMPLEMENTED)")
    return fields


async def _body(request: web.Request) -> bytes:
    """Decompressed. aiohttp did so itself, unless it is lz4."""
    body = await request.read()
    if request.headers.get("Content-Encoding") != "lz4" or not body:
        return body
    decompressor = importlib.import_module("lz4.frame").LZ4FrameDecompressor()
    try:
        plain: bytes = decompressor.decompress(body, max_length=MAX_BODY_BYTES + 1)
    except RuntimeError as error:
        raise Refused(_BAD_ARGUMENTS, f"The body is no lz4: {error}. (BAD_ARGUMENTS)") from error
    if len(plain) > MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(plain))
    if not decompressor.eof:
        raise Refused(_BAD_ARGUMENTS, "The body is no whole lz4 frame. (BAD_ARGUMENTS)")
    return plain


def _compress_with(module: str) -> Callable[[bytes], bytes]:
    """Loaded when first used: only the dev group has them."""
    return lambda body: bytes(importlib.import_module(module).compress(body))


_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "lz4": _compress_with("lz4.frame"),
    "zstd": _compress_with(_ZSTD),
    "gzip": gzip.compress,
}


def _response_encoding(request: web.Request) -> str | None:
    """The first one the client names, if it asked for compression at all."""
    if request.query.get("enable_http_compression") != "1":
        return None
    wanted = request.headers.get("Accept-Encoding", "").split(",")
    return next((name.strip() for name in wanted if name.strip() in _COMPRESS), None)


# --- the process -------------------------------------------------------------------------------


async def serve(port: int, data_dir: Path, *, until_eof: bool) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input ends; running queries are answered first."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        # The parent holds our standard input: when it dies, so do we.
        loop.add_reader(sys.stdin.fileno(), stop.set)
    engine = Engine(data_dir)
    runner = web.AppRunner(
        Service(engine).app(),
        access_log=None,
        keepalive_timeout=_KEEP_ALIVE_S,
        max_line_size=_MAX_LINE_BYTES,
        shutdown_timeout=_STOP_GRACE_S,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    host, bound = runner.addresses[0][:2]
    sys.stdout.write(f'{{"url":"http://{host}:{bound}"}}\n')
    sys.stdout.flush()
    await stop.wait()
    await runner.cleanup()
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inferhub.testing.clickhouse_http", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the tables; one process at a time"
    )
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    options = parser.parse_args()
    # Before the engine reads it: tests see the same days everywhere.
    os.environ["TZ"] = "UTC"
    time.tzset()
    asyncio.run(serve(options.port, options.data, until_eof=options.until_eof))
    # A query that outlived the grace runs in a thread that nothing can end.
    os._exit(0)


if __name__ == "__main__":
    main()
