"""What the gateways of the fleet want, and who of them is still there. Pure: told the time, no I/O.

`service` asks it what workers should have. A gateway (a holder) that is not heard of any more loses its say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from inferhub.core.errors import Invalid, Overloaded
from inferhub.core.fleet import Deployment
from inferhub.orchestrator.credible import check_holder, is_model

MAX_HOLDERS = 1024
MAX_DEPLOYMENTS = 1024
"""Of one holder."""
GRACE_S = 60.0
"""So long is kept what a holder wanted that stopped watching: it may be starting again, or cut off."""


@dataclass(slots=True)
class _Holder:
    deployments: tuple[Deployment, ...] | None = None
    """None: it watches, and has not said yet what it wants."""
    coming: tuple[Deployment, ...] = ()
    """What it is about to want: loaded, and not unloaded, beside what it wants so far."""
    watchers: int = 0
    seen_s: float = 0.0
    order: int = 0
    """Of two that place the same model differently, the later one counts."""
    is_news: bool = False
    """What it wants has not been told to other orchestrators yet."""

    @property
    def is_ours(self) -> bool:
        """Whether it talks to this orchestrator; to whom it talks now knows best what it wants."""
        return self.watchers > 0 or self.is_news or bool(self.coming)


class Wants:
    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._holders: dict[str, _Holder] = {}
        self._elsewhere: dict[str, tuple[Deployment, ...]] = {}
        self._orders = 0

    def prepare(self, holder: str, deployments: Sequence[Deployment], now_s: float) -> None:
        """It wants these as soon as they are loaded, and until then what it wanted before as well."""
        check_holder(holder)
        _check(deployments)
        self._of(holder, now_s).coming = tuple(deployments)

    def settle(self, holder: str, now_s: float) -> None:
        """It has what it prepared, and wants nothing else any more."""
        found = self._of(holder, now_s)
        self._orders += 1
        found.deployments, found.coming, found.order = found.coming, (), self._orders
        found.is_news = True

    def give_up(self, holder: str, now_s: float) -> None:
        """What it prepared cannot be had; it wants what it wanted before."""
        self._of(holder, now_s).coming = ()

    def watches(self, holder: str, now_s: float) -> None:
        check_holder(holder)
        found = self._of(holder, now_s)
        found.watchers += 1
        if found.deployments is None:
            # It came from another orchestrator, which wrote down what it had said.
            found.deployments = self._elsewhere.get(holder)

    def left(self, holder: str, now_s: float) -> None:
        found = self._of(holder, now_s)
        found.watchers -= 1

    def heard_elsewhere(self, wanted: Mapping[str, tuple[Deployment, ...]]) -> None:
        """What holders told other orchestrators."""
        self._elsewhere = dict(wanted)
        for name, holder in self._holders.items():
            if holder.deployments is None:
                holder.deployments = wanted.get(name)

    def tick(self, now_s: float) -> None:
        for name, holder in list(self._holders.items()):
            if holder.watchers > 0:
                holder.seen_s = now_s
            elif now_s - holder.seen_s > self._grace_s:
                del self._holders[name]

    def mine(self) -> Mapping[str, tuple[Deployment, ...]]:
        """What those want that talk to this orchestrator, for other ones."""
        return {
            name: holder.deployments
            for name, holder in self._holders.items()
            if holder.deployments is not None and holder.is_ours
        }

    def told_others(self, holder: str, deployments: tuple[Deployment, ...]) -> None:
        """They know it now; from here on the last word may be with one of them."""
        self._elsewhere[holder] = deployments
        found = self._holders.get(holder)
        if found is not None and found.deployments == deployments:
            found.is_news = False

    def union(self) -> Mapping[str, Deployment]:
        """By name, in the order in which they were wanted."""
        said = dict(self._elsewhere)
        for name, holder in sorted(self._holders.items(), key=lambda item: item[1].order):
            if holder.deployments is not None and (holder.is_ours or name not in said):
                # Last in the order of the dictionary, too.
                said.pop(name, None)
                said[name] = holder.deployments
        coming = (holder.coming for holder in self._holders.values())
        return {d.spec.name: d for deployments in (*said.values(), *coming) for d in deployments}

    @property
    def is_complete(self) -> bool:
        """Whether there is anybody, and all have said what they want. Where not, what looks unwanted may be
        somebody's: an orchestrator that hears no gateway must not take its models away."""
        holders = self._holders.values()
        return all(h.deployments is not None for h in holders) and bool(self._holders or self._elsewhere)

    def _of(self, holder: str, now_s: float) -> _Holder:
        found = self._holders.get(holder)
        if found is None:
            if len(self._holders) >= MAX_HOLDERS:
                raise Overloaded(f"{MAX_HOLDERS} gateways are known already.")
            found = self._holders[holder] = _Holder()
        found.seen_s = now_s
        return found


def names(deployments: Iterable[Deployment]) -> Collection[str]:
    return {deployment.spec.name for deployment in deployments}


def _check(deployments: Sequence[Deployment]) -> None:
    if len(deployments) > MAX_DEPLOYMENTS:
        raise Invalid(f"{len(deployments)} models are wanted; {MAX_DEPLOYMENTS} are allowed.")
    if len(names(deployments)) < len(deployments):
        raise Invalid("A model is wanted twice under the same name.")
    for deployment in deployments:
        if not is_model(deployment.spec.name) or deployment.placement.replicas < 0:
            raise Invalid(f"Model {deployment.spec.name!r:.120} cannot be wanted so.")
