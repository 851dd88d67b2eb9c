"""`session`: whether the call's session belongs to an endpoint, by a hash that every gateway shares."""

from __future__ import annotations

from collections.abc import Mapping


def terms(owner: str | None) -> tuple[float | None, Mapping[str, float]]:
    """(everybody's term, that of those who differ); a call without a session says nothing about anybody."""
    return (None, {}) if owner is None else (0.0, {owner: 1.0})
