"""How well speakers are told apart: `python -m benchmarks.diarization [--tune] [--folder FOLDER]`.

Makes conversations of Kokoro's voices, whose turns are known exactly, and compares. Voices and sentences that
the threshold was tuned on (`--tune`) are not those of the report, which goes to
`benchmarks/results/diarization.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from inferhub.backends.whisper.diarize import THRESHOLD, Diarizer, Turn
from inferhub.backends.whisper.vad import VoiceDetector
from inferhub.registry.weights import Weights

RATE_HZ = 16_000
KOKORO_RATE_HZ = 24_000
RESULT = Path(__file__).parent / "results" / "diarization.json"
FRAME = RATE_HZ // 100
COLLAR_FRAMES = 25

TUNED_ON = ("af_bella", "am_michael", "bf_emma", "em_alex", "if_sara", "jf_alpha", "zm_yunxi", "ef_dora")
REPORTED_ON = (
    "af_heart",
    "am_puck",
    "bm_george",
    "ff_siwis",
    "im_nicola",
    "pf_dora",
    "zf_xiaoxiao",
    "af_nicole",
)
TUNE_SENTENCES = (
    "The train to the coast leaves at nine in the morning.",
    "I would rather walk, if it is not too far.",
    "Nobody told me that the shop was closed.",
    "Have you seen the blue folder with the letters in it?",
    "We painted the kitchen last summer, and it took a week.",
    "That is exactly what I was afraid of.",
)
REPORT_SENTENCES = (
    "My sister keeps three goats behind the old mill.",
    "It rained so hard that the bridge was under water.",
    "Could you send me the numbers before lunch?",
    "No, the second one was much better.",
    "They promised to call back, but they never did.",
    "A good map is worth more than a fast horse.",
)

Sound = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Mix:
    samples: NDArray[np.int16]
    turns: tuple[Turn, ...]
    speakers: int


@dataclass(frozen=True, slots=True)
class Errors:
    """Shares of the time in which somebody really speaks."""

    missed: float
    false_alarm: float
    confused: float
    speakers: int

    @property
    def der(self) -> float:
        return self.missed + self.false_alarm + self.confused


class Studio:
    """Kokoro's voices, said once each and kept in a folder if there is one."""

    def __init__(self, weights: Weights, folder: Path | None) -> None:
        import hibari
        import onnxruntime

        self._folder = folder
        self._speaker = hibari.Hibari()
        self._kokoro = onnxruntime.InferenceSession(
            str(weights.resolve("kokoro-82m")), providers=["CPUExecutionProvider"]
        )
        self._voices = np.load(weights.resolve("kokoro-voices"))
        assets = Path(hibari.__file__).parent / "assets"
        self._ids: dict[str, int] = json.loads((assets / "vocab.json").read_text(encoding="utf-8"))

    def say(self, voice: str, text: str) -> Sound:
        file = self._folder / f"{voice}-{abs(hash_of(text))}.npy" if self._folder else None
        if file and file.exists():
            return np.asarray(np.load(file))
        style = self._voices[voice].astype(np.float32)
        pieces = []
        for phonemes in self._speaker.phonemize(text):
            ids = [self._ids[one] for one in phonemes if one in self._ids][:509]
            given: dict[str, Any] = {
                "tokens": np.array([[0, *ids, 0]]),
                "style": style[len(ids)][None],
                "speed": np.ones(1, np.float32),
            }
            pieces.append(np.asarray(self._kokoro.run(None, given)[0]).ravel())
        sound = trimmed(resampled(np.concatenate(pieces).astype(np.float32)))
        if file:
            np.save(file, sound)
        return sound


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[:40], "big") % 10**12


def resampled(sound: Sound) -> Sound:
    """24 to 16 kHz, by leaving the upper third of the spectrum out."""
    spectrum = np.fft.rfft(sound)
    length = len(sound) * RATE_HZ // KOKORO_RATE_HZ
    return np.asarray(np.fft.irfft(spectrum[: length // 2 + 1], length) * (length / len(sound)), np.float32)


def trimmed(sound: Sound) -> Sound:
    """Without the silence around it, so that where a turn begins and ends is known."""
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + 1]


def conversation(studio: Studio, voices: Sequence[str], sentences: Sequence[str], seed: int) -> Mix:
    """Two to four people in turn, at different loudness, with pauses of 0.1 to 0.8 s and some noise."""
    dice = random.Random(seed)
    present = dice.sample(list(voices), dice.choice([2, 2, 3, 4]))
    gains = {voice: 10 ** (dice.uniform(-6, 3) / 20) for voice in present}
    at = RATE_HZ // 2
    placed: list[tuple[int, Sound, int]] = []
    last = -1
    for turn in range(dice.randint(8, 14)):
        number = turn if turn < len(present) else dice.choice([n for n in range(len(present)) if n != last])
        last = number
        said = studio.say(present[number], dice.choice(sentences)) * gains[present[number]]
        placed.append((at, said, number))
        at += len(said) + int(dice.uniform(0.1, 0.8) * RATE_HZ)
    whole = np.random.default_rng(seed).normal(0, 0.002, at + RATE_HZ // 2)
    for start, said, _ in placed:
        whole[start : start + len(said)] += said * 0.5
    turns = tuple(Turn(start / RATE_HZ, (start + len(said)) / RATE_HZ, who) for start, said, who in placed)
    return Mix((whole.clip(-1, 1) * 32767).astype(np.int16), turns, len(present))


def labels(turns: Sequence[Turn], frames: int) -> NDArray[np.int64]:
    """Who speaks in each 10 ms; -1 for nobody."""
    found = np.full(frames, -1)
    for turn in turns:
        found[round(turn.start_s * 100) : round(turn.end_s * 100)] = turn.speaker
    return found


def errors(mix: Mix, found: Sequence[Turn], collar_frames: int) -> Errors:
    frames = len(mix.samples) // FRAME
    truth, guess = labels(mix.turns, frames), labels(found, frames)
    counted = np.ones(frames, bool)
    if collar_frames:
        for turn in mix.turns:
            for edge in (round(turn.start_s * 100), round(turn.end_s * 100)):
                counted[max(0, edge - collar_frames) : edge + collar_frames] = False
    truth, guess = truth[counted], guess[counted]
    spoken = max(1, int((truth >= 0).sum()))
    both = (truth >= 0) & (guess >= 0)
    table = np.zeros((truth.max(initial=0) + 1, guess.max(initial=0) + 1), int)
    np.add.at(table, (truth[both], guess[both]), 1)
    return Errors(
        float(((truth >= 0) & (guess < 0)).sum()) / spoken,
        float(((truth < 0) & (guess >= 0)).sum()) / spoken,
        float(both.sum() - best_match(table)) / spoken,
        len(set(guess[guess >= 0].tolist())),
    )


def best_match(table: NDArray[np.int64]) -> int:
    """Frames that agree when each found speaker is taken for at most one real one."""
    if table.shape[0] > table.shape[1]:
        table = table.T
    # The likeliest few of many: trying all orders of twenty would never end.
    columns = table.max(axis=0).argsort()[::-1][:7]
    rows = range(table.shape[0])
    return max(
        sum(int(table[row, column]) for row, column in zip(rows, order, strict=True))
        for order in permutations(columns.tolist(), len(rows))
    )


def measured(
    mixes: Sequence[Mix], diarizer: Diarizer, detector: VoiceDetector, *, is_told: bool, collar: int = 0
) -> Iterator[Errors]:
    for mix in mixes:
        heard = detector.probabilities(mix.samples)
        yield errors(mix, diarizer.turns(mix.samples, heard, mix.speakers if is_told else None), collar)


def summary(found: Sequence[Errors], mixes: Sequence[Mix]) -> dict[str, float]:
    right = sum(one.speakers == mix.speakers for one, mix in zip(found, mixes, strict=True))
    return {
        "der": round(mean(one.der for one in found), 4),
        "der_worst": round(max(one.der for one in found), 4),
        "missed": round(mean(one.missed for one in found), 4),
        "false_alarm": round(mean(one.false_alarm for one in found), 4),
        "confused": round(mean(one.confused for one in found), 4),
        "speakers_counted_right": round(right / len(mixes), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diarization", description=__doc__)
    parser.add_argument("--tune", action="store_true", help="show thresholds on the mixes for tuning")
    parser.add_argument("--folder", type=Path, help="where sentences are kept between runs")
    chosen = parser.parse_args()
    weights = Weights(user_cache_path("inferhub", appauthor=False))
    studio, detector = Studio(weights, chosen.folder), VoiceDetector()
    path = weights.resolve("d-vector")
    if chosen.tune:
        mixes = [conversation(studio, TUNED_ON, TUNE_SENTENCES, seed) for seed in range(16)]
        for threshold in (0.4, 0.45, 0.5, 0.55, 0.58, 0.6, 0.62, 0.64, 0.66, 0.7):
            found = list(measured(mixes, Diarizer(path, threshold), detector, is_told=False))
            print(threshold, summary(found, mixes))
        found = list(measured(mixes, Diarizer(path), detector, is_told=True))
        print("told", summary(found, mixes))
        return 0
    mixes = [conversation(studio, REPORTED_ON, REPORT_SENTENCES, 1000 + seed) for seed in range(24)]
    diarizer = Diarizer(path)
    report = {
        "mixes": len(mixes),
        "threshold": THRESHOLD,
        "minutes": round(sum(len(mix.samples) for mix in mixes) / RATE_HZ / 60, 1),
        "number_found_out": summary(list(measured(mixes, diarizer, detector, is_told=False)), mixes),
        "number_told": summary(list(measured(mixes, diarizer, detector, is_told=True)), mixes),
        "number_found_out_collar_250ms": summary(
            list(measured(mixes, diarizer, detector, is_told=False, collar=COLLAR_FRAMES)), mixes
        ),
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
