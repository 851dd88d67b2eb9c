"""Round trips: what the engines say is what Whisper hears, in five languages and in every mood."""

from __future__ import annotations

import asyncio
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from inferhub.backends.hibari import Hibari
from inferhub.backends.kokoro import Kokoro
from inferhub.backends.speaking.backend import SpeakingBackend

from . import speaking
from .speaking import Listener

SENTENCES: dict[str, list[str]] = tomllib.loads((Path(__file__).parent / "sentences.toml").read_text("utf-8"))
AT_ONCE = 5
PAUSE = np.zeros(speaking.RATE_HZ // 2, np.float32)
MOOD_TEXT = "The captain looked at the dark clouds and shook his head."

# Real speech, made and heard on however little is free of two cores.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def listener(whisper_base_path: Path) -> Listener:
    return Listener(whisper_base_path)


async def round_trip(
    engine: SpeakingBackend, listener: Listener, spoken_in: str, **params: object
) -> list[tuple[str, str]]:
    """(what was to be said, what was heard), some sentences at a time: listening costs the same for 30 s."""
    pairs = []
    sentences = SENTENCES[spoken_in]
    for at in range(0, len(sentences), AT_ONCE):
        together = sentences[at : at + AT_ONCE]
        said = [await speaking.heard(engine, input=sentence, **params) for sentence in together]
        sound = np.concatenate([part for one in said for part in (one, PAUSE)])
        pairs.append((" ".join(together), await asyncio.to_thread(listener.hears, sound, spoken_in)))
    return pairs


async def test_english_is_heard_as_it_was_written(speaker: SpeakingBackend, listener: Listener) -> None:
    assert len(SENTENCES["en"]) == 20
    pairs = await round_trip(speaker, listener, "en")
    assert speaking.error_rate(pairs) <= 0.1, pairs


@pytest.mark.parametrize("language", ["es", "fr", "it", "pt"])
async def test_other_languages_are_heard_as_they_were_written(
    kokoro: Kokoro, listener: Listener, language: str
) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.fail("This test needs the program espeak-ng: `apt-get install espeak-ng`.", pytrace=False)
    assert len(SENTENCES[language]) == 10
    pairs = await round_trip(kokoro, listener, language, language=language)
    assert speaking.error_rate(pairs) <= 0.2, pairs


@pytest.mark.parametrize(
    ("language", "text"),
    [("ja", "今日はいい天気ですね。東京に住んでいます。"), ("zh", "今天天气很好。我们明天去公园。")],
)
async def test_japanese_and_chinese_where_their_packages_are(
    kokoro: Kokoro, listener: Listener, language: str, text: str
) -> None:
    from inferhub.core.errors import SetupError

    try:
        sound = await speaking.heard(kokoro, input=text, language=language)
    except SetupError as missing:
        # They are optional: without them the answer says what to install.
        assert f"inferhub[{ {'ja': 'japanese', 'zh': 'chinese'}[language] }]" in missing.message
        return
    found = await asyncio.to_thread(listener.hears, sound, language)
    wanted, heard = ([sign for sign in given if sign.isalnum()] for given in (text, found))
    # Signs that sound alike are told apart by nobody: `きょう` is `今日`.
    assert speaking.errors(wanted, heard) / len(wanted) <= 0.35, found


# Preset → (pitch, seconds, level) against neutral: +1 more, -1 less.
DIRECTIONS = {
    "happy": (+1, -1, +1),
    "angry": (+1, -1, +1),
    "sad": (-1, +1, -1),
    "calm": (-1, +1, -1),
    "whisper": (-1, +1, -1),
}


@pytest.mark.parametrize("voice", ["hibari", "af_heart", "am_michael"])
async def test_presets_differ_as_documented_and_the_words_stay(
    hibari: Hibari, kokoro: Kokoro, listener: Listener, voice: str
) -> None:
    engine: SpeakingBackend = hibari if voice == "hibari" else kokoro
    name = "default" if voice == "hibari" else voice
    plain = await speaking.heard(engine, input=MOOD_TEXT, voice=name)
    measured = {}
    for emotion, (higher, longer, louder) in DIRECTIONS.items():
        sound = await speaking.heard(engine, input=MOOD_TEXT, voice=name, emotion=emotion)
        pitch = speaking.pitch_hz(sound) / speaking.pitch_hz(plain)
        length = speaking.voiced_s(sound) / speaking.voiced_s(plain)
        gain_db = speaking.level(sound) - speaking.level(plain)
        measured[emotion] = (round(pitch, 2), round(length, 2), round(gain_db, 1))
        found = await asyncio.to_thread(listener.hears, sound, "en")
        assert speaking.words(found) == speaking.words(MOOD_TEXT), (emotion, found)
        is_right = (
            (pitch > 1.02) if higher > 0 else (pitch < 0.98),
            (length > 1.03) if longer > 0 else (length < 0.97),
            (gain_db > 1) if louder > 0 else (gain_db < -1),
        )
        assert all(is_right), (emotion, measured)
    assert measured["angry"][2] > measured["happy"][2] > measured["calm"][2] > measured["whisper"][2]
    assert measured["sad"][1] > measured["calm"][1]
