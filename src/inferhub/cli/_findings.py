"""What a check of `doctor` found, with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inferhub.cli._errors import REMEDIES
from inferhub.core.errors import InferHubError

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    status: Status
    text: str
    remedy: str | None = None


def bad(name: str, error: InferHubError, remedy: str | None = None) -> Finding:
    return Finding(name, "problem", error.message, remedy or REMEDIES.get(error.code) or _READ_IT)


_READ_IT = "Mend what the message names."
