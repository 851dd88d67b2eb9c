"""What an engine or vendor has to provide. The worker's host loads it, pumps it and cancels it.

A backend never sees a queue, a socket of ours or another backend.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import InferHubError, SetupError
from inferhub.core.models import Capability, Load, ModelSpec


class NoOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """For backends without settings of their own."""


class Backend(ABC):
    """One loaded model. Subclass it in `backends/x.py` and expose the class as `BACKEND`.

    Life: `__init__` (cheap) → `load` → any number of concurrent `run` → `unload`.
    Import the engine's package inside `load`, so that listing backends costs nothing.
    """

    Options: ClassVar[type[msgspec.Struct]] = NoOptions
    """The shape of `ModelSpec.options`; unknown names are refused when the spec is checked."""
    isolated: ClassVar[bool] = False
    """True when the engine may crash or hold the GIL: the host then runs it in a child process."""
    remote: ClassVar[bool] = False
    """True when the model lives elsewhere: no device, no weights, served beside the gateway."""
    needs_weights: ClassVar[bool] = False
    may_offer: ClassVar[frozenset[str] | None] = None
    """Modalities that its models have at most, where `offers` cannot say; None where that is not known."""
    further_weights: ClassVar[tuple[str, ...]] = ()
    """Options that name more weights, by the index's name or by path. Before `__init__` the host puts the
    resolved path in the place of each, also where `Options` has it as a default; `""` stays."""
    default_load: ClassVar[Load] = "start"
    """When the model is loaded where the spec does not say; `demand` needs `offers`."""
    default_slots: ClassVar[int] = 4
    """Where the operator names no number: what two cores can do, or what an upstream is expected to take."""

    def __init__(self, spec: ModelSpec, weights: Path | None) -> None:
        self.spec = spec
        self.weights = weights
        """Folder or file the registry resolved and verified; None when `needs_weights` is False."""
        self.device = "cpu"
        """Where the model really runs; `load` sets it when the engine decides."""

    @classmethod
    def default_options(cls, spec: ModelSpec) -> Mapping[str, str]:
        """Option → text for those that the spec leaves out, such as `${VENDOR_API_KEY}`: replaced from the
        environment when the spec is read, where a missing variable is an error with its place."""
        return {}

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...] | None:
        """`capabilities` as known before `load`, with options already checked: such a model may wait unloaded
        until somebody calls it. None where only the loaded model can tell."""
        return None

    @property
    @abstractmethod
    def capabilities(self) -> tuple[Capability, ...]:
        """What the loaded model offers; constant after `load`."""

    @abstractmethod
    async def load(self) -> None:
        """Make ready. Raises `SetupError` (with its remedy) when that is impossible."""

    @abstractmethod
    def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        """Yield deltas, then exactly one `Finished` as the last item.

        Leaves the engine's slot free within a second when the iterator is closed or its task
        cancelled. Raises `InferHubError` only; foreign exceptions are translated here.
        """

    async def unload(self) -> None:  # noqa: B027 - most backends have nothing to free
        """Free what `load` took. Called once, with no `run` in flight."""


class BatchBackend(Backend):
    """A backend that computes several calls together: the worker collects them, and calls `run_batch` alone.

    To declare it, name the modalities in `batches` and write `run_batch`; the rest has defaults. Calls that
    came while the engine was busy make the next batch, at most `max_batch` of the spec. Declare it only where
    a batch is measurably cheaper than its calls one by one. `run` stays for what is in no batch: other
    modalities, streams, calls of more than `max_batch_cost`, models with `max_batch: 1`. Both ways must give
    the same answers.
    """

    batches: ClassVar[frozenset[str]]
    """Modalities whose calls may share a batch, each with its own kind."""
    default_max_batch: ClassVar[int] = 32
    """Calls of one batch at most."""
    max_batch_cost: ClassVar[float] = math.inf
    """Cost units of one batch at most. A call of more goes alone, through `run`, which takes it in pieces
    between which batches have their turn."""
    may_wait: ClassVar[bool] = False
    """True where a batch takes nearly the same time whatever its size: under steady load an idle engine then
    waits up to 5 ms for company."""

    @abstractmethod
    async def run_batch(self, calls: Sequence[Call]) -> Sequence[BatchResult]:
        """The answers in the order of the calls, which all have one modality. One call's own failure is its
        `InferHubError`; what is raised concerns the batch as a whole, whose calls are then tried in halves,
        and after that one by one. Raises `OutOfMemory` where fewer would fit. Cancelled when nobody wants any
        of them any more: then it frees the engine within a second, as `run` does."""

    def length(self, call: Call) -> float:
        """What calls of one batch should have alike, because the shorter ones are padded to the longest."""
        return call.cost


BatchResult = Sequence[Delta | Finished] | InferHubError
"""All chunks of one answer, `Finished` last; or why there is none."""


def slots_of(kind: type[Backend], spec: ModelSpec) -> int:
    """Calls that a model takes at once: the operator's number, or the backend's. Where they share batches,
    two batches full: one is computed while the next one gathers."""
    if spec.slots:
        return spec.slots
    if issubclass(kind, BatchBackend) and spec.max_batch != 1:
        return 2 * (spec.max_batch or kind.default_max_batch)
    return kind.default_slots


def check_options(backend: type[Backend], spec: ModelSpec) -> msgspec.Struct:
    """The spec's options as the backend's struct. Raises `SetupError` naming the option."""
    try:
        return msgspec.convert(dict(spec.options), backend.Options, strict=True)
    except msgspec.ValidationError as error:
        allowed = ", ".join(backend.Options.__struct_fields__) or "none"
        raise SetupError(
            f"Model {spec.name!r}: {error}. Options of backend {spec.backend!r}: {allowed}.",
            param="options",
        ) from error
