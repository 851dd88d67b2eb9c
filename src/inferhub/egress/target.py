"""Reads a URL that someone else wrote, once and strictly; what two readers could read differently is refused.

Called by the fetcher for every URL and every redirect, and by whoever stores a URL for later. Pure: it asks
no DNS. A message names the host at most, because paths and queries of webhooks are secrets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urljoin

from inferhub.core.errors import EgressRefused
from inferhub.egress.allow import AllowList, parse_allow, parse_host

MAX_URL_CHARS = 4096
_DEFAULT_PORTS = {"http": 80, "https": 443}
# RFC 3986, so without the backslash, spaces and quotes that browsers mend. [ ] | are usual in queries.
_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~:/?@!$&'()*+,;=\[\]|-]|%[0-9A-Fa-f]{2})+", re.ASCII)
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-F:.]+\]|[A-Z0-9._-]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/[^?]*)?(?P<query>\?.*)?",
    re.ASCII | re.IGNORECASE,
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.ASCII | re.IGNORECASE)
_INSIDE_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")
_HINT = "An operator can allow an internal host with the setting egress_allow."


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts. Nothing reads the text again."""

    scheme: str
    host: str
    """A lower-case name, or an address without brackets."""
    port: int
    path_and_query: str = field(repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def shown(self) -> str:
        """What messages and logs may say of it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (
            f":{self.port}" if self.port != _DEFAULT_PORTS[self.scheme] else ""
        )

    @property
    def url(self) -> str:
        return self.shown + self.path_and_query


def check_url(url: str, allow: Sequence[str] = (), *, param: str | None = None) -> Target:
    """The parts of an acceptable URL. Raises `EgressRefused` for what can be refused without asking the DNS.

    A name passes here and may still be refused when it is fetched, because of where it leads.
    """
    try:
        return read_url(url, parse_allow(allow))
    except EgressRefused as error:
        error.param = param
        raise


def read_url(url: str, allow: AllowList) -> Target:
    _check_characters(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise EgressRefused(_why_unreadable(url))
    scheme = match["scheme"].lower()
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    try:
        host = parse_host(match["host"])
    except ValueError:
        raise EgressRefused(
            "The URL's host is neither a name nor an address in its usual spelling, "
            "such as hooks.example.com, 192.0.2.1 or [2001:db8::1]."
        ) from None
    if not isinstance(host, str):
        if not allow.permits(str(host), host, port):
            raise EgressRefused(f"The URL's host is not a public address. {_HINT}")
    elif _is_inside_name(host) and not allow.names(host, port):
        raise EgressRefused(f"The URL's host is a name of the inside of a network. {_HINT}")
    if not _is_usual_port(port) and not allow.names_port(str(host), port):
        raise EgressRefused("The URL's port is neither 80, nor 443, nor between 1024 and 65535.")
    return Target(scheme, str(host), port, (match["path"] or "/") + (match["query"] or ""))


def read_redirect(origin: Target, location: str, allow: AllowList) -> Target:
    """Where a `Location` header leads, held to the same rules as a first URL."""
    location = location.partition("#")[0]
    _check_characters(location)
    if _SCHEME.match(location):
        target = read_url(location, allow)
    elif location.startswith("//"):
        target = read_url(f"{origin.scheme}:{location}", allow)
    else:
        # Joined, then read by the same reader: what a second parser makes of it decides nothing.
        target = read_url(urljoin(origin.url, location), allow)
    if origin.scheme == "https" and target.scheme == "http":
        raise EgressRefused(f"{origin.shown} redirects from https to http.")
    return target


def _check_characters(url: str) -> None:
    if len(url) > MAX_URL_CHARS:
        raise EgressRefused(f"The URL has more than {MAX_URL_CHARS} characters.")
    if not url.isascii():
        raise EgressRefused(
            "The URL has characters outside of ASCII; write the host in its xn-- form and the rest in %XX."
        )
    if "#" in url:
        raise EgressRefused("The URL has a fragment (#), which is never sent; leave it out.")
    if not _CHARACTERS.fullmatch(url):
        raise EgressRefused("The URL is empty or has characters that a URL may only contain as %XX.")


def _why_unreadable(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORTS:
        return "Only URLs that begin with http:// or https:// are fetched."
    if "@" in re.split(r"[/?]", rest, maxsplit=1)[0]:
        return "The URL has a user name or password in front of its host; leave it out."
    return "The URL is not of the form https://HOST[:PORT]/PATH."


def _is_inside_name(name: str) -> bool:
    """Dotless names are completed with the search domains of this machine."""
    return "." not in name or any(name == inside or name.endswith("." + inside) for inside in _INSIDE_NAMES)


def _is_usual_port(port: int) -> bool:
    return port in _DEFAULT_PORTS.values() or 1024 <= port <= 65535
