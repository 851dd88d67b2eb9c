"""The checks of `doctor`: each looks at one thing and yields what it found, with the remedy.

A check never raises: what goes wrong inside it is its finding. None changes anything.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Mapping
from typing import Any

from inferhub import __version__
from inferhub.cli._context import load, local_address, open_catalog, read_text, server_address, server_key
from inferhub.cli._errors import REMEDIES
from inferhub.cli._findings import Finding, Status, bad
from inferhub.cli._output import megabytes
from inferhub.cli._store_checks import look_at, sqlite_path, stores
from inferhub.core.errors import InferHubError, ServerUnreachable
from inferhub.core.tenancy import Role
from inferhub.settings import Loaded, Settings
from inferhub.settings.spec import Spec, default_spec
from inferhub.stores.catalog.pepper import load_pepper, pepper_file

FREE_DISK_BYTES = 500 * 1000**2
SERVER_TIMEOUT_S = 10.0


async def examine(flags: Mapping[str, Any], url: str | None, key: str | None) -> list[Finding]:
    """Everything that can be found out, in an order in which it makes sense to mend it."""
    where = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    findings = [Finding("version", "ok", f"InferHub {__version__}, {where}")]
    try:
        loaded = load(flags)
    except InferHubError as error:
        return [*findings, Finding("settings", "problem", error.message, "Mend the place it names.")]
    findings.append(Finding("settings", "ok", f"{_changed(loaded)} differ from the defaults"))
    findings += [finding async for finding in _catalog_and_spec(loaded)]
    findings += await stores(loaded.settings)
    findings += _engines()
    findings += _devices(loaded.settings)
    findings += _disk(loaded)
    findings += _descriptors(loaded)
    findings += _ports(loaded, holder=await _version_at(local_address(loaded.settings)))
    return findings + await _server(loaded, url, key)


def _changed(loaded: Loaded) -> str:
    changed = [name for name, origin in loaded.origins.items() if origin != "default"]
    return f"{len(changed)} of {len(loaded.origins)}" + (f" ({', '.join(changed)})" if changed else "")


async def _catalog_and_spec(loaded: Loaded) -> AsyncIterator[Finding]:
    settings = loaded.settings
    text, source = None, "hub.yaml"
    path = sqlite_path(settings.catalog_url)
    if path is not None and not path.exists():
        yield Finding("pepper", *_pepper(settings, is_new=True))
        yield Finding(
            "catalog", "note", f"{settings.catalog_url} does not exist yet; the first start makes it"
        )
    else:
        pepper = Finding("pepper", *_pepper(settings, is_new=False))
        yield pepper
        try:
            async with open_catalog(settings) as catalog:
                if pepper.status == "ok":
                    await catalog.check_pepper(load_pepper(settings))
                keys = [key for key in await catalog.keys() if key.revoked_at is None]
                stored = await catalog.spec()
        except InferHubError as error:
            yield bad("catalog", error)
        else:
            admins = sum(key.role is Role.ADMIN for key in keys)
            engine = (await look_at("catalog_url", settings.catalog_url)).text
            yield Finding("catalog", "ok", f"{engine}; {len(keys)} valid keys, {admins} of them admin")
            if stored:
                text, source = stored.text, f"applied spec, revision {stored.revision}"
    for finding in _spec(loaded, text, source):
        yield finding


def _pepper(settings: Settings, *, is_new: bool) -> tuple[Status, str, str | None]:
    """Never makes one: beside a catalog that has keys, a new one would shut them all out."""
    if settings.pepper is not None:
        return "ok", "given by the settings", None
    path = settings.data_dir / "pepper"
    if not path.exists():
        if is_new:
            return "note", f"{path} does not exist yet; the first start makes it", None
        return (
            "problem",
            f"{path} is missing, so no API key can be recognised",
            "Restore it from a backup, or set INFERHUB_PEPPER_FILE; otherwise every key has to be made anew.",
        )
    try:
        pepper_file(path)
    except InferHubError as error:
        return "problem", error.message, "Mend what the message names."
    return "ok", f"{path}, readable by its owner only", None


def _spec(loaded: Loaded, stored: str | None, source: str) -> list[Finding]:
    from inferhub.cli.apply import check

    try:
        if loaded.settings.spec_file:
            source = str(loaded.settings.spec_file)
            spec = check(loaded, read_text(loaded.settings.spec_file), source)
        elif stored is not None:
            spec = check(loaded, stored, source)
        else:
            spec, source = default_spec(), "built-in spec"
    except InferHubError as error:
        return [
            bad("spec", error, "Mend the lines it names; `inferhub apply --dry-run -f FILE` checks again.")
        ]
    names = ", ".join(model.name for model in spec.models) or "no models"
    return [Finding("spec", "ok", f"{source}: {names}"), *_models(loaded, spec)]


def _models(loaded: Loaded, spec: Spec) -> list[Finding]:
    """Weights of the spec by every byte, and whether its devices are there."""
    from inferhub.backends import backend_class
    from inferhub.hosting import open_weights
    from inferhub.telemetry.resources import choose_device
    from inferhub.worker.host import load_of

    weights = open_weights(loaded.settings)
    findings = []
    for model in spec.models:
        name = f"model {model.name}"
        try:
            if model.weights in weights.names:
                weights.verify(model.weights)
            path = weights.resolve(model.weights) if model.weights else model.backend
            backend = backend_class(model.backend)
            where = "remote" if backend.remote else f"on {choose_device(model.device)}"
            if load_of(backend, model) == "demand":
                where += ", loaded on demand"
        except InferHubError as error:
            findings.append(bad(name, error))
        else:
            findings.append(Finding(name, "ok", f"{path}, {where}"))
    return findings


def _engines() -> list[Finding]:
    """Every backend that is installed; what cannot be imported is named with its reason."""
    from inferhub.backends import backend_class, backend_names
    from inferhub.modalities import modalities

    usable, findings = [], []
    for name in backend_names():
        try:
            backend_class(name)
        except (InferHubError, ImportError, AttributeError) as error:
            remedy = "Install its extra, for example `pip install inferhub[local]`."
            findings.append(Finding(f"backend {name}", "note", f"cannot be used: {error}", remedy))
        else:
            usable.append(name)
    kinds = ", ".join(modalities())
    return [Finding("backends", "ok", f"{', '.join(usable)}; modalities: {kinds}"), *findings]


def _devices(settings: Settings) -> list[Finding]:
    from inferhub.hosting import memory_budget_bytes
    from inferhub.telemetry.resources import cuda_problem, devices

    found = [
        Finding(
            f"device {device.id}",
            "ok",
            f"{device.name}, {megabytes(device.memory_free_bytes)} of "
            f"{megabytes(device.memory_total_bytes)} free",
        )
        for device in devices()
    ]
    budget = megabytes(memory_budget_bytes(settings))
    found.append(Finding("memory budget", "ok", f"{budget} for models; `memory_budget_bytes` changes it"))
    if len(found) == 2 and (reason := cuda_problem()):
        found.append(Finding("CUDA", "note", f"no device: {reason}", "Only needed to use an NVIDIA GPU."))
    return found


def _disk(loaded: Loaded) -> list[Finding]:
    from inferhub.telemetry.resources import disk_free_bytes

    findings = []
    for setting in ("data_dir", "cache_dir"):
        folder = getattr(loaded.settings, setting)
        try:
            free = disk_free_bytes(folder)
        except InferHubError as error:
            findings.append(bad(f"disk of {setting}", error))
            continue
        is_full = free < FREE_DISK_BYTES
        remedy = f"Free some space, or move it: --{setting.replace('_', '-')} PATH." if is_full else None
        text = f"{folder}: {megabytes(free)} free"
        findings.append(Finding(f"disk of {setting}", "problem" if is_full else "ok", text, remedy))
    return findings


def _descriptors(loaded: Loaded) -> list[Finding]:
    from inferhub.cli._descriptors import descriptors

    max_inflight = loaded.settings.max_inflight
    found = descriptors(max_inflight)
    text = f"{found.allowed} allowed, {found.needed} needed for max_inflight = {max_inflight}"
    if found.is_enough:
        return [Finding("file descriptors", "ok", text)]
    remedy = f"Set max_inflight to {found.calls}, or have the hard limit of `ulimit -n` raised."
    return [Finding("file descriptors", "problem", text, remedy)]


async def _version_at(address: str) -> str | None:
    """Of the InferHub that answers there, if one does."""
    from inferhub.client import Client, Timeouts

    try:
        async with asyncio.timeout(SERVER_TIMEOUT_S), Client(address, timeouts=Timeouts(1, 2)) as client:
            return await client.version()
    except (InferHubError, TimeoutError):
        return None


def _ports(loaded: Loaded, *, holder: str | None) -> list[Finding]:
    """A port that our own server has is as good as a free one."""
    from inferhub.telemetry.ports import listen

    settings = loaded.settings
    findings = []
    for setting, host, port in (
        ("port", settings.host, settings.port),
        ("metrics_port", settings.metrics_host, settings.metrics_port),
    ):
        try:
            listen(host, port, setting=setting).close()
        except InferHubError as error:
            if holder is not None and error.code == "port_taken":
                findings.append(
                    Finding(setting, "ok", f"{host}:{port} is taken while InferHub {holder} runs")
                )
            elif setting == "metrics_port" and error.code == "port_taken":
                findings.append(Finding(setting, "note", f"{error.message} The next free one will be used."))
            else:
                findings.append(bad(setting, error))
        else:
            findings.append(Finding(setting, "ok", f"{host}:{port} is free"))
    return findings


async def _server(loaded: Loaded, url: str | None, key: str | None) -> list[Finding]:
    from inferhub.client import Client, Timeouts

    try:
        address = server_address(loaded, url)
        known_key = server_key(loaded, key)
        async with (
            asyncio.timeout(SERVER_TIMEOUT_S),
            Client(address, known_key, timeouts=Timeouts(3, 5)) as client,
        ):
            return [finding async for finding in _running(client, address, has_key=known_key is not None)]
    except ServerUnreachable as error:
        wanted = url is not None or "OPENAI_BASE_URL" in loaded.environment
        return [Finding("server", "problem" if wanted else "note", error.message, REMEDIES[error.code])]
    except InferHubError as error:
        return [bad("server", error)]
    except TimeoutError:
        return [
            Finding(
                "server",
                "problem",
                f"{address} does not answer within {SERVER_TIMEOUT_S:g} s",
                "Look into its log.",
            )
        ]


async def _running(client: Any, address: str, *, has_key: bool) -> AsyncIterator[Finding]:
    version = await client.version()
    yield Finding("server", "ok", f"InferHub {version} at {address}")
    state = await client.ready()
    if state.get("ready"):
        yield Finding("readiness", "ok", "every model is ready")
    else:
        detail = ", ".join(f"{name}: {value}" for name, value in state.items() if name != "ready")
        yield Finding(
            "readiness", "problem", f"not ready: {detail}", "Wait for models that load; see its log."
        )
    if not has_key:
        yield Finding("key", "note", "no key given, so the rest is not asked", REMEDIES["invalid_api_key"])
        return
    try:
        models = await client.models()
    except InferHubError as error:
        yield bad("key", error)
        return
    yield Finding("key", "ok", f"accepted; models: {', '.join(card.id for card in models) or 'none'}")
