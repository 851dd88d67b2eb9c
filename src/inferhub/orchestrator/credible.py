"""Whether what a worker says of itself can be true. Pure; `membership` and `wants` ask it first.

A record that cannot be true is refused whole, with the reason: the lie of one worker must not move the
calls of others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from inferhub.core.errors import Invalid
from inferhub.core.models import ModelStatus
from inferhub.core.serving import Beat, Pulse, WorkerStatus

MAX_MODELS = 256
MAX_DEVICES = 64
MAX_LABELS = 64
MAX_CAPABILITIES = 64
MAX_VOICES = 4096
MAX_PREFIXES = 4096
MAX_SLOTS = 65_536
MAX_QUEUE = 1_048_576
"""Also of calls that run: no engine has more."""
MAX_MEMORY_BYTES = 1 << 50
MAX_PENDING_COST = 1e15
MAX_S_PER_COST = 1e6
MAX_SEQ = (1 << 63) - 1
MAX_CLOCK_AHEAD_MS = 5 * 60_000
"""A worker's start may lie so far in the future: clocks differ, but not by more."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9._/-]{0,62}")
_VERSION = re.compile(r"[A-Za-z0-9.+_-]{0,64}")
_MODEL = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,256}")
"""Shown to people: no control character may reach their terminals."""
_HOST = re.compile(r"\[[0-9A-Fa-f:.%]{2,64}\]|[A-Za-z0-9._-]{1,253}")
_PATH = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


def check_worker(worker: WorkerStatus, now_unix_ms: int) -> None:
    """Of a worker that registers."""
    _require(_ID.fullmatch(worker.id), "id", worker.id)
    _require(_is_address(worker.address), "address", worker.address)
    _require(_VERSION.fullmatch(worker.version), "version", worker.version)
    _require(worker.incarnation > 0, "incarnation", worker.incarnation)
    if worker.incarnation > now_unix_ms + MAX_CLOCK_AHEAD_MS:
        ahead_s = (worker.incarnation - now_unix_ms) // 1000
        raise Invalid(
            f"This worker says it was started {ahead_s} s in the future; its clock is wrong, or ours.",
            param="incarnation",
            code="clock_ahead",
        )
    _check_order(worker.seq, worker.at_s)
    _require(_are_labels(worker.labels), "labels", dict(worker.labels))
    check_report(worker)


def check_holder(holder: str) -> None:
    """Of a gateway's name: it becomes a key in stores and stands in logs."""
    if not _ID.fullmatch(holder):
        raise Invalid(f"A gateway cannot be called {holder!r:.120}.", param="holder", code="invalid_holder")


def is_model(name: str) -> bool:
    return _MODEL.fullmatch(name) is not None


def check_report(worker: WorkerStatus) -> None:
    """The part that also a worker is held to that was asked, instead of registering: its figures."""
    _require(len(worker.models) <= MAX_MODELS, "models", f"{len(worker.models)} of them")
    _require(len(worker.devices) <= MAX_DEVICES, "devices", f"{len(worker.devices)} of them")
    names = [model.spec.name for model in worker.models]
    _require(len(set(names)) == len(names), "models", "a name occurs twice")
    for name in names:
        _require(is_model(name), "models", name)
    for model in worker.models:
        _require(0 <= model.spec.slots <= MAX_SLOTS, "slots", model.spec.slots)
        _require(0 <= model.spec.queue_limit <= MAX_QUEUE, "queue_limit", model.spec.queue_limit)
        _check_capabilities(model)
    for device in worker.devices:
        _require(_TEXT.fullmatch(device.id) and _TEXT.fullmatch(device.name), "device", device.id)
        _require(0 <= device.memory_total_bytes <= MAX_MEMORY_BYTES, "memory", device.memory_total_bytes)
    _check_figures(worker.models)
    _check_memory(device.memory_free_bytes for device in worker.devices)


def _check_capabilities(model: ModelStatus) -> None:
    _require(_TEXT.fullmatch(model.device), "device", model.device)
    _require(
        len(model.capabilities) <= MAX_CAPABILITIES, "capabilities", f"{len(model.capabilities)} of them"
    )
    for capability in model.capabilities:
        said = (capability.modality, *capability.features)
        _require(all(map(_TEXT.fullmatch, said)), "capabilities", said)
        _require(len(capability.voices) <= MAX_VOICES, "voices", f"{len(capability.voices)} of them")


def check_beat(beat: Beat) -> None:
    _check_order(beat.seq, beat.at_s)
    _check_figures(beat.pulses)
    _check_memory(beat.memory_free_bytes)


def _check_order(seq: int, at_s: float) -> None:
    _require(0 <= seq <= MAX_SEQ, "seq", seq)
    _require(math.isfinite(at_s) and at_s >= 0, "at_s", at_s)


def _check_figures(models: Iterable[ModelStatus | Pulse]) -> None:
    # Comparisons with NaN are false, so it is refused with the rest.
    for model in models:
        _require(0 <= model.running <= MAX_QUEUE, "running", model.running)
        _require(0 <= model.queued <= MAX_QUEUE, "queued", model.queued)
        _require(0 <= model.memory_bytes <= MAX_MEMORY_BYTES, "memory", model.memory_bytes)
        _require(0 <= model.pending_cost <= MAX_PENDING_COST, "pending_cost", model.pending_cost)
        _require(0 <= model.s_per_cost <= MAX_S_PER_COST, "s_per_cost", model.s_per_cost)
        _require(len(model.prefixes) <= MAX_PREFIXES, "prefixes", f"{len(model.prefixes)} of them")


def _check_memory(free_bytes: Iterable[int]) -> None:
    for size in free_bytes:
        _require(0 <= size <= MAX_MEMORY_BYTES, "memory", size)


def _is_address(address: str) -> bool:
    """`HOST:PORT` or `unix:PATH`; names that only one process knows are not for others."""
    kind, _, path = address.partition(":")
    if kind == "unix":
        return _PATH.fullmatch(path) is not None
    host, _, port = address.rpartition(":")
    is_port = len(port) <= 5 and port.isascii() and port.isdecimal() and 0 < int(port) <= 65_535
    return is_port and _HOST.fullmatch(host) is not None


def _are_labels(labels: Mapping[str, str]) -> bool:
    return len(labels) <= MAX_LABELS and all(
        _LABEL.fullmatch(name) and _LABEL_VALUE.fullmatch(value) for name, value in labels.items()
    )


def _require(truth: object, what: str, said: object) -> None:
    if not truth:
        raise Invalid(
            f"A worker cannot have {what} {said!r:.120}.", param=what, code=f"invalid_{what.lower()}"
        )
