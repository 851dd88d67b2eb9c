"""Settings as JSON has them, for a process that another one starts and that must run with the very same ones.

Written by the supervisor and by launchers of workers. Holds secrets in clear: it goes through a pipe that
nobody else can read, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from inferhub.settings.loader import Loaded
from inferhub.settings.model import SECRETS, Settings


def plain_settings(loaded: Loaded) -> dict[str, object]:
    values: dict[str, object] = loaded.settings.model_dump(mode="json")
    for name in SECRETS:
        secret = getattr(loaded.settings, name)
        values[name] = None if secret is None else secret.get_secret_value()
    return values


def from_plain(
    settings: Mapping[str, object], origins: Mapping[str, str], environment: Mapping[str, str]
) -> Loaded:
    """On the other side. Raises `ValueError` for settings of another release."""
    return Loaded(
        Settings.model_validate(dict(settings)),
        MappingProxyType(dict(origins)),
        MappingProxyType(dict(environment)),
    )
