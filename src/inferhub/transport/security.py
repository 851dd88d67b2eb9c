"""Who may speak gRPC to a worker or an orchestrator: a join token, mutual TLS, or both.

Both sides of both services are made with these credentials. Sockets of one machine's own processes need none.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
from cryptography import x509

from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from inferhub.settings.fleet import FleetSettings

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often the files of certificates are looked at, at most."""

_Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: this process's certificate, its key, and the authority that signed everybody's."""

    cert: Path
    key: Path
    ca: Path

    def read(self) -> Pem:
        """Raises `SetupError` naming the file that is missing, unreadable or does not fit."""
        parts = tuple(_read(path) for path in (self.cert, self.key, self.ca))
        self._check_pair()
        self._check_time(parts[0])
        return Pem(*parts)

    def stamp(self) -> _Stamp:
        """Changes when a file does; () while one cannot be read."""
        try:
            found = [path.stat() for path in (self.cert, self.key, self.ca)]
        except OSError:
            return ()
        return tuple((stat.st_mtime_ns, stat.st_size) for stat in found)

    def _check_pair(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password an encrypted key would make OpenSSL ask the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            raise SetupError(
                f"{self.cert} and {self.key} are not a certificate and its (unencrypted) key in PEM: "
                f"{error.reason or 'not readable'}.",
                param="fleet_key_file",
            ) from error
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise SetupError(f"{self.ca} holds no certificate in PEM.", param="fleet_ca_file") from error

    def _check_time(self, cert: bytes) -> None:
        ends = x509.load_pem_x509_certificate(cert).not_valid_after_utc
        if ends <= datetime.now(UTC):
            raise SetupError(
                f"The certificate in {self.cert} expired at {ends:%Y-%m-%d %H:%M} UTC; put a new one there.",
                param="fleet_cert_file",
            )


@dataclass(frozen=True, slots=True)
class Pem:
    """What was in the files of a `Tls`."""

    cert: bytes
    key: bytes = field(repr=False)
    ca: bytes = field(repr=False)

    def for_client(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)

    def for_server(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.ca)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one process shows, and asks others to show."""

    token: str | None = field(default=None, repr=False)
    """The shared secret that every call carries."""
    tls: Tls | None = None
    """Where set, both sides show a certificate of the same authority."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def check_exposed(self, listen: str) -> None:
        """Raises `SetupError` where other machines reach `listen` and nothing is asked of them."""
        if self.token or self.tls or is_private(listen):
            return
        raise SetupError(
            f"Everybody who reaches {listen} could run models here, read the vendors' keys that gateways "
            "send, and answer other people's requests. Set the same `worker_token_file` on every machine, or "
            "`fleet_cert_file`, `fleet_key_file` and `fleet_ca_file`, or listen on 127.0.0.1.",
            param="listen",
        )


def tls_of(settings: FleetSettings) -> Tls | None:
    """All three files, or none; the settings are checked for that."""
    cert, key, ca = settings.fleet_cert_file, settings.fleet_key_file, settings.fleet_ca_file
    return Tls(cert, key, ca) if cert and key and ca else None


def is_private(address: str) -> bool:
    """Whether only processes of this machine reach it."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]").casefold()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Asks every client for a certificate. Renewed files are taken up at the next handshake."""
    return grpc.dynamic_ssl_server_credentials(
        tls.read().for_server(), cast("Any", _Renewed(tls).fetch), require_client_authentication=True
    )


class _Renewed:
    """Called by gRPC's own threads before each handshake, so it must neither raise nor take long."""

    def __init__(self, tls: Tls, now_s: Callable[[], float] = time.monotonic) -> None:
        self._tls = tls
        self._now_s = now_s
        self._stamp = tls.stamp()
        self._next_s = 0.0

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        if self._now_s() < self._next_s:
            return None
        self._next_s = self._now_s() + LOOK_EVERY_S
        stamp = self._tls.stamp()
        if not stamp or stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            renewed = self._tls.read().for_server()
        except Exception as error:
            # Half-written files are no reason to refuse everybody.
            _log.error("The certificate that was there before stays in use: %s", error)
            return None
        _log.info("Certificate %s was renewed", self._tls.cert)
        return renewed


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"Cannot read {path}: {error.strerror}.") from error
