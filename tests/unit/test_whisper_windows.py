"""How a recording is cut into windows: in silence, without silence, and with times that can be told."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.backends.whisper.vad import STEP, STEP_S
from inferhub.backends.whisper.windows import Span, Window, speech, windows


def sound(*pieces: tuple[float, float]) -> list[float]:
    """Probabilities of speech: (how probable, for how many seconds)."""
    return [probability for probability, length_s in pieces for _ in range(round(length_s / STEP_S))]


def test_silence_has_no_windows() -> None:
    assert list(windows([])) == []
    assert list(windows(sound((0.01, 60)))) == []


def test_a_click_is_no_speech() -> None:
    assert speech(sound((0, 3), (0.9, 0.06), (0, 3))) == []


def test_speech_keeps_a_little_silence_around_it() -> None:
    [span] = speech(sound((0, 3), (0.9, 2), (0, 3)))
    assert span.start * STEP_S == pytest.approx(2.6, abs=0.1)
    assert span.end * STEP_S == pytest.approx(5.4, abs=0.1)


def test_a_short_pause_stays_and_a_long_one_goes() -> None:
    assert len(speech(sound((0.9, 2), (0, 1.5), (0.9, 2)))) == 1
    assert len(speech(sound((0.9, 2), (0, 3), (0.9, 2)))) == 2


def test_hesitation_neither_begins_nor_ends_speech() -> None:
    assert speech(sound((0.4, 20))) == []
    assert len(speech(sound((0.9, 1), (0.4, 5), (0.9, 1)))) == 1


def test_what_is_far_apart_shares_a_window() -> None:
    [window] = windows(sound((0.9, 5), (0, 100), (0.9, 5), (0, 100), (0.9, 5)))
    assert len(window.spans) == 3


def test_a_long_speech_is_cut_in_its_pauses() -> None:
    found = list(windows(sound((0.9, 25), (0, 0.3), (0.9, 25), (0, 0.3), (0.9, 10))))
    cuts = [window.spans[-1].end * STEP_S for window in found[:-1]]
    assert cuts == [pytest.approx(25.15, abs=0.1), pytest.approx(50.4, abs=0.15)]


def test_silence_is_kept_on_request() -> None:
    found = list(windows(sound((0, 40)), keep_silence=True))
    spans = [span for window in found for span in window.spans]
    assert (spans[0].start, spans[-1].end) == (0, round(40 / STEP_S))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.9]), st.floats(0.05, 45)), max_size=12), st.booleans())
def test_windows_are_short_in_order_and_lose_no_speech(pieces: list[tuple[float, float]], keep: bool) -> None:
    probabilities = sound(*pieces)
    found = list(windows(probabilities, keep_silence=keep))
    spans = [span for window in found for span in window.spans]
    assert all(sum(span.frames for span in window.spans) * STEP_S < 30 for window in found)
    assert all(one.end <= other.start for one, other in pairwise(spans))
    assert all(0 <= span.start < span.end <= len(probabilities) for span in spans)
    covered = {frame for span in spans for frame in range(span.start, span.end)}
    if keep:
        assert covered == set(range(len(probabilities)))
    for span in speech(probabilities):
        assert covered >= set(range(span.start, span.end))


def test_times_are_those_of_the_recording() -> None:
    window = Window((Span(100, 200), Span(500, 600)))
    seam_s = 100 * STEP_S
    assert window.time(0.0) == pytest.approx(100 * STEP_S)
    assert window.time(1.0) == pytest.approx(100 * STEP_S + 1)
    assert window.time(seam_s) == pytest.approx(500 * STEP_S)
    assert window.time(seam_s, is_end=True) == pytest.approx(200 * STEP_S)
    assert window.time(seam_s + 1) == pytest.approx(500 * STEP_S + 1)


def test_sound_is_cut_where_the_spans_are() -> None:
    samples = np.arange(STEP * 10, dtype=np.int16)
    cut = Window((Span(1, 2), Span(5, 7))).cut(samples)
    expected = np.concatenate([samples[STEP : 2 * STEP], samples[5 * STEP : 7 * STEP]]) / 32768
    assert np.allclose(cut, expected)
    assert len(Window((Span(9, 20),)).cut(samples)) == STEP
