"""Reads Kafka's URL. Pure; for `kafka`, whose messages name `Address.where` and never the URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from inferhub.core.errors import SetupError
from inferhub.settings.nearest import did_you_mean

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,200}")
_SASL = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_COMPRESSIONS = ("none", "gzip", "lz4", "zstd", "snappy")
_OPTIONS = (
    "prefix", "create", "partitions", "replication", "compression",
    "sasl", "tls", "ca_file", "cert_file", "key_file",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    hosts: tuple[str, ...]
    prefix: str = ""
    creates_topics: bool = True
    partitions: int = 6
    replication: int = 1
    compression: str | None = None
    is_tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    sasl: str | None = None
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        return ",".join(self.hosts)


def parse(url: str) -> Address:
    """Raises `SetupError`, which does not repeat what may hold a password."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _malformed() from None
    account, _, hosts = parts.netloc.rpartition("@")
    options = dict(pairs)
    matches = [_HOST.fullmatch(host) for host in hosts.split(",")]
    if (
        parts.scheme != "kafka"
        or parts.path.strip("/")
        or not all(m and 0 < int(m[2]) < 65536 for m in matches)
    ):
        raise _malformed()
    for name in options:
        if name not in _OPTIONS:
            raise _wrong(f"has no option {name[:40]!r}.{did_you_mean(name, _OPTIONS)}")
    user, _, password = account.partition(":")
    compression = _choice(options, "compression", "none", _COMPRESSIONS)
    return Address(
        hosts=tuple(hosts.split(",")),
        prefix=_prefix(options.get("prefix", "")),
        creates_topics=_flag(options, "create", default=True),
        partitions=_count(options, "partitions", 6, 10_000),
        replication=_count(options, "replication", 1, 100),
        compression=None if compression == "none" else compression,
        is_tls=_flag(options, "tls", default=False),
        ca_file=options.get("ca_file"),
        cert_file=options.get("cert_file"),
        key_file=options.get("key_file"),
        sasl=_choice(options, "sasl", "PLAIN", _SASL) if account else None,
        user=unquote(user) if account else None,
        password=unquote(password) if account else None,
    )


def _choice(options: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = options.get(name, default)
    if value not in allowed:
        raise _wrong(f"option {name} is one of {', '.join(allowed)}.")
    return value


def _flag(options: Mapping[str, str], name: str, *, default: bool) -> bool:
    return _choice(options, name, "true" if default else "false", ("true", "false")) == "true"


def _count(options: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = options.get(name, str(default))
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        raise _wrong(f"option {name} is a number from 1 to {most}.")
    return int(text)


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise _wrong("option prefix may have letters, digits, dots, dashes and underscores.")
    return text


def _malformed() -> SetupError:
    return _wrong("is no Kafka URL; write kafka://HOST:PORT[,HOST:PORT][?OPTION=VALUE].")


def _wrong(what: str) -> SetupError:
    return SetupError(f"events_url {what}", param="events_url")
