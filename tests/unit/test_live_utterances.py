"""When an utterance begins, ends, is looked at and is cut: probabilities in, events out, no model anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from inferhub.backends.whisper.utterances import Began, Due, Ended, Event, Piece, Utterances, steps
from inferhub.backends.whisper.vad import STEP
from inferhub.modalities.transcription import Endpointing

SPEECH, SILENCE = 0.9, 0.05


def heard(utterances: Utterances, probabilities: Iterable[float]) -> list[Event]:
    return [event for probability in probabilities for event in utterances.step(probability)]


def spoken(seconds: float, probability: float = SPEECH) -> list[float]:
    return [probability] * steps(seconds)


def of(kind: type[Event], events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


def test_silence_says_nothing() -> None:
    utterances = Utterances(Endpointing())
    assert heard(utterances, spoken(5, SILENCE)) == []
    assert utterances.lull() == []
    assert utterances.end() == []


def test_a_click_is_no_speech() -> None:
    utterances = Utterances(Endpointing())
    assert heard(utterances, [SILENCE] * 20 + [SPEECH] * 2 + [SILENCE] * 20) == []


def test_an_utterance_begins_before_the_first_speech_and_ends_behind_the_last() -> None:
    utterances = Utterances(Endpointing(prefix_padding_ms=320, silence_duration_ms=480))
    events = heard(utterances, [SILENCE] * 50 + [SPEECH] * 40 + [SILENCE] * 30)
    began, ended, piece = events[0], of(Ended, events)[0], of(Piece, events)[0]
    assert began == Began(0, 40 * STEP)
    assert isinstance(ended, Ended)
    assert 90 * STEP < ended.at <= (90 + 15) * STEP
    assert piece == Piece(0, 40 * STEP, ended.at)


def test_sound_before_the_beginning_is_not_asked_for() -> None:
    utterances = Utterances(Endpointing(prefix_padding_ms=5000))
    began = heard(utterances, [SPEECH] * 3)[0]
    assert began == Began(0, 0)


def test_no_sound_belongs_to_two_utterances() -> None:
    utterances = Utterances(Endpointing(prefix_padding_ms=5000, silence_duration_ms=100))
    events = heard(utterances, (spoken(1) + spoken(0.5, SILENCE)) * 4)
    pieces = [piece for piece in events if isinstance(piece, Piece)]
    assert [piece.utterance for piece in pieces] == [0, 1, 2, 3]
    for before, after in itertools.pairwise(pieces):
        assert before.end <= after.start


@pytest.mark.parametrize("silence_ms", [100, 500, 2000])
def test_a_pause_ends_an_utterance_when_it_is_long_enough(silence_ms: int) -> None:
    rules = Endpointing(silence_duration_ms=silence_ms)
    shorter = heard(Utterances(rules), spoken(1) + spoken(silence_ms / 1000 - 0.05, SILENCE) + spoken(1))
    longer = heard(Utterances(rules), spoken(1) + spoken(silence_ms / 1000 + 0.05, SILENCE) + spoken(1))
    assert len(of(Ended, shorter)) == 0
    assert len(of(Ended, longer)) == 1


def test_weaker_speech_goes_on_and_begins_nothing() -> None:
    between = 0.4
    assert heard(Utterances(Endpointing()), [between] * 100) == []
    utterances = Utterances(Endpointing())
    events = heard(utterances, spoken(0.5) + spoken(3, between))
    assert of(Ended, events) == []


def test_partials_come_every_eight_tenths_of_a_second() -> None:
    utterances = Utterances(Endpointing())
    due_at = [
        number for number, p in enumerate(spoken(5), 1) for e in utterances.step(p) if isinstance(e, Due)
    ]
    assert due_at[0] <= steps(0.9)
    assert {later - earlier for earlier, later in itertools.pairwise(due_at)} == {steps(0.8)}


def test_a_look_that_heard_nothing_is_repeated_sooner() -> None:
    utterances = Utterances(Endpointing())
    assert of(Due, heard(utterances, spoken(0.9)))
    utterances.heard_nothing(0)
    assert of(Due, heard(utterances, spoken(0.3)))


def test_a_lull_looks_at_what_there_is_once() -> None:
    utterances = Utterances(Endpointing())
    heard(utterances, spoken(1.2))
    assert utterances.lull() == [Due(0, 0, is_lull=True)]
    assert utterances.lull() == []
    heard(utterances, [SPEECH])
    assert len(utterances.lull()) == 1


def test_a_long_utterance_is_cut_at_a_pause_into_the_next() -> None:
    utterances = Utterances(Endpointing(silence_duration_ms=1000))
    events = heard(utterances, spoken(22) + [SILENCE] * 8 + spoken(3))
    pieces = [event for event in events if isinstance(event, Piece)]
    assert len(pieces) == 1
    assert steps(22) <= pieces[0].end / STEP <= steps(22) + 8
    began = [event for event in events if isinstance(event, Began)]
    assert began[1] == Began(1, pieces[0].end)


def test_speech_without_any_pause_is_cut_where_it_is_quietest() -> None:
    utterances = Utterances(Endpointing())
    stream = spoken(24) + [0.55] * 7 + spoken(3)
    pieces = [event for event in heard(utterances, stream) if isinstance(event, Piece)]
    assert len(pieces) == 1
    assert steps(24) <= pieces[0].end / STEP <= steps(24) + 7


def test_every_cut_piece_fits_into_the_model() -> None:
    utterances = Utterances(Endpointing())
    events = heard(utterances, spoken(200)) + utterances.end()
    pieces = [event for event in events if isinstance(event, Piece)]
    assert all(piece.end - piece.start < 30 * 16_000 for piece in pieces)
    assert sum(piece.end - piece.start for piece in pieces) == steps(200) * STEP


def test_the_end_of_the_sound_ends_the_utterance() -> None:
    utterances = Utterances(Endpointing())
    heard(utterances, spoken(1))
    ended, piece = utterances.end()
    assert ended == Ended(0, steps(1) * STEP, is_committed=True)
    assert piece == Piece(0, 0, steps(1) * STEP)
    assert utterances.end() == []


def test_a_commit_ends_an_utterance_in_the_middle_of_speech() -> None:
    utterances = Utterances(Endpointing())
    heard(utterances, spoken(1))
    assert [type(event) for event in utterances.commit()] == [Ended, Piece]
    assert of(Began, heard(utterances, spoken(0.2))) == [Began(1, steps(1) * STEP)]


def test_what_is_cleared_is_never_asked_for() -> None:
    utterances = Utterances(Endpointing())
    heard(utterances, spoken(1))
    assert utterances.clear() == []
    assert utterances.end() == []
    assert utterances.needed_from >= steps(1) * STEP - 1


# --- where the client says when an utterance ends ---------------------------------------------------


def test_without_endpointing_only_a_commit_ends_an_utterance() -> None:
    utterances = Utterances(None)
    stream = spoken(1, SILENCE) + spoken(2) + spoken(3, SILENCE) + spoken(1)
    events = heard(utterances, stream)
    assert not of(Began, events)
    assert not of(Ended, events)
    ended, piece = utterances.commit()
    assert ended == Ended(0, len(stream) * STEP, is_committed=True)
    assert piece == Piece(0, 0, len(stream) * STEP)
    assert utterances.commit() == []


def test_silence_that_is_committed_has_no_speech_in_it() -> None:
    utterances = Utterances(None)
    assert not of(Due, heard(utterances, spoken(2, SILENCE)))
    piece = utterances.commit()[1]
    assert isinstance(piece, Piece)
    assert not piece.has_speech


def test_a_long_uncommitted_utterance_comes_in_pieces() -> None:
    utterances = Utterances(None)
    stream = spoken(22) + [SILENCE] * 8 + spoken(10)
    events = heard(utterances, stream) + utterances.commit()
    pieces = [event for event in events if isinstance(event, Piece)]
    assert [piece.utterance for piece in pieces] == [0, 0]
    assert [piece.is_last for piece in pieces] == [False, True]
    assert pieces[0].end == pieces[1].start
    assert len(of(Ended, events)) == 1


def test_a_clear_begins_the_next_utterance() -> None:
    utterances = Utterances(None)
    heard(utterances, spoken(2))
    utterances.clear()
    assert utterances.commit() == []
    heard(utterances, spoken(1))
    piece = utterances.commit()[1]
    assert piece == Piece(1, steps(2) * STEP, (steps(2) + steps(1)) * STEP)
