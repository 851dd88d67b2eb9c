"""hub.yaml text → `Spec`, or one `SetupError` that names every problem with its line and column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from inferhub.core.errors import SetupError
from inferhub.core.fleet import Placement
from inferhub.core.models import ModelSpec
from inferhub.core.scheduling import Scheduling, Weights
from inferhub.core.tenancy import Issuer, Role
from inferhub.core.traffic import Cause, Route
from inferhub.core.usage import Price
from inferhub.settings.nearest import did_you_mean
from inferhub.settings.spec.entry import MAX_SECONDS
from inferhub.settings.spec.prices import load_prices, repeated
from inferhub.settings.spec.reader import Document, Path, read
from inferhub.settings.spec.references import expand
from inferhub.settings.spec.routes import check_route_names, check_routes, load_route
from inferhub.settings.spec.scheduler import (
    MAX_REGIONS,
    MAX_TERM_WEIGHT,
    SchedulerEntry,
    WeightsEntry,
    load_scheduling,
)
from inferhub.settings.spec.types import (
    MAX_ENTRIES,
    MAX_ISSUERS,
    MAX_PRIORITY,
    MAX_TARGETS,
    MAX_USD,
    MAX_WEIGHT,
    NAME_HELP,
    USD_DECIMALS,
    FallbackEntry,
    IssuerEntry,
    ModelEntry,
    PriceEntry,
    RouteEntry,
    SpecFile,
    SpillEntry,
    TargetEntry,
)

CheckModel = Callable[[ModelSpec], Mapping[str, str]]
"""Raises `SetupError` for what only a backend can know about its model. Returns options that the spec leaves
out → what they are then, such as `${VENDOR_API_KEY}`."""

Problems = list[tuple[Path, str]]

_ALLOWED = {
    "name": NAME_HELP,
    "model": NAME_HELP,
    "backend": "a backend's name",
    "weights": "a name from the weights index or a path",
    "device": "auto, cpu or cuda:N",
    "slots": "a whole number from 0 to 4096",
    "queue_limit": "a whole number from 0 to 100000",
    "load": "start or demand",
    "pinned": "true or false",
    "max_batch": "a whole number from 0 to 1024",
    "replicas": "a whole number from 0 to 1024",
    "labels": "a mapping of at most 16 names to values, of letters, digits and `. _ / -`",
    "options": "a mapping of the backend's own settings",
    "models": f"a list of at most {MAX_ENTRIES} models, each a mapping with a name",
    "routes": f"a list of at most {MAX_ENTRIES} routes, each a mapping with a name",
    "targets": f"a list of at most {MAX_TARGETS} models, each a name or a mapping with a model",
    "fallbacks": f"a list of at most {MAX_TARGETS} models, each a name or a mapping with a model",
    "weight": f"a whole number from 0 to {MAX_WEIGHT}",
    "priority": f"a whole number from 0 to {MAX_PRIORITY}",
    "on": f"a list of causes: {', '.join(Cause)}",
    "prefer": "weight, latency or cost",
    "spill": "a mapping with first_token_s",
    "affinity": "session",
    "resume": "true or false",
    **dict.fromkeys(
        (
            "idle_ttl_s",
            "first_token_s",
            "hedge_after_s",
            "first_token_timeout_s",
            "idle_timeout_s",
            "request_timeout_s",
        ),
        f"seconds, more than 0 and at most {MAX_SECONDS}",
    ),
    "prices": f"a list of at most {MAX_ENTRIES} prices, each a mapping with a model",
    "issuers": f"a list of at most {MAX_ISSUERS} issuers, each a mapping of issuer and audience",
    "issuer": "an address such as https://login.example.com/realms/main",
    "audience": "text of 1 to 200 characters",
    "tenant": "a tenant's id, ten_...",
    "project": "a project's id, prj_...",
    "role": "tenant_admin, enterprise or free",
    "from": "a date such as 2027-01-31",
    "scheduler": "a mapping, see the reference of hub.yaml",
    "scheduler.weights": "a mapping of terms to numbers",
    **dict.fromkeys(Weights.__dataclass_fields__, f"a number from 0 to {MAX_TERM_WEIGHT}"),
    "gate_s": f"seconds from 0 to {MAX_SECONDS}",
    "gate_factor": "a number from 1 to 1000",
    "sample": "a whole number from 1 to 256",
    "explore": "a share from 0 to 1",
    "region_policy": "any, near or own",
    "near_regions": f"a mapping of at most {MAX_REGIONS} regions to lists of regions",
    "gpus": f"a list of at most {MAX_REGIONS} kinds of GPU",
}
_ALLOWED_PRICE = f"US dollars from 0 to {MAX_USD} with at most {USD_DECIMALS} decimals, such as '0.15'"


@dataclass(frozen=True, slots=True)
class Spec:
    """What to serve, checked as a whole."""

    models: tuple[ModelSpec, ...]
    routes: tuple[Route, ...] = ()
    prices: tuple[Price, ...] = ()
    issuers: tuple[Issuer, ...] = ()
    price_places: tuple[str, ...] = ()
    """`FILE:LINE:COLUMN` of each price, for what only its time can tell about it."""
    placements: Mapping[str, Placement] = field(default_factory=dict)
    """Model → where it runs, of those that say."""
    scheduler: Scheduling = field(default_factory=Scheduling)


def load_spec(
    text: str,
    *,
    env: Mapping[str, str],
    source: str = "hub.yaml",
    check_model: CheckModel | None = None,
) -> Spec:
    """Parse, expand references from `env`, and check; `source` is what errors call the text.

    Raises `SetupError` listing everything that is wrong. No message holds an expanded value.
    """
    problems: Problems = []
    document = read(text, lambda value: expand(value, env), problems, source)
    parsed = _parse(document, problems)
    _check_names(document.written, problems)
    models: tuple[ModelSpec, ...] = ()
    if parsed:
        models = tuple(_model(entry, i, problems) for i, entry in enumerate(parsed.models))
        if check_model:
            models = tuple(_checked(model, i, problems, check_model, env) for i, model in enumerate(models))
        problems += repeated(parsed.prices) + check_routes(parsed)
    if problems or parsed is None:
        raise SetupError(_message(source, document, problems))
    routes = tuple(map(load_route, parsed.routes))
    issuers = tuple(map(_issuer, parsed.issuers))
    prices = load_prices(parsed.prices)
    places = [f"{source}:{_mark(('prices', i, 'from'), document)}" for i in range(len(prices))]
    placements = {
        entry.name: Placement(entry.replicas, entry.labels)
        for entry in parsed.models
        if entry.replicas or entry.labels
    }
    scheduling = load_scheduling(parsed.scheduler)
    return Spec(models, routes, prices, issuers, tuple(places), placements, scheduling)


def _parse(document: Document, problems: Problems) -> SpecFile | None:
    if not isinstance(document.expanded, dict):
        problems.append(((), "must be a mapping with the key 'models'"))
        return None
    try:
        return SpecFile.model_validate(document.expanded)
    except ValidationError as error:
        told = {path for path, _ in problems}  # a reference that cannot be replaced is one problem, not two
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            if detail["loc"] not in told:
                problems.append(_translate(detail["loc"], detail["type"], document.written))
        return None


def _translate(loc: Path, kind: str, written: Any) -> tuple[Path, str]:
    """pydantic's error in our words, with the value as written: the expanded one may be a secret."""
    if kind == "extra_forbidden":
        keys = _keys_at(loc)
        return loc, f"unknown key {loc[-1]!r}.{did_you_mean(str(loc[-1]), keys)} Allowed: {', '.join(keys)}"
    if kind == "missing":
        return loc[:-1], f"the key {loc[-1]!r} is missing"
    value = written
    for step in loc:
        if type(value) not in (dict, list):
            break  # a name alone, which stands for a mapping
        value = value[step]
    names = [step for step in loc if isinstance(step, str)]
    for own in {"labels", "near_regions"}.intersection(names):  # their own keys are the operator's
        loc = loc[: loc.index(own) + 1]
        names = names[: names.index(own) + 1]
    label = names[-1] if isinstance(loc[-1], str) else f"an entry of {names[-1]}"
    shown = repr(value) if isinstance(value, str | int | float | None) else _kind_of(value)
    quote = (
        "; put it in quotes" if isinstance(value, bool | int | float) and label in ("name", "model") else ""
    )
    allowed = _ALLOWED.get(".".join(names[-2:])) or _ALLOWED.get(names[-1], _ALLOWED_PRICE)
    return loc, f"{label} cannot be {shown[:100]}; allowed: {allowed}{quote}"


_OWNERS: dict[str, type[BaseModel]] = {
    "models": ModelEntry,
    "routes": RouteEntry,
    "targets": TargetEntry,
    "fallbacks": FallbackEntry,
    "spill": SpillEntry,
    "prices": PriceEntry,
    "issuers": IssuerEntry,
    "scheduler": SchedulerEntry,
    "weights": WeightsEntry,
}


def _keys_at(loc: Path) -> list[str]:
    names = [step for step in loc[:-1] if isinstance(step, str)]
    owner = _OWNERS.get(names[-1], SpecFile) if names else SpecFile
    return [field.alias or name for name, field in owner.model_fields.items()]


def _kind_of(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list"


def _check_names(tree: Any, problems: Problems) -> None:
    """On the raw tree, so that these are told together with every other problem."""
    first_use: dict[str, str] = {}
    models: list[str] = []
    for section in ("models", "routes"):
        for i, name in _names(tree, section):
            if name in first_use:
                taken = f"the name {name!r} is taken by {first_use[name]}; names must differ"
                problems.append(((section, i, "name"), taken))
            else:
                first_use[name] = f"{section}[{i}]"
            if section == "models":
                models.append(name)
    routes = [name for _, name in _names(tree, "routes")]
    problems += check_route_names(tree.get("routes") if isinstance(tree, dict) else None, models, routes)
    for i, target in _names(tree, "prices", "model"):
        if target in models:
            continue
        hint = did_you_mean(target, models)
        known = f" Models: {', '.join(models[:20])}" if models else ""
        if target in routes:
            hint, known = " It is a route; name the models that it leads to", ""
        problems.append((("prices", i, "model"), f"unknown model {target!r}.{hint}{known}"))


def _names(tree: Any, section: str, key: str = "name") -> list[tuple[int, str]]:
    entries = tree.get(section) if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        return []
    found = [(i, entry.get(key)) for i, entry in enumerate(entries) if isinstance(entry, dict)]
    return [(i, name) for i, name in found if isinstance(name, str)]


def _model(entry: ModelEntry, index: int, problems: Problems) -> ModelSpec:
    backend = entry.backend or _deduce_backend(entry)
    if backend is None:
        reason = f"model {entry.name!r} names no backend, and none can be deduced from its weights or options"
        problems.append((("models", index), reason))
    return ModelSpec(
        name=entry.name,
        backend=backend or "",
        weights=entry.weights,
        device=entry.device,
        slots=entry.slots,
        queue_limit=entry.queue_limit,
        options=entry.options,
        load=entry.load,
        pinned=entry.pinned,
        idle_ttl_s=entry.idle_ttl_s,
        max_batch=entry.max_batch,
    )


def _checked(
    model: ModelSpec, index: int, problems: Problems, check: CheckModel, env: Mapping[str, str]
) -> ModelSpec:
    """The model with the options that its backend takes from the environment."""
    if not model.backend:
        return model
    try:
        left_out = check(model)
        for option, reference in left_out.items():
            try:
                model = replace(model, options={**model.options, option: expand(reference, env)})
            except ValueError as error:
                problems.append((("models", index, "options"), f"{option!r} is missing, and {error}"))
                return model
        if left_out:
            check(model)
    except SetupError as error:
        path: Path = ("models", index, error.param) if error.param else ("models", index)
        problems.append((path, error.message))
    return model


def _issuer(entry: IssuerEntry) -> Issuer:
    role = Role(entry.role) if entry.role else None
    return Issuer(entry.issuer, entry.audience, entry.tenant, entry.project, role)


def _deduce_backend(entry: ModelEntry) -> str | None:
    if entry.weights and entry.weights.lower().endswith(".gguf"):
        return "llamacpp"
    return "openai_compatible" if {"base_url", "vendor"} & entry.options.keys() else None


def _message(source: str, document: Document, problems: Problems) -> str:
    lines = [f"{source}:{_mark(path, document)}: {_sentence(text)}" for path, text in problems]
    lines.sort(key=lambda line: [int(part) for part in line[len(source) + 1 :].split(":", 2)[:2]])
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} problems in {source}:\n" + "\n".join(f"- {line}" for line in lines)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."


def _mark(path: Path, document: Document) -> str:
    while path and path not in document.marks:
        path = path[:-1]
    return document.marks.get(path, "1:1")
