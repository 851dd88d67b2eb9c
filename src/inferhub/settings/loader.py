"""The one loader: defaults < inferhub.toml < .env < environment < flags, each value with its origin.

Called once per process, by assembly or a CLI verb. Raises one `SetupError` that names every problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr, ValidationError

from inferhub.core.errors import SetupError
from inferhub.settings.describe import allowed_values
from inferhub.settings.model import SECRETS, Settings
from inferhub.settings.sources import (
    Given,
    read_dotenv,
    read_flags,
    read_toml,
    read_variables,
    resolve_secret_files,
)

DEFAULT_FILE = "inferhub.toml"
_SECRET_OPTION = re.compile(r"([?&][^=&\s]*(?:pass|secret|token|key)[^=&\s]*=)[^&\s]*", re.IGNORECASE)
"""In the query of an address, such as `?password=`."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and where each came from."""

    settings: Settings
    origins: Mapping[str, str]
    """Every setting's name → `default`, `inferhub.toml:3`, `.env:2`, `env INFERHUB_PORT`, `flag --port`."""
    environment: Mapping[str, str] = field(repr=False)
    """The environment over `.env`: for references in a spec and keys of vendors. Holds secrets."""

    def explain(self) -> list[tuple[str, str, str]]:
        """(name, value as it may be shown, origin) of every setting, in the order of the reference."""
        return [(name, shown(self.settings, name), self.origins[name]) for name in Settings.model_fields]


def shown(settings: Settings, name: str) -> str:
    """A setting's value for people: secrets as `***`, no password inside an address."""
    value = getattr(settings, name)
    if isinstance(value, SecretStr):
        return "***"
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    # Up to the last `@`: a password may hold `/`, `?` and `@` where somebody forgot to encode them.
    without_user = re.sub(r"(?<=://)\S*@", "***@", str(value))
    return _SECRET_OPTION.sub(r"\1***", without_user)


def load_settings(flags: Mapping[str, Any], *, env: Mapping[str, str], cwd: Path) -> Loaded:
    """Read all sources. `flags` maps setting names to values, None where a flag was not given.

    Raises `SetupError` listing everything that is wrong, each with its place and what is allowed.
    """
    problems: list[str] = []
    dotenv = read_dotenv(cwd / ".env", problems) if (cwd / ".env").is_file() else {}
    from_dotenv = {name: (value, f".env:{line}") for name, (value, line) in dotenv.items()}
    from_env = {name: (value, f"env {name}") for name, value in env.items()}
    given = [
        *read_variables(from_dotenv, cwd, problems),
        *read_variables(from_env, cwd, problems),
        *read_flags(flags, cwd, problems),
    ]
    given = resolve_secret_files(_read_file(given, cwd, problems) + given, problems)

    chosen = {item.name: item for item in given}  # later ones win
    settings = _validate(chosen, problems)
    if problems or settings is None:
        raise SetupError(_message(problems))
    origins = {name: chosen[name].origin if name in chosen else "default" for name in Settings.model_fields}
    environment = {name: value for name, (value, _) in dotenv.items()} | dict(env)
    return Loaded(settings, MappingProxyType(origins), MappingProxyType(environment))


def _read_file(given: list[Given], cwd: Path, problems: list[str]) -> list[Given]:
    asked = [str(item.value) for item in given if item.name == "config"]
    if asked:
        return read_toml(cwd / Path(asked[-1]).expanduser(), asked[-1], problems)
    if (cwd / DEFAULT_FILE).exists():
        return read_toml(cwd / DEFAULT_FILE, DEFAULT_FILE, problems)
    return []


def _validate(chosen: Mapping[str, Given], problems: list[str]) -> Settings | None:
    values = {name: _absolute(item) for name, item in chosen.items()}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        seen: set[str] = set()
        for detail in error.errors(include_url=False, include_context=False):
            if not detail["loc"]:  # a check across settings
                problems.append(detail["msg"].removeprefix("Value error, ") + ".")
                continue
            name = str(detail["loc"][0])
            # A default made from a refused setting fails too, and is not in `chosen`.
            if name in chosen and name not in seen:
                seen.add(name)
                problems.append(_describe(chosen[name]))
        return None


def _absolute(item: Given) -> Any:
    """Paths become absolute here, so that nothing later depends on the working directory."""
    if not isinstance(item.value, str | Path) or not _is_path(item.name):
        return item.value
    return Path.absolute(item.folder / Path(item.value).expanduser())


def _is_path(name: str) -> bool:
    annotation = Settings.model_fields[name].annotation
    return annotation is Path or annotation == Path | None


def _describe(item: Given) -> str:
    allowed = allowed_values(item.name)
    if item.name in SECRETS:
        return f"{item.origin}: {item.name} is not usable; allowed: {allowed}."
    value = repr(item.value)
    value = value if len(value) <= 80 else value[:77] + "..."
    return f"{item.origin}: {item.name} cannot be {value}; allowed: {allowed}."


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems in the settings:\n" + "\n".join(f"- {p}" for p in problems)
