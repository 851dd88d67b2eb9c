"""What one process hosts: the spec as it serves it, its weights, and the worker that runs its models.

Called by assembly and, to check without serving, by the CLI. Listens to nothing and loads nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inferhub.backends import backend_class
from inferhub.backends.base import check_options
from inferhub.core.errors import SetupError
from inferhub.core.models import ModelSpec
from inferhub.modalities.names import modalities_named
from inferhub.registry.weights import Weights
from inferhub.settings import Loaded, Settings
from inferhub.settings.spec import Spec, load_spec, narrow
from inferhub.telemetry.resources import devices, memory
from inferhub.worker.host import Host, HostLimits, load_of, possible_modalities
from inferhub.worker.service import Worker


def check_model(spec: ModelSpec) -> Mapping[str, str]:
    """Raises `SetupError` for an unknown backend, option, or missing weights name. Options that its backend
    takes from the environment are returned, and the others not checked until they are there."""
    backend = backend_class(spec.backend)
    left_out = backend.default_options(spec)
    if not left_out:
        check_options(backend, spec)
        load_of(backend, spec)
    if backend.needs_weights and spec.weights is None:
        raise SetupError(f"Model {spec.name!r}: backend {spec.backend!r} needs 'weights'.", param="weights")
    return left_out


def parse_spec(loaded: Loaded, text: str) -> Spec:
    """The spec as this process serves it."""
    spec = load_spec(text, env=loaded.environment, check_model=check_model)
    served = modalities_named(loaded.settings.modalities)
    narrowed = narrow(spec, keeps(served))
    if spec.models and not narrowed.models:
        wanted = ", ".join(loaded.settings.modalities)
        raise SetupError(f"No model of the spec is for {wanted}.", param="modalities")
    return narrowed


def keeps(served: frozenset[str] | None) -> Callable[[ModelSpec], bool]:
    """Whether a model is for one of these modalities, as far as that is known before it is loaded."""

    def keep(model: ModelSpec) -> bool:
        if served is None:
            return True
        offered = possible_modalities(backend_class(model.backend), model)
        return offered is None or not offered.isdisjoint(served)

    return keep


def make_worker(settings: Settings, name: str) -> Worker:
    """A worker with nothing loaded yet, within the limits of this process."""
    limits = HostLimits(
        memory_bytes=memory_budget_bytes(settings),
        vram_share=settings.vram_share,
        load_s=settings.load_timeout_s,
        room_wait_s=settings.room_wait_s,
        idle_ttl_s=settings.model_idle_ttl_s,
    )
    served = modalities_named(settings.modalities)
    host = Host(resolve=open_weights(settings).resolve, limits=limits, modalities=served, devices=devices)
    labels = dict(label.split("=", 1) for label in settings.labels)
    return Worker(name, host, devices, labels=labels)


def memory_budget_bytes(settings: Settings) -> int:
    """The rest is for the gateway, for processes that decode media, and for the files of mapped weights."""
    return settings.memory_budget_bytes or memory().total_bytes * 6 // 10


def open_weights(settings: Settings) -> Weights:
    return Weights(settings.cache_dir, settings.weights_mirror)
