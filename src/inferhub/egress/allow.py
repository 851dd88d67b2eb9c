"""The setting `egress_allow`: which hosts may be reached although they are not public. Pure.

Made by `target.check_url` and the fetcher from the setting's entries; asked about every address before a
connection is opened to it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from inferhub.core.errors import SetupError
from inferhub.egress.addresses import Address, Network, is_own_network, is_public

_MAX_NAME_CHARS = 253
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_ENTRY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([1-9][0-9]{0,4}))?", re.ASCII)
_EXAMPLES = "for example hooks.internal, hooks.internal:8080, 10.1.2.3:8080 or 10.1.0.0/16"


@dataclass(frozen=True, slots=True)
class AllowList:
    """What the operator allows beyond the public internet."""

    networks: tuple[Network, ...]
    hosts: frozenset[tuple[str, int | None]]
    """(name or address, port); None stands for every port."""

    def names(self, host: str, port: int) -> bool:
        return (host, None) in self.hosts or (host, port) in self.hosts

    def names_port(self, host: str, port: int) -> bool:
        """Whether this very port is named, which makes a port below 1024 permissible."""
        return (host, port) in self.hosts

    def permits(self, host: str, address: Address, port: int) -> bool:
        """Whether a connection for `host` may go to `address`."""
        if is_public(address) or any(address in network for network in self.networks):
            return True
        if (str(address), port) in self.hosts:
            return True
        # Whoever answers for an allowed name in the DNS decides which internal host is reached,
        # but cannot turn it into the metadata service.
        return self.names(host, port) and is_own_network(address)


def parse_host(text: str) -> str | Address:
    """A lower-case name, or an address in its one accepted spelling. Raises `ValueError`."""
    if text.startswith("["):
        return IPv6Address(text[1:-1])
    name = text.lower()
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # The C library reads 127.1, 0x7f.1, 017700000001 and 2130706433 as addresses; other readers do not.
        return IPv4Address(name)
    if len(name) > _MAX_NAME_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name")
    return name


@functools.lru_cache(maxsize=16)
def _parse(entries: tuple[str, ...]) -> AllowList:
    networks: list[Network] = []
    hosts: set[tuple[str, int | None]] = set()
    for entry in entries:
        try:
            found = _parse_entry(entry.strip())
        except ValueError as error:
            raise SetupError(
                f"egress_allow: {entry[:100]!r} is no host, address or network. Write {_EXAMPLES}."
            ) from error
        if isinstance(found, tuple):
            hosts.add(found)
        else:
            networks.append(found)
    return AllowList(tuple(networks), frozenset(hosts))


def _parse_entry(text: str) -> Network | tuple[str, int | None]:
    if "/" in text:
        return ip_network(text)
    if text.count(":") > 1 and not text.startswith("["):
        return ip_network(IPv6Address(text))
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise ValueError("unknown form")
    host, port = parse_host(match[1]), int(match[2]) if match[2] else None
    if port is not None and port > 65535:
        raise ValueError("no such port")
    if port is None and not isinstance(host, str):
        return ip_network(host)
    return str(host), port


def parse_allow(entries: Sequence[str]) -> AllowList:
    """Raises `SetupError` that names the wrong entry."""
    return _parse(tuple(entries))


def parse_address(text: str) -> Address:
    """What a resolver answered. Raises `ValueError`."""
    return ip_address(text)
