"""Turns bytes that clients send into samples and pixels, and back, never in the process that serves.

Used by pipeline, backends, worker and gateway. `MediaPool` keeps child processes with limits on memory,
time and size, which alone import decoders; what is said about bytes without decoding them (`sniff`,
`inspect_image`, `strip`) is cheap and pure.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferhub.media.kinds import sniff
    from inferhub.media.lengths import longest_ms, probe_duration_ms
    from inferhub.media.limits import Effects, MediaLimits, Picture
    from inferhub.media.metadata import ImageHead, inspect_image, strip
    from inferhub.media.pool import MediaPool
    from inferhub.media.wav import wav_header

__all__ = [
    "Effects",
    "ImageHead",
    "MediaLimits",
    "MediaPool",
    "Picture",
    "inspect_image",
    "longest_ms",
    "probe_duration_ms",
    "sniff",
    "strip",
    "wav_header",
]

_HOMES = {
    "Effects": "limits",
    "ImageHead": "metadata",
    "MediaLimits": "limits",
    "MediaPool": "pool",
    "Picture": "limits",
    "inspect_image": "metadata",
    "longest_ms": "lengths",
    "probe_duration_ms": "lengths",
    "sniff": "kinds",
    "strip": "metadata",
    "wav_header": "wav",
}


def __getattr__(name: str) -> Any:
    """Load names on first use: the child, which is part of this package, must start quickly."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
