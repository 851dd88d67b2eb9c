"""The real servers behind InferHub's stores, from wheels: PostgreSQL, Valkey, ClickHouse, Kafka's and S3's.

For tests, also those of plug-in authors: `with running_postgres(folder) as postgres:` gives `postgres.url`
and the faults of `Backing`. Imports none of the servers' packages; it only finds their files.
"""

from __future__ import annotations

from inferhub.testing.backing.base import Backing
from inferhub.testing.backing.clickhouse import ClickHouse, running_clickhouse
from inferhub.testing.backing.kafka import Kafka, running_kafka
from inferhub.testing.backing.postgres import Postgres, running_postgres
from inferhub.testing.backing.seaweed import Seaweed, running_seaweed
from inferhub.testing.backing.valkey import Valkey, running_valkey

__all__ = [
    "Backing",
    "ClickHouse",
    "Kafka",
    "Postgres",
    "Seaweed",
    "Valkey",
    "running_clickhouse",
    "running_kafka",
    "running_postgres",
    "running_seaweed",
    "running_valkey",
]
