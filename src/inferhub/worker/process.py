"""A model in a child process, as its parent sees it: start, watch, end.

The host uses it for backends that may crash or hold the GIL. The child speaks the same protocol as any
worker, on a unix socket in a folder that only this user can enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from inferhub.backends import backend_class
from inferhub.backends.base import BatchBackend
from inferhub.core.call import Call, Emit
from inferhub.core.errors import EndpointLost, InferHubError, SetupError
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.modalities import modalities
from inferhub.telemetry.resources import process_memory
from inferhub.transport.codec import Codec
from inferhub.transport.grpc import GrpcTransport
from inferhub.worker.batching.batcher import Batcher, max_batch
from inferhub.worker.child import READY

_log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""Until the child listens, before it loads anything."""
END_TIMEOUT_S = 5.0
LARGE_BYTES = 1 << 18
"""A call of more travels alone, so that a batch of them fits into a message."""


class ChildEngine:
    """An `Engine` whose process may die without taking the worker along. One life: whoever made it makes the
    next one."""

    can_unload_busy = True
    is_loaded = True
    is_loading = False

    def __init__(
        self, spec: ModelSpec, child: Child, status: ModelStatus, on_death: Callable[[], None]
    ) -> None:
        self._spec = spec
        self._child = child
        self._status = status
        self._on_death = on_death
        self._batcher = _batcher(spec, child.transport)
        self.has_failed = False
        self.memory: Mapping[str, int] = {}
        self._watching = asyncio.create_task(self._watch(), name=f"watch {spec.name}")

    @classmethod
    async def start(cls, spec: ModelSpec, weights: Path | None, on_death: Callable[[], None]) -> ChildEngine:
        # The queue is on our side. The child's only bridges the moment in which it still ends calls
        # that we have given up.
        resolved = replace(
            spec,
            weights=None if weights is None else str(weights),
            queue_limit=spec.slots,
            load="start",
            idle_ttl_s=None,
        )
        return cls(resolved, *await _start(resolved), on_death)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self._status.capabilities

    @property
    def device(self) -> str:
        return self._status.device

    @property
    def is_ready(self) -> bool:
        return not self.has_failed

    async def measure(self) -> None:
        found = await asyncio.to_thread(process_memory, self._child.pid)
        # One that just ended is told by its death; until then it takes what it took.
        self.memory = found or self.memory

    async def infer(self, call: Call, emit: Emit) -> None:
        if self._batcher is None or not self._batcher.takes(call) or _is_large(call):
            await self._child.transport.infer(call, emit)
            return
        for chunk in await self._batcher.answer(call):
            await emit(chunk)

    async def unload(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        self._watching.cancel()
        await asyncio.wait([self._watching])
        if not self.has_failed:
            with contextlib.suppress(InferHubError):
                await self._child.transport.unload(self._spec.name)
        await self._child.end()

    async def _watch(self) -> None:
        died = await self._child.wait()
        self.has_failed = True
        _log.error("The process of model %r %s", self._spec.name, died)
        self._on_death()
        await self._child.end()


def _batcher(spec: ModelSpec, transport: GrpcTransport) -> Batcher | None:
    """Calls that share batches travel together too: a message costs as much as computing a short text."""
    kind = backend_class(spec.backend)
    if not issubclass(kind, BatchBackend):
        return None
    backend = kind(spec, None)  # never loaded here: asked only what may share a batch
    return Batcher(backend, transport.infer_many) if max_batch(backend) > 1 else None


def _is_large(call: Call) -> bool:
    return len(call.body) + sum(len(media.data) for media in call.media) > LARGE_BYTES


class Child:
    """One life of a child process."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, transport: GrpcTransport) -> None:
        self.transport = transport
        self._process = process
        self._folder = folder
        self._forwarding = asyncio.create_task(_forward(process), name=f"stderr of {process.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> str:
        """Return how it died, as the end of a sentence."""
        code = await self._process.wait()
        if code >= 0:
            return f"ended with exit status {code}"
        return f"was ended by {signal.Signals(-code).name}"

    async def listening(self) -> None:
        """Raises `EndpointLost` when it dies first."""
        assert self._process.stdout is not None  # noqa: S101
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise SetupError(f"The engine's process did not listen within {START_TIMEOUT_S} s.") from error
        if line != READY:
            raise EndpointLost("The engine's process died before it could listen.")

    async def end(self) -> None:
        """Hang up, let it exit, and make sure. Running calls end as `EndpointLost`."""
        await self.transport.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            _log.warning("Process %s does not exit; it is killed", self._process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            # Bounded: a process that the engine started may hold the pipes open.
            await asyncio.wait([self._forwarding], timeout=1.0)
            self._forwarding.cancel()
            shutil.rmtree(self._folder, ignore_errors=True)


async def _start(spec: ModelSpec) -> tuple[Child, ModelStatus]:
    """A child with its model loaded, or an error and no child."""
    child = await _spawn()
    try:
        await child.listening()
        return child, await child.transport.load(spec)
    except EndpointLost as error:
        await child.end()
        raise SetupError(
            f"The process of model {spec.public_name!r} {await child.wait()} while it loaded; "
            "the log has its last words."
        ) from error
    except BaseException:
        await child.end()
        raise


async def _spawn() -> Child:
    folder = Path(tempfile.mkdtemp(prefix="inferhub-"))  # mkdtemp makes it 0700
    listen = f"unix:{folder / 'worker'}"
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder that somebody stands in is no place to import from
            "-m",
            "inferhub.worker.child",
            listen,
            str(_log.getEffectiveLevel()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise SetupError(f"Cannot start a process for the engine: {error}") from error
        raise
    return Child(process, folder, GrpcTransport(listen, Codec(modalities())))


async def _forward(process: asyncio.subprocess.Process) -> None:
    """The child's words into our log, each at the level it was said."""
    assert process.stderr is not None  # noqa: S101
    while True:
        try:
            line = await process.stderr.readline()
        except ValueError:  # longer than the reader's limit; the rest follows as the next line
            continue
        if not line:
            return
        text = line.decode(errors="replace").rstrip()
        level = logging.getLevelNamesMapping().get(text.partition(" ")[0], logging.INFO)
        _log.log(level, "[%s] %s", process.pid, text)
