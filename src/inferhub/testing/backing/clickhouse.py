"""ClickHouse's engine of the wheel `chdb`, behind `testing.clickhouse_http`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path

from inferhub.testing.backing.base import HOST, PROBE_TIMEOUT_S, Backing, find_package
from inferhub.testing.servers import fetch


@contextmanager
def running_clickhouse(folder: Path) -> Iterator[ClickHouse]:
    """A ClickHouse whose answered inserts outlive `kill`."""
    with ClickHouse(folder) as clickhouse:
        yield clickhouse


class ClickHouse(Backing):
    name = "clickhouse"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._numbers = count(1)

    @property
    def url(self) -> str:
        return f"clickhouse://{HOST}:{self.port}/default"

    @property
    def http_url(self) -> str:
        """Of its HTTP interface."""
        return f"http://{HOST}:{self.port}"

    def fresh(self) -> str:
        """A new database."""
        name = f"fresh_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"clickhouse://{HOST}:{self.port}/{name}"

    def execute(self, sql: str, timeout_s: float = 60.0) -> bytes:
        """The answer to a statement, as tab-separated values. Raises `AssertionError` with the error."""
        connection = HTTPConnection(HOST, self.port, timeout=timeout_s)
        with closing(connection):
            connection.request("POST", "/", sql.encode())
            response = connection.getresponse()
            answer = response.read()
        assert response.status == 200, answer.decode(errors="replace")
        return answer

    def _prepare(self) -> None:
        find_package("chdb", "chdb")
        self._data_dir = self.folder / "clickhouse-data"
        self._data_dir.mkdir(exist_ok=True)

    def _arguments(self) -> Sequence[str]:
        options = ["--port", str(self.port), "--data", str(self._data_dir), "--until-eof"]
        return [sys.executable, "-m", "inferhub.testing.clickhouse_http", *options]

    def _answers(self) -> bool:
        return fetch(f"{self.http_url}/ping", timeout_s=PROBE_TIMEOUT_S) == (200, b"Ok.\n")
