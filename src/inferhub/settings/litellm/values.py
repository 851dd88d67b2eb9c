"""What both halves of the import share: careful looks at values of any shape, and notes of what was lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_ENVIRONMENT = "os.environ/"


@dataclass(slots=True)
class Notes:
    """Grows while a file is read."""

    left_out: list[str] = field(default_factory=list)
    variables: dict[str, None] = field(default_factory=dict)

    def leave(self, what: str) -> None:
        self.left_out.append(what)

    def variable(self, name: str) -> str:
        """A reference to it."""
        self.variables[name] = None
        return f"${{{name}}}"

    def reference(self, value: str) -> str:
        """Their reference in our words; any other text so that it is taken as it stands."""
        if value.startswith(_ENVIRONMENT):
            return self.variable(value.removeprefix(_ENVIRONMENT))
        return value.replace("${", "$${")

    def secret(self, where: str, variable: str, value: str) -> str:
        """A reference, also where the file has it in clear."""
        if value.startswith(_ENVIRONMENT):
            return self.reference(value)
        self.leave(f"{where}: a secret in clear was not copied; set the variable {variable}.")
        return self.variable(variable)


@dataclass(slots=True)
class Deployment:
    """One entry of their `model_list`, as one of our models."""

    group: str
    """Their public name, which several deployments may share."""
    name: str
    entry: dict[str, Any]
    weight: int = 1
    priority: int = 0
    price: dict[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A positive number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value < float("inf") else None
