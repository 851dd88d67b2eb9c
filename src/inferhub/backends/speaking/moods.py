"""Emotion presets: a voice to lean to, a rate, a pitch and a loudness. Pure.

They are no model of emotion, and the documentation calls them presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferhub.modalities.speech import Emotion


@dataclass(frozen=True, slots=True)
class Mood:
    """What is changed against `neutral`."""

    speed: float = 1.0
    pitch_semitones: float = 0.0
    gain_db: float = 0.0
    lean: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Gender → (English voice, its share), for engines that can blend and texts that are English."""


MOODS: Mapping[Emotion, Mood] = {
    "neutral": Mood(),
    "happy": Mood(1.12, 2.0, 2.5, {"female": ("af_bella", 0.25), "male": ("am_puck", 0.25)}),
    "sad": Mood(0.84, -2.0, -4.0),
    "angry": Mood(1.18, 1.0, 6.0, {"male": ("am_puck", 0.25)}),
    "calm": Mood(0.92, -1.0, -2.5),
    "whisper": Mood(0.9, -1.0, -10.0, {"female": ("af_nicole", 0.6)}),
}
