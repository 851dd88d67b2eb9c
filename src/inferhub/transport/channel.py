"""A gRPC connection to a worker or an orchestrator; here, and only here, gRPC's exceptions become ours.

`grpc` and `control` dial with it. It sends nothing by itself and tries nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from inferhub.core.errors import (
    DeadlineExceeded,
    EndpointLost,
    InferHubError,
    Overloaded,
    SetupError,
    TooLarge,
    UpstreamFailed,
)
from inferhub.transport.security import LOOK_EVERY_S, Credentials, Tls

_log = logging.getLogger(__name__)
_VERIFY_FAILED = re.compile(r"(?:CERTIFICATE_VERIFY_FAILED|BAD_SIGNATURE): ([a-z -]+)")

Option = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost; the same on both sides."""

    max_message_bytes: int = 64 * 1024 * 1024
    max_calls: int = 4096
    """RPCs that one server answers at a time."""
    status_timeout_s: float = 5.0
    load_timeout_s: float = 1800.0
    unload_timeout_s: float = 60.0
    control_timeout_s: float = 2.0
    """Of a heartbeat and its like: an orchestrator that takes longer is left for the next one."""
    silence_s: float = 6.0
    """Who follows an orchestrator and hears nothing for so long asks the next one."""
    max_watchers: int = 512
    """Gateways that one orchestrator tells who is there."""


DEFAULT_LIMITS = Limits()


def shared_options(limits: Limits) -> list[Option]:
    """Both sides take the same keepalive: a server that expects fewer pings hangs up (`too_many_pings`)."""
    return [
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


class Line:
    """The connection to one peer, and the stub that speaks over it. Make it in the loop that will use it.

    It is opened anew when this process's certificate was renewed; calls under way stay where they are.
    """

    def __init__(
        self, target: str, stub: Callable[[grpc.aio.Channel], Any], credentials: Credentials, limits: Limits
    ) -> None:
        """Raises `SetupError` for certificates that do not fit."""
        asyncio.get_running_loop()  # gRPC would silently bind the channel to a loop that never runs.
        self.metadata = credentials.metadata
        self._target, self._make_stub, self._limits = target, stub, limits
        self._tls = None if target.startswith("unix:") else credentials.tls
        self._stamp = self._tls.stamp() if self._tls else ()
        self._look_s = time.monotonic() + LOOK_EVERY_S
        self._old: set[asyncio.Task[None]] = set()
        self._open()

    @property
    def stub(self) -> Any:
        if self._tls is not None and time.monotonic() >= self._look_s:
            self._renew(self._tls)
        return self._stub

    async def close(self) -> None:
        """Hang up; calls under way end as `EndpointLost`."""
        for task in self._old:
            task.cancel()
        await self._channel.close()

    def _open(self) -> None:
        options = [
            *shared_options(self._limits),
            # Retries belong to the pipeline. Without a policy this only sends again what a server that was
            # closing the connection has not even looked at; nobody else can know that.
            ("grpc.enable_retries", 1),
            ("grpc.service_config_disable_resolution", 1),
            # A worker is a neighbour, not behind a web proxy.
            ("grpc.enable_http_proxy", 0),
            # A worker that comes back is found soon, and one client's back-off is not another's.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._tls is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=options)
        else:
            shown = self._tls.read().for_client()
            self._channel = grpc.aio.secure_channel(self._target, shown, options=options)
        self._stub = self._make_stub(self._channel)

    def _renew(self, tls: Tls) -> None:
        self._look_s = time.monotonic() + LOOK_EVERY_S
        stamp = tls.stamp()
        if not stamp or stamp == self._stamp:
            return
        self._stamp = stamp
        old = self._channel
        try:
            self._open()
        except SetupError as error:
            _log.error("The certificate that was there before stays in use: %s", error)
            return
        closing = asyncio.get_running_loop().create_task(old.close(self._limits.load_timeout_s))
        self._old.add(closing)
        closing.add_done_callback(self._old.discard)


def begin(method: Callable[..., Any], request: Any, where: str, **how: Any) -> Any:
    """An RPC that is under way."""
    try:
        return method(request, **how)
    except grpc.aio.UsageError as error:
        raise EndpointLost(f"The connection to {where.lower()} is closed.") from error


def jittered(pause_s: float) -> float:
    """Somewhere below it, so that many who lost one peer do not come back in step."""
    return random.uniform(0.5, 1) * pause_s  # noqa: S311 - no secret


async def translated(asked: Awaitable[Any], where: str, refused: type[InferHubError] = SetupError) -> Any:
    """Await gRPC and let nothing foreign through. A client cannot mend a set-up, so calls pass `refused`."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        return await asked
    except grpc.aio.AioRpcError as error:
        raise _ours(error, where, refused) from error
    except asyncio.CancelledError as error:
        # A channel that is closed cancels its calls, which must not look like a cancelled task.
        if task and task.cancelling() == cancels:
            raise EndpointLost(f"The connection to {where.lower()} was closed.") from error
        raise


def _ours(error: grpc.aio.AioRpcError, where: str, refused: type[InferHubError]) -> InferHubError:
    """gRPC's details name addresses, so they stay in the chained exception, for the log."""
    details = error.details() or ""
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if why := _distrust(details):
            return refused(f"{where} and this process do not trust each other: {why}.")
        case grpc.StatusCode.UNAVAILABLE if "failed to connect" in details and "Socket closed" in details:
            # It may also just have died; but this is all that a refused certificate looks like from here.
            return EndpointLost(
                f"{where} hung up before it was asked anything: either it is stopping, or only one side has "
                "`fleet_cert_file`, or it does not accept this one."
            )
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return EndpointLost(f"{where} cannot be reached or died.")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{where} did not answer before the deadline.")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in details:
                return TooLarge(f"The request is larger than a message to {where.lower()} may be.")
            return Overloaded(f"{where} answers as many calls as it may.", retry_after_s=1.0)
        case grpc.StatusCode.UNAUTHENTICATED:
            return refused(f"{where} refused the join token; both sides need the same token file.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return refused(f"{where} speaks another version of this protocol; use the same release.")
    return UpstreamFailed(f"{where} failed in a way that it cannot explain ({error.code().name}).")


def _distrust(details: str) -> str | None:
    """Why the two sides could not agree on TLS, without an address."""
    if "WRONG_VERSION_NUMBER" in details:
        return "it speaks no TLS, so it has no `fleet_cert_file`"
    if "Hostname Verification" in details:
        return "its certificate is for another host name"
    if found := _VERIFY_FAILED.search(details):
        return f"its certificate is refused ({found[1]})"
    return "the TLS handshake failed" if "handshake failed" in details.casefold() else None
