"""What a call consumed. Backends report it, the gateway shows it, the ledger will bill it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call. `cached` is part of `input`, `reasoning` is part of `output`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: Literal["reported", "estimated", "unknown"] = "reported"
    """Who counted: the engine or vendor, InferHub, or nobody."""
