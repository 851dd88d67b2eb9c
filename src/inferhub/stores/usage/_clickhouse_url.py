"""Reads ClickHouse's URL. Pure; for `clickhouse`, whose messages name `Address.where` and never the URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from inferhub.core.errors import SetupError

_PORTS = {"clickhouse": 8123, "clickhouses": 8443}


@dataclass(frozen=True, slots=True)
class Address:
    is_tls: bool
    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    ca_file: str | None = None

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


def parse(url: str) -> Address:
    """Raises `SetupError`, which does not repeat what may hold a password."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        ca_file = options.pop("ca_file", None)
        if parts.scheme not in _PORTS or not parts.hostname or options:
            raise ValueError
        return Address(
            is_tls=parts.scheme == "clickhouses",
            host=parts.hostname,
            port=parts.port or _PORTS[parts.scheme],
            database=unquote(parts.path.lstrip("/")) or "default",
            user=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            ca_file=ca_file,
        )
    except ValueError:
        raise SetupError(
            "usage_url is no ClickHouse URL; write clickhouse://USER:PASSWORD@HOST:PORT/DATABASE, or "
            "clickhouses:// for TLS, where ?ca_file=PATH names the authority to trust.",
            param="usage_url",
        ) from None
