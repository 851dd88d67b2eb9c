"""`prefix`: how much of the prompt an endpoint has read already, so that its engine may skip it."""

from __future__ import annotations

from collections.abc import Mapping

from inferhub.routing.prefix import share


def terms(held: Mapping[str, int], total: int) -> tuple[float | None, Mapping[str, float]]:
    """(everybody's term, that of those who differ). `held` says how many of the `total` hashes of a prompt
    an endpoint has; a prompt that is too short to have any says nothing about anybody."""
    if not total:
        return None, {}
    return 0.0, {id_: share(matched, total) for id_, matched in held.items()}
