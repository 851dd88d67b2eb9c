"""`${NAME}`, `${NAME:-default}` and `os.environ/NAME` in a spec's values → text. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from inferhub.settings.nearest import did_you_mean

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(r"(?P<escape>\$)?\$\{(?P<inside>[^}\n]*)\}")
_INSIDE = re.compile(rf"(?P<name>{_NAME})(?::-(?P<default>.*))?")
_WHOLE = re.compile(rf"os\.environ/(?P<name>{_NAME})")


def expand(text: str, env: Mapping[str, str]) -> str:
    """`text` with its references replaced from `env`; `$${` stands for a plain `${`.

    Raises `ValueError` naming a variable that is not set, or a reference that is not one.
    A default also replaces an empty value, as in a shell.
    """
    if whole := _WHOLE.fullmatch(text):
        return _lookup(whole["name"], env)

    def replace(match: re.Match[str]) -> str:
        if match["escape"]:
            return match[0][1:]
        inside = _INSIDE.fullmatch(match["inside"])
        if not inside:
            raise ValueError(f"{match[0]!r} is not a reference; write ${{NAME}} or ${{NAME:-default}}")
        if inside["default"] is not None:
            return env.get(inside["name"]) or inside["default"]
        return _lookup(inside["name"], env)

    if "${" in _REFERENCE.sub("", text):
        raise ValueError("a '${' is not closed; write ${NAME}, or $${...} for plain text")
    return _REFERENCE.sub(replace, text)


def _lookup(name: str, env: Mapping[str, str]) -> str:
    if name not in env:
        raise ValueError(f"environment variable {name} is not set.{did_you_mean(name, env)}")
    return env[name]
