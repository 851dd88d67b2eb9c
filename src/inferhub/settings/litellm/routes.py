"""Groups, fallbacks and aliases of a LiteLLM configuration → our routes. Called by `import_litellm`; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inferhub.core.traffic import TRANSIENT
from inferhub.settings.litellm.values import Deployment, Notes, mapping
from inferhub.settings.spec.types import MAX_PRIORITY, MAX_WEIGHT

Groups = Mapping[str, Sequence[Deployment]]

STRATEGIES = {
    "simple-shuffle": "weight",
    "latency-based-routing": "latency",
    "cost-based-routing": "cost",
}
_TRANSIENT = sorted(TRANSIENT)
_KINDS: dict[str, list[str] | None] = {
    "fallbacks": None,
    "context_window_fallbacks": ["context_length"],
    "content_policy_fallbacks": ["content_filter"],
}
"""Theirs → the causes of ours; None for those that ours takes over unasked."""


class Routes:
    """Of one file. `router` and `module` are its sections `router_settings` and `litellm_settings`."""

    def __init__(self, notes: Notes, router: Mapping[str, Any], module: Mapping[str, Any]) -> None:
        self._notes = notes
        self._router = router
        self._module = module

    def make(self, groups: Groups) -> list[dict[str, Any]]:
        """The routes. A group of one deployment without anything else keeps its name as a plain model."""
        fallbacks = self._fallbacks(groups)
        for group, members in groups.items():
            if len(members) == 1 and group not in fallbacks and members[0].timeout_s is None:
                members[0].entry["name"] = members[0].name = group
        routes = [
            self._route(group, members, self._successors(fallbacks.get(group, ()), members, groups))
            for group, members in groups.items()
            if members[0].name != group
        ]
        return routes + self._aliases(groups)

    def _route(
        self, group: str, members: Sequence[Deployment], successors: list[dict[str, Any]]
    ) -> dict[str, Any]:
        route: dict[str, Any] = {"name": group}
        if len(members) == 1:
            route["model"] = members[0].name
        else:
            route["targets"] = _targets(members)
            prefer = STRATEGIES.get(str(self._router.get("routing_strategy")), "weight")
            if prefer == "cost" and not all(member.price for member in members):
                self._notes.leave(f"routing_strategy of {group}: without prices nothing is cheaper.")
            elif prefer != "weight":
                route["prefer"] = prefer
        if successors:
            route["fallbacks"] = successors
        timeouts = [member.timeout_s for member in members if member.timeout_s is not None]
        if timeouts:
            route["request_timeout_s"] = max(timeouts)
        return route

    def _successors(
        self, wanted: Sequence[tuple[str, list[str] | None]], members: Sequence[Deployment], groups: Groups
    ) -> list[dict[str, Any]]:
        """Each deployment of the groups that take over, once, with all its causes."""
        listed: dict[str, list[str] | None] = {}
        for target, causes in wanted:
            for member in groups[target]:
                if member in members:
                    continue
                known = listed.setdefault(member.name, causes)
                if known != causes:
                    both = [*(known or _TRANSIENT), *(causes or _TRANSIENT)]
                    listed[member.name] = list(dict.fromkeys(both))
        return [{"model": name, **({"on": causes} if causes else {})} for name, causes in listed.items()]

    def _fallbacks(self, groups: Groups) -> dict[str, list[tuple[str, list[str] | None]]]:
        found: dict[str, list[tuple[str, list[str] | None]]] = {}
        for kind, causes in _KINDS.items():
            for group, target in (*_pairs(self._module.get(kind)), *_pairs(self._router.get(kind))):
                if group in groups and target in groups:
                    found.setdefault(group, []).append((target, causes))
                else:
                    self._notes.leave(f"{kind}: {group} to {target} names a model that was not carried over.")
        for section in (self._module, self._router):
            if section.get("default_fallbacks"):
                self._notes.leave("default_fallbacks: write the fallbacks of each route.")
        return found

    def _aliases(self, groups: Groups) -> list[dict[str, Any]]:
        routes = []
        for alias, value in mapping(self._router.get("model_group_alias")).items():
            target = value.get("model") if isinstance(value, dict) else value
            if isinstance(target, str) and target in groups and groups[target][0].name == target:
                routes.append({"name": alias, "model": target})
            else:
                self._notes.leave(f"model_group_alias {alias}: copy the route that it leads to.")
        return routes


def _targets(members: Sequence[Deployment]) -> list[dict[str, Any]]:
    """Shares as they are, or in proportion where they are larger than ours may be; priorities from 0 on."""
    order = sorted({member.priority for member in members})
    scale = min(1.0, MAX_WEIGHT / max(member.weight for member in members))
    targets = []
    for member in members:
        target: dict[str, Any] = {"model": member.name}
        weight = max(1, round(member.weight * scale))
        if weight != 1:
            target["weight"] = weight
        if priority := order.index(member.priority):
            target["priority"] = min(priority, MAX_PRIORITY)
        targets.append(target)
    return targets


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    """`[{group: [target, …]}, …]`, flat."""
    for item in value if isinstance(value, list) else ():
        for group, targets in mapping(item).items():
            for target in targets if isinstance(targets, list) else ():
                yield str(group), str(mapping(target).get("model", target))
