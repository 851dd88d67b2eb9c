"""A quick look at sound that is still going on: the same model, over a shorter window, one hypothesis.

`engine` calls it in a thread for a partial. The model pads what it hears to 30 s and works on all of it; with
two seconds of silence instead, three seconds of speech cost a tenth, and only rarely a word.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from inferhub.modalities.transcription import Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RATE_HZ = 16_000
_FRAMES_PER_S = 100
_LEAST_S = 5.0
_BEHIND_S = 2.0
"""Of silence after the sound: without it the model does not know that it is over."""
_TOKENS = 6
_TOKENS_PER_S = 8
"""More than anybody says in a second: a model that repeats itself is stopped."""
_REPEATS = 2.4
"""Compression ratio from which on a text is a repetition."""
_SILENT, _UNSURE = 0.6, -1.0


def draft(
    whisper: Any, model: Any, pcm: NDArray[np.float32], *, language: str | None, task: str
) -> tuple[Segment | None, str, float]:
    """(what was heard, language, its probability). `model` is the engine below `whisper`."""
    import ctranslate2
    import numpy as np
    from faster_whisper.tokenizer import Tokenizer

    seconds = len(pcm) / _RATE_HZ
    frames = int(min(30.0, max(_LEAST_S, seconds + _BEHIND_S)) * _FRAMES_PER_S)
    features = whisper.feature_extractor(pcm)[:, :frames]
    features = np.pad(features, ((0, 0), (0, frames - features.shape[1])))
    heard = model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(features[None])))
    probability = 1.0
    if language is None:
        named, probability = model.detect_language(heard)[0][0]
        language = named[2:-2]
    is_multilingual = model.is_multilingual
    tokenizer = Tokenizer(
        whisper.hf_tokenizer,
        is_multilingual,
        task=task if is_multilingual else None,
        language=language if is_multilingual else None,
    )
    prompt = whisper.get_prompt(tokenizer, [], without_timestamps=True)
    found = model.generate(
        heard,
        [prompt],
        beam_size=1,
        return_scores=True,
        return_no_speech_prob=True,
        max_length=len(prompt) + _TOKENS + int(seconds * _TOKENS_PER_S),
    )[0]
    tokens = list(found.sequences_ids[0])
    text = tokenizer.decode(tokens)
    score, silence = float(found.scores[0]), float(found.no_speech_prob)
    if not text.strip() or _is_repetition(text) or (silence > _SILENT and score < _UNSURE):
        return None, language, float(probability)
    segment = Segment(0, 0.0, seconds, text, tokens=tokens, avg_logprob=score, no_speech_prob=silence)
    return segment, language, float(probability)


def _is_repetition(text: str) -> bool:
    data = text.encode()
    return len(data) > 40 and len(data) / len(zlib.compress(data)) > _REPEATS
