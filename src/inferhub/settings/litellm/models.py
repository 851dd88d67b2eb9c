"""Entries of a `model_list` → our models. Called by `import_litellm`; pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from inferhub.settings.litellm.values import Deployment, Notes, mapping, number

_VENDORS = {
    "openai": "openai",
    "text-completion-openai": "openai",
    "azure": "azure",
    "azure_text": "azure",
    "groq": "groq",
    "together_ai": "together",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "openrouter": "openrouter",
    "xai": "xai",
    "fireworks_ai": "fireworks",
    "hosted_vllm": "vllm",
    "vllm": "vllm",
    "ollama": "ollama",
    "ollama_chat": "ollama",
    "lm_studio": "lmstudio",
    "llamafile": "llamacpp_server",
    "huggingface": "tgi",
    "cohere": "cohere",
    "jina_ai": "jina",
}
"""Their prefix → our vendor row of the backend `openai_compatible`."""

_BACKENDS = {"anthropic": "anthropic", "gemini": "gemini"}
"""Their prefix → a backend of its own."""

_GUESSES = (
    (re.compile(r"(gpt-|o[1-9]|chatgpt|text-embedding-|omni-moderation)"), "openai"),
    (re.compile(r"claude-"), "anthropic"),
)
"""Names without a prefix."""

_MODES = {
    "chat",
    "completion",
    "embedding",
    "rerank",
    "moderation",
}
_NAME = re.compile(r"[^A-Za-z0-9._:/@-]+")
_VARIABLE = re.compile(r"[^A-Z0-9]+")
_READ_PARAMS = {
    "model",
    "api_base",
    "base_url",
    "api_key",
    "api_version",
    "weight",
    "order",
    "rpm",
    "timeout",
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "extra_headers",
    "organization",
}

_PRICES = {
    "input_cost_per_token": "input_per_mtok",
    "cache_read_input_token_cost": "cached_input_per_mtok",
    "output_cost_per_token": "output_per_mtok",
}


class Models:
    """Reads one entry after the other; knows which names are taken."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._names: Counter[str] = Counter()

    def read(self, index: int, given: Any) -> Deployment | None:
        """None, with a note, for what no backend of ours serves."""
        where = f"model_list[{index}]"
        entry = mapping(given)
        params, info = mapping(entry.get("litellm_params")), mapping(entry.get("model_info"))
        group, model = entry.get("model_name"), params.get("model")
        if not isinstance(group, str) or not isinstance(model, str):
            self._notes.leave(f"{where}: it has no 'model_name' or no 'litellm_params.model'.")
            return None
        where += f" ({group})"
        if "*" in group or "*" in model:
            self._notes.leave(f"{where}: a wildcard; name each model that should be served.")
            return None
        provider, upstream = _provider(model, params)
        options: dict[str, Any] = {}
        if provider in _BACKENDS:
            backend = _BACKENDS[provider]
        elif provider in _VENDORS:
            backend, options["vendor"] = "openai_compatible", _VENDORS[provider]
        elif not provider and _base(params):
            backend = "openai_compatible"
        else:
            self._notes.leave(f"{where}: there is no backend for {model!r}.")
            return None
        name = self._name(group, provider or "upstream")
        options |= self._options(where, provider, upstream, params)
        mode = info.get("mode")
        if isinstance(mode, str) and backend == "openai_compatible":
            if mode in _MODES:
                options["modalities"] = [mode]
            else:
                self._notes.leave(f"{where}: model_info.mode {mode!r} is not served by this backend.")
        for extra in sorted(params.keys() - _READ_PARAMS):
            self._notes.leave(f"{where}: litellm_params.{extra} has no counterpart.")
        order = params.get("order")
        return Deployment(
            group=_NAME.sub("-", group)[:128],
            name=name,
            entry={"name": name, "backend": backend, "options": options},
            weight=self._weight(where, params),
            priority=order if isinstance(order, int) and order >= 0 else 0,
            price=self._price(where, {**info, **params}),
            timeout_s=number(params.get("timeout")),
        )

    def _name(self, group: str, provider: str) -> str:
        """A name that no other deployment has; with its `@` it looks like no public one."""
        base = f"{_NAME.sub('-', group)[:100]}@{_NAME.sub('-', provider)}"
        self._names[base] += 1
        return base if self._names[base] == 1 else f"{base}-{self._names[base]}"

    def _options(self, where: str, provider: str, upstream: str, params: Mapping[str, Any]) -> dict[str, Any]:
        notes = self._notes
        variable = _VARIABLE.sub("_", (provider or "upstream").upper()).strip("_")
        options: dict[str, Any] = {"upstream_model": upstream}
        if base := _base(params):
            options["base_url"] = notes.reference(base)
        if provider.startswith("azure") and params.get("api_version") is not None:
            options["api_version"] = notes.reference(str(params["api_version"]))
        if isinstance(params.get("api_key"), str):
            options["api_key"] = notes.secret(where, f"{variable}_API_KEY", params["api_key"])
        headers = {
            str(name): notes.secret(where, _VARIABLE.sub("_", f"{variable}_{name}".upper()), str(value))
            for name, value in mapping(params.get("extra_headers")).items()
        }
        if isinstance(params.get("organization"), str):
            headers["openai-organization"] = notes.reference(params["organization"])
        if headers:
            options["headers"] = headers
        return options

    def _weight(self, where: str, params: Mapping[str, Any]) -> int:
        """Theirs takes requests a minute for a weight where there is none."""
        for name in ("weight", "rpm"):
            value = params.get(name)
            if value is None:
                continue
            share = number(value)
            if share is not None:
                return max(1, round(share))
            self._notes.leave(f"{where}: litellm_params.{name} is not a positive number.")
        return 1

    def _price(self, where: str, figures: Mapping[str, Any]) -> dict[str, Any]:
        price = {}
        for theirs, ours in _PRICES.items():
            value = figures.get(theirs)
            if value is None:
                continue
            try:
                amount = Decimal(str(value)).scaleb(6).normalize()
            except InvalidOperation:
                self._notes.leave(f"{where}: {theirs} is not a number.")
                continue
            price[ours] = f"{amount:f}"
        return price


def _base(params: Mapping[str, Any]) -> str:
    base = params.get("api_base") or params.get("base_url")
    return base if isinstance(base, str) else ""


def _provider(model: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """(their prefix, what the upstream calls the model). An OpenAI-like server by address has none."""
    given = params.get("custom_llm_provider")
    prefix, slash, rest = model.partition("/")
    if slash and (prefix in _VENDORS or prefix in _BACKENDS or not isinstance(given, str)):
        provider, name = prefix, rest
    elif isinstance(given, str):
        provider, name = given, model
    else:
        provider = next((vendor for pattern, vendor in _GUESSES if pattern.match(model)), "")
        name = model
    return ("" if provider == "openai" and _base(params) else provider), name
