"""How a text is cut into clauses: nothing is lost, nothing that belongs together is torn."""

# Signs of other scripts and of phonetics are what this is about.
# ruff: noqa: RUF001

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferhub.backends.speaking.clauses import FIRST_CHARS, LONGEST_WORD, NEXT_CHARS, clauses
from inferhub.backends.speaking.phonemes import fitting


def test_the_first_clause_is_short_and_later_ones_are_longer() -> None:
    text = (
        "Well, this is how it begins, and then it goes on. " + "There is more to say about it, in time. " * 20
    )
    found = list(clauses(text))
    assert found[0] == "Well, this is how it begins,"
    assert len(found[0]) <= FIRST_CHARS < len(found[1]) <= NEXT_CHARS[0] < len(found[2]) <= NEXT_CHARS[1]
    assert all(len(clause) <= NEXT_CHARS[1] for clause in found)


@pytest.mark.parametrize(
    "whole",
    [
        "$42.50",
        "3,14",
        "1 000 000",
        "10:30",
        "e.g. those",
        "Mr. Jones",
        "Dr. Smith",
        "J. K. Rowling",
        "v1.2.3",
    ],
)
def test_what_belongs_together_is_never_cut(whole: str) -> None:
    """Wherever in a long text it stands."""
    for lead in range(0, 200, 7):
        text = "x" * (lead % 9 + 1) + " word" * (lead // 5) + f" {whole} and more" + " word" * 20
        assert any(whole in clause for clause in clauses(text)), (lead, list(clauses(text)))


@pytest.mark.parametrize(
    "text",
    [
        "Les enfants jouent au football derrière l'école.",
        "I bambini giocano a calcio dietro la scuola.",
        "Mia sorella lavora in un ospedale vicino al fiume.",
        "They painted the kitchen in a warm shade of green.",
    ],
)
def test_a_sentence_of_usual_length_is_not_torn(text: str) -> None:
    assert list(clauses(text)) == [text]


def test_a_phrase_that_must_be_cut_is_cut_in_front_of_small_words() -> None:
    text = "Nobody ever found the treasure in the big chest below the window of the smallest room upstairs"
    assert next(iter(clauses(text))) == "Nobody ever found the treasure"


def test_sentences_of_chinese_and_japanese_need_no_blanks() -> None:
    text = "今日はいい天気ですね。私の名前は田中で、東京に住んでいます。" * 4
    found = list(clauses(text))
    assert found[0] == "今日はいい天気ですね。"
    assert "".join(found) == text
    assert all(clause[-1] in "。、" for clause in found)


def test_what_is_too_long_for_a_word_is_cut_all_the_same() -> None:
    found = list(clauses("a" * 4096))
    assert "".join(found) == "a" * 4096
    assert LONGEST_WORD <= max(map(len, found)) <= NEXT_CHARS[1]


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003"])
def test_blank_text_has_no_clauses(text: str) -> None:
    assert list(clauses(text)) == []


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(words, max_size=80), st.sampled_from([" ", ". ", ", ", "\n", "。", "! "]), st.integers(1, 200)
)
def test_nothing_is_lost_doubled_or_torn(parts: list[str], between: str, first_chars: int) -> None:
    text = between.join(parts)
    found = list(clauses(text, first_chars))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(clause == clause.strip() != "" for clause in found)
    if all(len(word) < LONGEST_WORD for word in text.split()) and not any(
        sign in text for sign in "。！？、，；："
    ):
        assert [word for clause in found for word in clause.split()] == text.split()


@given(st.text("abˈ ,.", max_size=900), st.integers(8, 60))
def test_phrases_fit_and_hold_every_symbol(phonemes: str, most: int) -> None:
    found = fitting(phonemes, "abˈ ,.", most)
    assert all(0 < len(phrase) <= most for phrase in found)
    spoken = [sign for sign in phonemes if sign in "ab"]
    assert [sign for phrase in found for sign in phrase if sign in "ab"] == spoken


def test_phonemes_that_the_engine_has_no_symbol_for_are_left_out() -> None:
    assert fitting("a☃b", "ab", 10) == ["ab"]
    assert fitting("☃ …", "ab…", 10) == []
