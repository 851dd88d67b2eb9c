"""What should run against what runs: loads models on workers and publishes `Directory` snapshots.

Used by `app` (apply, readiness) and run by assembly. Workers are only known as transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from inferhub.core.errors import Draining, EndpointLost, InferHubError, SetupError
from inferhub.core.models import ModelSpec, ModelStatus, public_name
from inferhub.core.serving import Endpoint, WorkerStatus
from inferhub.pipeline.directory import Directory
from inferhub.settings.spec import Spec
from inferhub.transport.base import Transport

_log = logging.getLogger(__name__)
_RELOAD_AFTER_S = 5.0

Progress = Callable[[str], None]


def deployment_of(spec: ModelSpec) -> ModelSpec:
    """The spec under a name that changes with its content, so that old and new can run side by side.

    `#` cannot occur in a public name.
    """
    content = msgspec.json.encode(spec, order="deterministic")
    return replace(spec, name=f"{spec.name}#{hashlib.sha256(content).hexdigest()[:10]}")


@dataclass(frozen=True, slots=True, eq=False)
class _Retirement:
    """A deployment on its way out."""

    transport: Transport
    deployment: str
    recalled: asyncio.Event = field(default_factory=asyncio.Event)


class Fleet:
    """The workers of one gateway. `engines` run models, `providers` reach remote ones."""

    def __init__(
        self,
        *,
        engines: Mapping[str, Transport],
        providers: Mapping[str, Transport],
        is_remote: Callable[[ModelSpec], bool],
        refresh_s: float,
        drain_grace_s: float,
    ) -> None:
        self._engines = engines
        self._providers = providers
        self._is_remote = is_remote
        self._refresh_s = refresh_s
        self._drain_grace_s = drain_grace_s
        self._spec = Spec(models=(), routes=())
        self._status: dict[str, WorkerStatus | None] = dict.fromkeys([*engines, *providers])
        self._directory = Directory()
        self._applying = asyncio.Lock()
        self._retiring: dict[asyncio.Task[None], _Retirement] = {}
        self._retry_at: dict[tuple[str, str], float] = {}
        self.is_draining = False

    def directory(self) -> Directory:
        return self._directory

    @property
    def spec(self) -> Spec:
        return self._spec

    def workers(self) -> Mapping[str, WorkerStatus | None]:
        """Last report of every worker; None for those that do not answer."""
        return dict(self._status)

    def readiness(self) -> Mapping[str, object]:
        """`ready` is true when every wanted model has an endpoint and nothing drains."""
        models = {name: len(endpoints) for name, endpoints in sorted(self._directory.endpoints.items())}
        workers = {worker: status is not None for worker, status in self._status.items()}
        is_ready = not self.is_draining and bool(models) and all(models.values())
        return {"ready": is_ready, "draining": self.is_draining, "models": models, "workers": workers}

    async def apply(self, spec: Spec, on_progress: Progress = lambda _: None) -> None:
        """Load everything new, then swap in one step, then retire the old. On any error nothing changes."""
        async with self._applying:
            wanted = [(deployment_of(model), self._hosts(model)) for model in spec.models]
            loaded: list[tuple[Transport, str]] = []
            await self._recall({deployment.name for deployment, _ in wanted})
            try:
                for deployment, hosts in wanted:
                    on_progress(public_name(deployment.name))
                    loaded += [(h, deployment.name) for h in await self._load(deployment, hosts)]
            except BaseException:
                for host, name in loaded:
                    await self._unload(host, name)
                await self.refresh()
                raise
            before, self._spec = self._spec, spec
            await self.refresh()
            self._retire(before)

    async def run(self) -> None:
        """Ask every worker for its state, again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._refresh_s)
            await self.refresh()
            for worker in self._engines:
                await self._reconcile(worker)

    async def refresh(self) -> None:
        """One round of reports, then one new snapshot."""
        everyone = {**self._engines, **self._providers}
        reports = await asyncio.gather(*(self._report(transport) for transport in everyone.values()))
        for worker, report in zip(everyone, reports, strict=True):
            if (report is None) != (self._status[worker] is None):
                _log.info("worker is %s", "lost" if report is None else "here", extra={"worker": worker})
            self._status[worker] = report
        self._publish()

    async def close(self) -> None:
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for transport in (*self._engines.values(), *self._providers.values()):
            await transport.close()

    def _hosts(self, model: ModelSpec) -> Mapping[str, Transport]:
        return self._providers if self._is_remote(model) else self._engines

    async def _load(self, deployment: ModelSpec, hosts: Mapping[str, Transport]) -> list[Transport]:
        """Where it was newly loaded. A worker that does not answer is loaded later, by `_reconcile`."""
        fresh: list[Transport] = []
        for worker, transport in hosts.items():
            try:
                status = await transport.status()
                if deployment.name not in {m.spec.name for m in status.models}:
                    await transport.load(deployment)
                    fresh.append(transport)
            except (EndpointLost, Draining):
                _log.warning("worker does not answer", extra={"worker": worker})
            except InferHubError as error:
                raise SetupError(
                    f"Model {public_name(deployment.name)!r} cannot be loaded: {error.message}",
                    code=error.wire_code,
                ) from error
        return fresh

    async def _reconcile(self, worker: str) -> None:
        """A worker that came back, or came late, gets the models it misses."""
        status = self._status[worker]
        if status is None or status.draining or self._applying.locked():
            return
        has = {model.spec.name for model in status.models}
        now = asyncio.get_running_loop().time()
        for model in self._spec.models:
            deployment = deployment_of(model)
            key = (worker, deployment.name)
            if deployment.name in has or self._is_remote(model) or now < self._retry_at.get(key, 0.0):
                continue
            try:
                await self._engines[worker].load(deployment)
            except InferHubError as error:
                self._retry_at[key] = now + _RELOAD_AFTER_S
                _log.warning("load failed: %s", error.message, extra={"worker": worker, "model": model.name})

    async def _report(self, transport: Transport) -> WorkerStatus | None:
        try:
            return await transport.status()
        except InferHubError:
            return None

    def _publish(self) -> None:
        deployments = {deployment_of(model).name for model in self._spec.models}
        endpoints: dict[str, list[Endpoint]] = {model.name: [] for model in self._spec.models}
        for worker, transport in {**self._engines, **self._providers}.items():
            status = self._status[worker]
            if status is None or status.draining:
                continue
            for model in status.models:
                # One that restarts is still reported; one without `#` was loaded by the worker's operator.
                if model.ready and (model.spec.name in deployments or "#" not in model.spec.name):
                    where = self._endpoint_id(worker, status, model)
                    endpoint = Endpoint(where, model, transport.infer)
                    endpoints.setdefault(public_name(model.spec.name), []).append(endpoint)
        self._directory = Directory(
            endpoints={name: tuple(found) for name, found in endpoints.items()},
            routes={route.name: route for route in self._spec.routes},
            revision=self._directory.revision + 1,
        )

    def _endpoint_id(self, worker: str, status: WorkerStatus, model: ModelStatus) -> str:
        """Remote models are told apart by name: they all live on the one provider host."""
        return public_name(model.spec.name) if worker in self._providers else status.id

    def _retire(self, before: Spec) -> None:
        kept = {deployment_of(model).name for model in self._spec.models}
        for model in before.models:
            deployment = deployment_of(model).name
            if deployment in kept:
                continue
            for transport in self._hosts(model).values():
                retirement = _Retirement(transport, deployment)
                task = asyncio.create_task(self._unload_when_idle(retirement))
                self._retiring[task] = retirement
                task.add_done_callback(self._retiring.pop)

    async def _recall(self, deployments: set[str]) -> None:
        """What is wanted again is not unloaded after all, or is unloaded before it is loaded again."""
        tasks = [task for task, retirement in self._retiring.items() if retirement.deployment in deployments]
        for task in tasks:
            self._retiring[task].recalled.set()
        await asyncio.gather(*tasks)

    async def _unload_when_idle(self, retirement: _Retirement) -> None:
        """Calls that began on the old deployment may finish on it, within the grace period."""
        try:
            async with asyncio.timeout(self._drain_grace_s):
                while await self._is_busy(retirement.transport, retirement.deployment):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(retirement.recalled.wait(), self._refresh_s)
                    if retirement.recalled.is_set():
                        return
        except TimeoutError:
            model = public_name(retirement.deployment)
            _log.warning("unloading a model that is still busy", extra={"model": model})
        await self._unload(retirement.transport, retirement.deployment)

    async def _unload(self, transport: Transport, deployment: str) -> None:
        try:
            await transport.unload(deployment)
        except InferHubError as error:
            _log.warning("unload failed: %s", error.message, extra={"model": public_name(deployment)})

    async def _is_busy(self, transport: Transport, deployment: str) -> bool:
        report = await self._report(transport)
        models = report.models if report else ()
        return any(m.running or m.queued for m in models if m.spec.name == deployment)
