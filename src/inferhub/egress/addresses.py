"""Which IP addresses anyone may be made to call. Pure tables and look-ups.

Read by `allow`. The tables are our own: what the standard library calls global changes between Python
versions and contains multicast, 6to4 and addresses that carry a private IPv4 address inside.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and metadata services
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform services: a public number that never leaves the machine
        "169.254.0.0/16",  # link-local, and metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, and metadata services
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, retired
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_ALLOCATED_V6 = IPv6Network("2000::/3")
"""The only part of IPv6 that is given out for public unicast. Outside of it lie loopback, link-local,
site-local, unique-local, multicast and every mapped or compatible form of an IPv4 address."""
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: any IPv4 address, private ones too
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP_INTERFACES = frozenset({0x0000_5EFE, 0x0200_5EFE})

_OWN_NETWORKS: tuple[Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("127.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("::1/128"),
    IPv6Network("fc00::/7"),
)


def is_public(address: Address) -> bool:
    """Whether it belongs to the public internet beyond doubt."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address.scope_id is not None:
        return False
    number = int(address)
    if address in _NAT64:
        # What an IPv6-only network is told for every host that has IPv4 only.
        return is_public(IPv4Address(number & 0xFFFF_FFFF))
    if number >> 32 & 0xFFFF_FFFF in _ISATAP_INTERFACES:
        return False
    return address in _ALLOCATED_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def is_own_network(address: Address) -> bool:
    """Whether an internal service may live there. Link-local is not among them: that is where metadata
    services hand out credentials."""
    return any(address in network for network in _OWN_NETWORKS)
