"""Real servers for every test that asks for one: started on first use, once per session, stopped at its end.

Shared: a test takes `fresh()` for itself, and one that kills or freezes a server starts its own with `running_…`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from inferhub.testing.backing import (
    Backing,
    ClickHouse,
    Kafka,
    Postgres,
    Seaweed,
    Valkey,
    running_clickhouse,
    running_kafka,
    running_postgres,
    running_seaweed,
    running_valkey,
)

# How long one example takes says something of the machine and nothing of the code.
settings.register_profile("inferhub", deadline=None)
settings.load_profile("inferhub")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with running_kafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    with running_clickhouse(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows what its servers said last."""
    outcome = yield
    report = outcome.get_result()
    for server in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(server, Backing):
            report.sections.append((f"end of what {server.name} said", server.words()))
