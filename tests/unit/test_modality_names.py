"""`--modalities`: what people call them, and a spec cut down to some of its models."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferhub.core.errors import SetupError
from inferhub.hosting import keeps
from inferhub.modalities import modalities
from inferhub.modalities.names import modalities_named
from inferhub.settings.loader import load_settings
from inferhub.settings.spec import default_spec, load_spec, narrow

SPEC = """
models:
  - {name: small, backend: llamacpp, weights: smollm2-135m}
  - {name: other, backend: llamacpp, weights: smollm2-135m}
  - {name: mini, backend: onnx_embedding, weights: minilm-l6-v2}
  - {name: ears, backend: whisper, weights: whisper-base}
routes:
  - {name: chat, targets: [small], fallbacks: [other]}
  - {name: mixed, targets: [small, ears]}
  - {name: whisper-1, model: ears}
prices:
  - {model: small, input_per_mtok: 1}
  - {model: ears, per_audio_minute: "0.5"}
"""


def test_usual_names_mean_our_modalities() -> None:
    named = modalities_named(["asr", "TTS", "vision"])
    assert named == {"transcription", "speech", "vision"}
    assert modalities_named(["chat"]) == {"chat", "completion", "token_count"}
    assert modalities_named([]) is None
    assert modalities_named(modalities()) == set(modalities())


def test_an_unknown_name_is_told_with_all_there_are() -> None:
    with pytest.raises(
        SetupError, match=r"no modality 'speach'; there are: asr, .*transcription.*\. Did you mean 'speech'"
    ):
        modalities_named(["speach"])


def test_a_spec_is_cut_down_with_all_that_leads_to_what_is_gone() -> None:
    spec = narrow(load_spec(SPEC, env={}), keeps(modalities_named(["asr"])))
    assert [model.name for model in spec.models] == ["ears"]
    assert {route.name: [t.model for t in route.targets] for route in spec.routes} == {
        "mixed": ["ears"],
        "whisper-1": ["ears"],
    }
    assert [price.model for price in spec.prices] == ["ears"]
    assert len(spec.price_places) == 1


def test_without_names_nothing_is_cut() -> None:
    spec = load_spec(SPEC, env={})
    assert narrow(spec, keeps(None)) == spec


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("chat", {"smollm2-135m"}),
        ("embedding", {"minilm-l6-v2"}),
        ("asr", {"whisper-base", "whisper-tiny.en"}),
        ("tts", {"kokoro", "hibari"}),
        ("vision", {"scene"}),
        ("image", {"style", "realesrgan"}),
    ],
)
def test_each_built_in_model_is_found_by_what_it_is_for(name: str, models: set[str]) -> None:
    narrowed = narrow(default_spec(), keeps(modalities_named([name])))
    assert {model.name for model in narrowed.models} == models


def test_a_flag_takes_several_separated_by_commas_and_may_be_repeated(tmp_path: Path) -> None:
    loaded = load_settings({"modalities": ["chat,asr", "tts"]}, env={}, cwd=tmp_path)
    assert loaded.settings.modalities == ("chat", "asr", "tts")
