"""An orchestrator reached by gRPC: `ControlPlane` for the workers and gateways of other processes.

Assembly makes one per process. It asks the orchestrator that answered last, then the others; what it
showed of the fleet stays as it was while none answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

from inferhub.core.errors import (
    DeadlineExceeded,
    Draining,
    EndpointLost,
    InferHubError,
    Overloaded,
    SetupError,
)
from inferhub.core.fleet import Deployment, FleetView, Lease, Progress
from inferhub.core.serving import Beat, WorkerStatus
from inferhub.transport import codec as wire
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import orchestrator_pb2 as pb
from inferhub.transport._pb.orchestrator_pb2_grpc import OrchestratorStub
from inferhub.transport.channel import DEFAULT_LIMITS, Limits, Line, begin, jittered, translated
from inferhub.transport.codec_views import ViewReader
from inferhub.transport.control_server import PROTOCOL
from inferhub.transport.security import Credentials, Tls

_log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 0.5
"""Little: one that was restarted is to be found at once, and a refused connection costs next to nothing."""
FIRST_WANT_PAUSE_S = 2.0
LONGEST_WANT_PAUSE_S = 30.0
HOLD_AFTER_LEASE_S = 2.0

_LOST = (DeadlineExceeded, EndpointLost)
_ELSEWHERE = (Draining, Overloaded)
"""Answers for which the next orchestrator is asked."""


class ControlClient:
    """A client of one orchestrator, or of several that share their state. Make it inside the event loop."""

    def __init__(
        self,
        targets: Sequence[str],
        *,
        token: str | None = None,
        tls: Tls | None = None,
        limits: Limits = DEFAULT_LIMITS,
        lease_s: float = 5.0,
    ) -> None:
        """`lease_s`: how long an orchestrator that was restarted may take to hear from every worker again."""
        if not targets:
            raise SetupError("No orchestrator is named: --orchestrator HOST:PORT.", param="orchestrator")
        credentials = Credentials(token, tls)
        self._limits = limits
        self._hold_s = lease_s + HOLD_AFTER_LEASE_S
        self._orchestrators = [_Orchestrator(t, credentials, limits) for t in dict.fromkeys(targets)]
        self._current = 0
        self._wanted: dict[str, tuple[Deployment, ...]] = {}
        self._renewing: dict[str, tuple[_Orchestrator, asyncio.Task[None]]] = {}
        self._streams: Counter[str] = Counter()
        """That are open, by holder."""

    # --- for workers ---------------------------------------------------------------------------

    async def register(self, worker: WorkerStatus) -> Lease:
        request = pb.RegisterRequest(protocol=PROTOCOL, worker=nouns.encode_worker(worker))
        reply = await self._ask(lambda o: o.line.stub.Register, request)
        return Lease(reply.heartbeat_s, reply.lease_s)

    async def heartbeat(self, beat: Beat) -> None:
        await self._ask(lambda o: o.line.stub.Heartbeat, pb.HeartbeatRequest(beat=nouns.encode_beat(beat)))

    async def leave(self, id: str, incarnation: int) -> None:  # noqa: A002
        await self._ask(lambda o: o.line.stub.Leave, pb.LeaveRequest(id=id, incarnation=incarnation))

    # --- for gateways --------------------------------------------------------------------------

    async def want(
        self, holder: str, deployments: Sequence[Deployment], on_progress: Progress = lambda _: None
    ) -> None:
        # An older one must not arrive behind this one.
        self._stop_renewing(holder)
        request = pb.WantRequest(holder=holder, deployments=nouns.encode_deployments(deployments))
        if _names(deployments) <= _names(self._wanted.get(holder, ())):
            # Nothing new, so nothing that could not be had: it holds although nobody may hear it now.
            self._wanted[holder] = tuple(deployments)
        try:
            await self._somewhere(lambda orchestrator: self._want(orchestrator, request, on_progress))
        except InferHubError:
            if self._streams[holder]:
                self._renew_want(self._orchestrators[self._current], holder)
            raise
        # Not earlier: what could not be had is not what this gateway serves.
        self._wanted[holder] = tuple(deployments)

    async def watch(self, holder: str) -> AsyncGenerator[FleetView, None]:
        """Goes on over any outage, and shows then what it showed before."""
        reader = ViewReader(self._hold_s)
        outage = _Outage()
        self._streams[holder] += 1
        try:
            while True:
                orchestrator = self._orchestrators[self._current]
                try:
                    async with aclosing(self._follow(orchestrator, holder, reader, outage)) as views:
                        async for view in views:
                            yield view
                except (InferHubError, ValueError) as error:
                    self._leave_for_next(orchestrator)
                    await outage.pause(orchestrator.target, error, of=len(self._orchestrators))
        finally:
            self._streams[holder] -= 1
            if not self._streams[holder]:
                del self._streams[holder]
                self._stop_renewing(holder)

    async def close(self) -> None:
        for holder in list(self._renewing):
            self._stop_renewing(holder)
        for orchestrator in self._orchestrators:
            await orchestrator.line.close()

    async def _follow(
        self, orchestrator: _Orchestrator, holder: str, reader: ViewReader, outage: _Outage
    ) -> AsyncGenerator[FleetView, None]:
        """One stream, until it breaks; raises then."""
        reader.begin()
        is_first = True
        request = pb.WatchRequest(holder=holder)
        rpc = begin(
            orchestrator.line.stub.Watch, request, orchestrator.where, metadata=orchestrator.line.metadata
        )
        try:
            steps = aiter(rpc)
            while True:
                step = await self._next(steps, orchestrator)
                if step is None:
                    raise EndpointLost(f"{orchestrator.where} stopped.")
                view = reader.take(_checked(step), time.monotonic())
                outage.over(orchestrator.target)
                if is_first:
                    # Not before it answers: in an outage that would fail beside each try of this stream.
                    is_first = False
                    self._renew_want(orchestrator, holder)
                if view is not None:
                    yield view
        finally:
            rpc.cancel()

    def _renew_want(self, orchestrator: _Orchestrator, holder: str) -> None:
        """The orchestrator may have been restarted and know of no want: say it again, beside the watch."""
        to, task = self._renewing.get(holder, (None, None))
        if to is orchestrator and task is not None and not task.done():
            return
        self._stop_renewing(holder)
        if (deployments := self._wanted.get(holder)) is None:
            return
        request = pb.WantRequest(holder=holder, deployments=nouns.encode_deployments(deployments))
        renewing = asyncio.create_task(self._say_again(orchestrator, request))
        self._renewing[holder] = orchestrator, renewing

    def _stop_renewing(self, holder: str) -> None:
        if found := self._renewing.pop(holder, None):
            found[1].cancel()

    async def _say_again(self, orchestrator: _Orchestrator, request: pb.WantRequest) -> None:
        pause_s = FIRST_WANT_PAUSE_S
        said = ""
        while True:
            try:
                _checked(await self._want(orchestrator, request, lambda _: None))
                break
            except _LOST:
                pass  # Said by who watches, who comes back here with the next stream.
            except InferHubError as error:
                if said != error.message:
                    _log.warning("%s does not load what this gateway needs: %s", orchestrator.where, error)
                said = error.message
            await asyncio.sleep(jittered(pause_s))
            pause_s = min(2 * pause_s, LONGEST_WANT_PAUSE_S)
        if said:
            _log.info("%s has loaded what this gateway needs", orchestrator.where)

    async def _want(
        self, orchestrator: _Orchestrator, request: pb.WantRequest, on_progress: Progress
    ) -> pb.WantReply:
        timeout_s = self._limits.load_timeout_s
        how = {"timeout": timeout_s, "metadata": orchestrator.line.metadata}
        rpc = begin(orchestrator.line.stub.Want, request, orchestrator.where, **how)
        try:
            replies = aiter(rpc)
            while (reply := await self._next(replies, orchestrator)) is not None:
                if reply.HasField("error"):
                    return cast("pb.WantReply", reply)
                if reply.loading:
                    on_progress(reply.loading)
            return pb.WantReply()
        finally:
            rpc.cancel()

    # --- which orchestrator --------------------------------------------------------------------

    async def _next(self, replies: AsyncIterator[Any], orchestrator: _Orchestrator) -> Any:
        """The next message of a stream, or None at its end; orchestrators are never silent for long."""
        try:
            async with asyncio.timeout(self._limits.silence_s):
                return await translated(anext(replies, None), orchestrator.where)
        except TimeoutError as error:
            raise EndpointLost(f"{orchestrator.where} says nothing any more.") from error

    async def _ask(
        self, method: Callable[[_Orchestrator], Callable[..., Awaitable[Any]]], request: Any
    ) -> Any:
        timeout_s = self._limits.control_timeout_s

        async def ask(orchestrator: _Orchestrator) -> Any:
            how = {"timeout": timeout_s, "metadata": orchestrator.line.metadata}
            asked = begin(method(orchestrator), request, orchestrator.where, **how)
            return await translated(asked, orchestrator.where)

        return await self._somewhere(ask)

    async def _somewhere(self, ask: Callable[[_Orchestrator], Awaitable[Any]]) -> Any:
        """Asks the orchestrator that answered last, then each of the others once."""
        failures: list[InferHubError] = []
        start = self._current
        for offset in range(len(self._orchestrators)):
            index = (start + offset) % len(self._orchestrators)
            try:
                reply = await ask(self._orchestrators[index])
            except InferHubError as error:
                failures.append(error)
                continue
            try:
                _checked(reply)
            except _ELSEWHERE as error:
                failures.append(error)
                continue
            self._current = index
            return reply
        told = next((e for e in failures if not isinstance(e, _LOST)), None)
        if told is not None:
            raise told
        raise EndpointLost(failures[0].message) from failures[0]

    def _leave_for_next(self, orchestrator: _Orchestrator) -> None:
        # Unless a call has done so already.
        if self._orchestrators[self._current] is orchestrator:
            self._current = (self._current + 1) % len(self._orchestrators)


class _Orchestrator:
    """One address and the connection to it."""

    def __init__(self, target: str, credentials: Credentials, limits: Limits) -> None:
        self.target = target
        self.where = f"The orchestrator at {target}"
        self.line = Line(target, cast("Any", OrchestratorStub), credentials, limits)


class _Outage:
    """Says once that nobody answers, and once that somebody does again; waits longer each time."""

    def __init__(self) -> None:
        self._failures = 0

    async def pause(self, target: str, error: Exception, *, of: int) -> None:
        if self._failures == 0:
            level = logging.ERROR if isinstance(error, SetupError) else logging.WARNING
            _log.log(level, "Lost the orchestrator at %s, the fleet stays as it was: %s", target, error)
        self._failures += 1
        # The next one is asked at once; after a whole round it is time to wait.
        rounds = self._failures // of
        if self._failures % of == 0:
            longest_s = min(FIRST_PAUSE_S * 2 ** min(rounds, 16), LONGEST_PAUSE_S)
            await asyncio.sleep(jittered(longest_s))

    def over(self, target: str) -> None:
        if self._failures:
            _log.info("Follow the orchestrator at %s", target)
        self._failures = 0


def _names(deployments: Sequence[Deployment]) -> set[str]:
    return {deployment.spec.name for deployment in deployments}


def _checked(reply: Any) -> Any:
    if reply.HasField("error"):
        raise wire.decode_error(reply.error)
    return reply
