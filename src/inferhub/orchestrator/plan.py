"""Which models to load and unload, and where. Pure: what there is and what is wanted go in, actions come out.

`service` calls it and `hands` acts on it. Nothing is done to a worker that is not sure to be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from inferhub.core.fleet import Deployment, Member
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus

Pair = tuple[str, str]
"""A worker's address and the name of a model on it."""


@dataclass(frozen=True, slots=True)
class Load:
    worker: str
    """Its address, as in all of this file."""
    deployment: Deployment
    reason: str


@dataclass(frozen=True, slots=True)
class Unload:
    worker: str
    name: str
    reason: str
    is_forced: bool = False
    """Also while calls run on it."""


Action = Load | Unload

_Has = Mapping[str, dict[str, ModelStatus]]
"""The models of each worker, without those that are on their way out."""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a decision rests on."""

    members: Sequence[Member]
    wanted: Mapping[str, Deployment]
    now_s: float = 0.0
    loading: Collection[Pair] = frozenset()
    unloading: Collection[Pair] = frozenset()
    not_before_s: Mapping[Pair, float] = field(default_factory=dict)
    """Of what failed lately."""
    told: Mapping[Pair, ModelSpec] = field(default_factory=dict)
    """What was loaded last, where this is known: reports show it with the backend's own choices put in."""
    unneeded_since_s: Mapping[Pair, float] = field(default_factory=dict)
    settle_s: float = 2.0
    """So long after it is not needed any more no gateway sends calls to it."""
    drain_grace_s: float = 30.0
    """So long it may finish those that it has."""
    may_unload: bool = True
    may_replace: bool = True
    """False while many are silent at once: they are likelier there than not."""


@dataclass(slots=True)
class _Layout:
    loads: list[Load] = field(default_factory=list)
    keep: set[Pair] = field(default_factory=set)
    unsettled: set[str] = field(default_factory=set)
    """Models that are not yet on all workers that should have them, so no copy is given up."""


def decide(scene: Scene) -> tuple[tuple[Action, ...], frozenset[Pair]]:
    """Loads in the order in which models are wanted, then unloads; and what workers have that nobody needs
    there. What a worker's operator loaded has no `#` in its name, and stays."""
    layout = _lay_out(scene)
    spare = list(_unneeded(scene, layout))
    unloads = _unloads(scene, spare) if scene.may_unload else ()
    return (*layout.loads, *unloads), frozenset((worker, model.spec.name) for worker, model in spare)


def plan(scene: Scene) -> tuple[Action, ...]:
    return decide(scene)[0]


def fits(worker: WorkerStatus, deployment: Deployment) -> bool:
    """Labels, and the device where it is a named one; a worker that names no devices may have any."""
    device, labels = deployment.spec.device, deployment.placement.labels
    if device not in ("auto", "cpu") and worker.devices and device not in {d.id for d in worker.devices}:
        return False
    return not labels or all(worker.labels.get(name) == value for name, value in labels.items())


def _lay_out(scene: Scene) -> _Layout:
    layout = _Layout()
    has = {}
    for member in scene.members:
        has[member.worker.address] = {model.spec.name: model for model in member.worker.models}
    for worker, name in scene.unloading:
        has.get(worker, {}).pop(name, None)
    planned: dict[str, int] = {}
    for deployment in scene.wanted.values():
        _place(scene, layout, deployment, has, planned)
    return layout


def _place(scene: Scene, layout: _Layout, deployment: Deployment, has: _Has, planned: dict[str, int]) -> None:
    name, replicas = deployment.spec.name, deployment.placement.replicas
    copies, others = [], []
    for member in scene.members:
        worker = member.worker
        if worker.draining or not fits(worker, deployment):
            continue
        model = has[worker.address].get(name)
        if model is None and (worker.address, name) not in scene.loading:
            others.append(member)
        elif model is not None and _is_declined(model):
            layout.keep.add((worker.address, name))
        else:
            copies.append(member)
    wanted = replicas or len(copies) + len(others)
    if len(copies) > wanted:
        copies = sorted(copies, key=lambda member: _worth(member, has, name))[:wanted]
    is_loading = _keep(scene, layout, deployment, copies, has)
    missing = wanted - len(copies)
    if not copies or is_loading or (missing and others):
        layout.unsettled.add(name)
    if replicas and copies and not scene.may_replace:
        return
    free = [member for member in others if _may_load(scene, member, name)]
    for member in sorted(free, key=lambda member: _room(member, planned))[:missing]:
        address = member.worker.address
        planned[address] = planned.get(address, 0) + 1
        layout.keep.add((address, name))
        layout.loads.append(Load(address, deployment, _why(deployment, len(copies), wanted)))


def _keep(scene: Scene, layout: _Layout, deployment: Deployment, copies: Sequence[Member], has: _Has) -> bool:
    """Copies that stay where they are, and those of them that have to hear something. Whether one is being
    loaded."""
    name = deployment.spec.name
    is_loading = False
    for member in copies:
        pair = (member.worker.address, name)
        layout.keep.add(pair)
        model = has[pair[0]].get(name)
        if pair in scene.loading:
            is_loading = True
        elif model is not None and _may_load(scene, member, name):
            reason = _why_again(scene.told.get(pair), model, deployment.spec)
            if reason is not None:
                layout.loads.append(Load(pair[0], deployment, reason))
    return is_loading


def _why_again(told: ModelSpec | None, model: ModelStatus, wanted: ModelSpec) -> str | None:
    """The name stands for the content, save for what a loaded model can take over. For one that is being
    loaded, to ask again is to hear of its end."""
    changed = "its settings have changed"
    if told is not None:
        return changed if told is not wanted and told != wanted else None
    has = model.spec
    is_kept = (has.pinned, has.idle_ttl_s) == (wanted.pinned, wanted.idle_ttl_s)
    if not is_kept or wanted.load not in (None, has.load):
        return changed
    return "somebody else began to load it" if model.loading and not model.ready else None


def _is_declined(model: ModelStatus) -> bool:
    """Taken note of, and not served: this worker was told not to serve such models."""
    return not model.capabilities and not model.ready and not model.loading


def _may_load(scene: Scene, member: Member, name: str) -> bool:
    worker = member.worker
    return not member.is_suspect and scene.now_s >= scene.not_before_s.get((worker.address, name), 0.0)


def _worth(member: Member, has: _Has, name: str) -> tuple[bool, bool, str]:
    """Copies that are kept first, where there are more than are wanted."""
    address = member.worker.address
    model = has[address].get(name)
    return (member.is_suspect, model is None or not model.ready, address)


def _room(member: Member, planned: Mapping[str, int]) -> tuple[float, int, str]:
    """Most free memory first; what is planned already takes its share of it."""
    worker = member.worker
    free_bytes = max((device.memory_free_bytes for device in worker.devices), default=0)
    loads = planned.get(worker.address, 0)
    return (-free_bytes / (1 + loads), loads, worker.address)


def _why(deployment: Deployment, kept: int, wanted: int) -> str:
    if deployment.placement.replicas == 0:
        return "every worker that fits has it"
    return f"{kept} of {wanted} copies are there"


def _unloads(scene: Scene, spare: Iterable[tuple[str, ModelStatus]]) -> Iterator[Unload]:
    for worker, model in spare:
        name = model.spec.name
        since_s = scene.unneeded_since_s.get((worker, name), scene.now_s)
        unneeded_s = scene.now_s - since_s
        if scene.now_s < scene.not_before_s.get((worker, name), 0.0) or unneeded_s < scene.settle_s:
            continue
        reason = "it is wanted elsewhere" if name in scene.wanted else "nobody wants it"
        if not model.running and not model.queued:
            yield Unload(worker, name, reason)
        elif unneeded_s >= scene.settle_s + scene.drain_grace_s:
            yield Unload(worker, name, f"{reason}, and its grace is over", is_forced=True)


def _unneeded(scene: Scene, layout: _Layout) -> Iterator[tuple[str, ModelStatus]]:
    for member in scene.members:
        if member.is_suspect or member.worker.draining:
            continue
        worker = member.worker.address
        for model in member.worker.models:
            pair = (worker, model.spec.name)
            is_needed = pair in layout.keep or model.spec.name in layout.unsettled
            is_ours = "#" in model.spec.name
            if is_ours and not is_needed and pair not in scene.unloading and pair not in scene.loading:
                yield worker, model
