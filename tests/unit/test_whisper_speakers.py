"""Voices put together, turns read off, and segments cut where another one takes over. Without any engine."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from inferhub.backends.whisper.cluster import assign, cluster, smooth
from inferhub.backends.whisper.diarize import Turn, by_speaker, letter, stretches
from inferhub.backends.whisper.mel import log_mel
from inferhub.backends.whisper.vad import STEP
from inferhub.modalities.transcription import Segment, Word


def voices(*counts: int, spread: float = 0.05, size: int = 64) -> NDArray[np.float32]:
    """So many vectors of each of several voices, which have nothing in common."""
    dice = np.random.default_rng(3)
    found = []
    for voice, count in enumerate(counts):
        vectors = np.zeros((count, size)) + dice.normal(0, spread, (count, size))
        vectors[:, voice] += 1
        found.append(vectors)
    whole = np.concatenate(found).astype(np.float32)
    return np.asarray(whole / np.linalg.norm(whole, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("counts", [(20,), (20, 20), (5, 40), (10, 20, 30, 8)])
def test_voices_are_counted(counts: tuple[int, ...]) -> None:
    vectors = voices(*counts)
    centres = cluster(vectors, 0.6)
    assert len(centres) == len(counts)
    found = assign(vectors, centres).argmax(axis=1).tolist()
    ends = np.cumsum([0, *counts]).tolist()
    groups = [set(found[start:end]) for start, end in pairwise(ends)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) == len(counts)


def test_a_cough_is_no_speaker() -> None:
    assert len(cluster(voices(20, 20, 1), 0.6)) == 2


@pytest.mark.parametrize("told", [1, 2, 3, 4])
def test_as_many_as_one_is_told(told: int) -> None:
    assert len(cluster(voices(20, 20, 20, 20), 0.6, told)) == told
    # A loud noise, unlike everybody, takes nobody's place.
    assert len(cluster(voices(20, 20, 20, 20, 1), 0.6, told)) == told


def test_fewer_vectors_than_speakers() -> None:
    assert len(cluster(voices(1), 0.6, 5)) == 1
    assert 1 <= len(cluster(voices(1, 1), 0.6, 5)) <= 2


def test_a_long_recording_is_bounded_work() -> None:
    assert len(cluster(voices(6000, 3000), 0.6)) == 2


def test_one_odd_moment_changes_nobody() -> None:
    likeness = np.array([[0.9, 0.1]] * 5 + [[0.45, 0.5]] + [[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 5, np.float32)
    assert smooth(likeness) == [0] * 11 + [1] * 5


def test_stretches_end_in_pauses() -> None:
    heard = [0.9] * 30 + [0.1] * 4 + [0.9] * 10 + [0.1] * 20 + [0.9] * 2 + [0.1] * 20 + [0.9] * 15
    found = stretches(heard, len(heard) * STEP - 100)
    assert [(one.start // STEP, one.end) for one in found] == [
        (0, 44 * STEP),
        (86, len(heard) * STEP - 100),
    ]


TURNS = [Turn(0.0, 2.0, 0), Turn(2.5, 4.0, 1)]


def words(*moments: tuple[float, float]) -> Segment:
    return Segment(
        7,
        moments[0][0],
        moments[-1][1],
        "".join(f" {number}" for number in range(len(moments))),
        words=[Word(f" {number}", start, end) for number, (start, end) in enumerate(moments)],
        tokens=[1, 2, 3],
    )


def test_a_segment_of_one_speaker_stays_whole() -> None:
    [segment] = by_speaker(words((0.1, 0.5), (0.6, 1.9)), TURNS)
    assert (segment.speaker, segment.text, segment.tokens) == ("A", " 0 1", [1, 2, 3])


def test_a_segment_is_cut_where_another_one_takes_over() -> None:
    first, second = by_speaker(words((0.1, 0.5), (1.5, 1.9), (2.6, 3.0), (3.1, 3.9)), TURNS)
    assert (first.speaker, first.text, first.start, first.end) == ("A", " 0 1", 0.1, 1.9)
    assert (second.speaker, second.text, second.start, second.end) == ("B", " 2 3", 2.6, 3.9)
    assert second.words is not None
    assert [word.word for word in second.words] == [" 2", " 3"]


def test_words_in_a_pause_are_the_nearest_speakers() -> None:
    [segment] = by_speaker(words((2.05, 2.1)), TURNS)
    assert segment.speaker == "A"
    [segment] = by_speaker(words((2.4, 2.45)), TURNS)
    assert segment.speaker == "B"


def test_a_segment_without_words_is_whoever_speaks_longest_in_it() -> None:
    [segment] = by_speaker(Segment(0, 1.5, 3.5, " x"), TURNS)
    assert segment.speaker == "B"
    [segment] = by_speaker(Segment(0, 1.5, 3.5, " x"), [])
    assert segment.speaker == "A"


def test_speakers_have_letters() -> None:
    assert [letter(number) for number in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_a_tone_is_in_its_band() -> None:
    at = np.arange(16_000) / 16_000
    tops = [
        int(log_mel(np.sin(2 * np.pi * hz * at).astype(np.float32))[50].argmax()) for hz in (200, 1000, 3000)
    ]
    assert tops == sorted(tops)
    assert len(set(tops)) == 3
    # Band 13 of 40 is the one around 1 kHz on Slaney's scale, whose linear part ends there.
    assert tops[1] == 13


def test_every_ten_milliseconds_have_a_row_however_short_the_sound() -> None:
    assert log_mel(np.zeros(0, np.float32)).shape == (1, 40)
    assert log_mel(np.zeros(512 + 160 * 9, np.float32)).shape == (10, 40)
    assert np.allclose(log_mel(np.zeros(1000, np.float32)), -10)
