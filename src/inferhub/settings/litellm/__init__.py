"""A LiteLLM proxy's `config.yaml` → a `hub.yaml`, and every thing that was not carried over, by name.

Pure: text in, text out. Called by `inferhub config import`. Keys that stand in the file in clear are not
copied: the new file names a variable instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from inferhub.core.errors import SetupError
from inferhub.settings.litellm.models import Models
from inferhub.settings.litellm.routes import STRATEGIES, Routes
from inferhub.settings.litellm.values import Deployment, Notes, mapping
from inferhub.settings.spec.reader import Path, read

__all__ = ["Imported", "import_litellm"]

_HANDLED = {
    "model_group_alias",
    "fallbacks",
    "context_window_fallbacks",
    "content_policy_fallbacks",
    "default_fallbacks",
}
_HINTS = {
    "master_key": "the first start of InferHub prints an admin key",
    "database_url": "set catalog_url",
    "num_retries": "set max_attempts",
    "request_timeout": "set request_timeout_s",
    "timeout": "set request_timeout_s, or a route's",
    "redis_host": "set counters_url and cache_url",
    "redis_url": "set counters_url and cache_url",
    "cache": "the answer cache is on for what is deterministic; set cache_url to share it",
    "drop_params": "unknown parameters are always ignored and named in x-inferhub-ignored-params",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file."""

    text: str
    """The `hub.yaml`."""
    left_out: tuple[str, ...]
    """One sentence for each thing that it says otherwise, or not at all."""
    variables: tuple[str, ...]
    """That have to be set before it can be used."""


def import_litellm(text: str, source: str = "config.yaml") -> Imported:
    """Raises `SetupError` where the text is no LiteLLM configuration, or nothing of it can be carried."""
    problems: list[tuple[Path, str]] = []
    tree = read(text, lambda value: value, problems, source).written
    if problems:
        raise SetupError(f"{source}: {problems[0][1]}.")
    if not isinstance(tree, dict) or not isinstance(tree.get("model_list"), list):
        raise SetupError(f"{source} has no 'model_list': it is not a LiteLLM configuration.")
    notes = Notes()
    models = Models(notes)
    found = [model for i, entry in enumerate(tree["model_list"]) if (model := models.read(i, entry))]
    if not found:
        reasons = " ".join(notes.left_out[:5])
        raise SetupError(f"{source}: nothing of its 'model_list' can be carried over. {reasons}".strip())
    groups: dict[str, list[Deployment]] = {}
    for model in found:
        groups.setdefault(model.group, []).append(model)
    router, module = mapping(tree.get("router_settings")), mapping(tree.get("litellm_settings"))
    routes = Routes(notes, router, module).make(groups)
    _name_the_rest(tree, notes)
    spec: dict[str, Any] = {"models": [model.entry for model in found]}
    if routes:
        spec["routes"] = routes
    if prices := [{"model": model.name, **model.price} for model in found if model.price]:
        spec["prices"] = prices
    body = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100)
    return Imported(body, tuple(notes.left_out), tuple(notes.variables))


def _name_the_rest(tree: dict[str, Any], notes: Notes) -> None:
    """What is set elsewhere, so that nobody misses it only in production."""
    for section in sorted(tree.keys() - {"model_list"}):
        for name, value in sorted(mapping(tree[section]).items()):
            if name == "routing_strategy":
                if str(value) not in STRATEGIES:
                    notes.leave(f"routing_strategy {value!r}: the least busy endpoint is taken by itself.")
            elif name not in _HANDLED:
                notes.leave(f"{section}.{name}: {_HINTS.get(name, 'it has no counterpart in hub.yaml')}.")
