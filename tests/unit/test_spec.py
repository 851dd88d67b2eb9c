"""hub.yaml: what loads, what is refused and where, and that secrets stay in memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferhub.core.errors import SetupError
from inferhub.core.fleet import Placement
from inferhub.core.models import ModelSpec
from inferhub.core.traffic import alias
from inferhub.settings.spec import (
    SpecFile,
    default_spec,
    load_spec,
    narrow,
    spec_for_model,
    spec_text_for_model,
)
from inferhub.settings.spec.references import expand

FULL = """\
models:
  - name: smollm2-135m         # what clients say
    backend: llamacpp
    weights: smollm2-135m
    device: cuda:1
    slots: ${SLOTS}
    queue_limit: 8
    options: {context_tokens: 8192, ratio: 0.5, on: yes, nothing: ~}
  - name: gpt-4o-mini
    options: {base_url: https://api.openai.com/v1, api_key: ${OPENAI_API_KEY}}
  - name: local
    weights: ./models/Some.GGUF
routes:
  - name: chat
    model: smollm2-135m
"""
ENV = {"OPENAI_API_KEY": "sk-canary-4711", "SLOTS": "2"}


def refusal(text: str, **env: str) -> str:
    with pytest.raises(SetupError) as caught:
        load_spec(text, env=env)
    return caught.value.message


def test_a_full_spec_loads() -> None:
    spec = load_spec(FULL, env=ENV)
    smollm, openai, local = spec.models
    assert smollm == ModelSpec(
        name="smollm2-135m",
        backend="llamacpp",
        weights="smollm2-135m",
        device="cuda:1",
        slots=2,
        queue_limit=8,
        options={"context_tokens": 8192, "ratio": 0.5, "on": "yes", "nothing": None},
    )
    assert openai.backend == "openai_compatible"
    assert openai.options == {"base_url": "https://api.openai.com/v1", "api_key": "sk-canary-4711"}
    assert (openai.device, openai.slots, openai.queue_limit) == ("auto", 0, 64)
    assert (local.backend, local.weights) == ("llamacpp", "./models/Some.GGUF")
    assert spec.routes == (alias("chat", "smollm2-135m"),)


def test_secrets_are_not_in_reprs() -> None:
    spec = load_spec(FULL, env=ENV)
    parsed = SpecFile.model_validate({"models": [{"name": "a", "options": {"api_key": "sk-canary-4711"}}]})
    assert "canary" not in repr(spec) + str(spec.models) + repr(parsed) + str(parsed.models[0])


def test_no_message_holds_an_expanded_value() -> None:
    text = "models:\n  - name: ${KEY}\n    backend: echo\n    device: ${KEY}\n    slots: ${KEY}\n"
    message = refusal(text, KEY="sk canary")
    assert message.startswith("3 problems")
    assert "canary" not in message
    assert "device cannot be '${KEY}'" in message


def test_all_problems_at_once_each_with_line_and_column() -> None:
    message = refusal("""\
models:
  - name: a b
    wieghts: x
    slots: ${SLTOS}
  - name: x
    name: y
    backend: echo
  - name: 1.5
    backend: no
    slots: -1
    device: gpu
  - 3
routes:
  - {name: x, model: xx}
  - name: r
modle: 3
""", SLOTS="1")  # fmt: skip
    for expected in (
        "hub.yaml:2:5: name cannot be 'a b'; allowed: 1 to 128 letters",
        "hub.yaml:3:5: unknown key 'wieghts'. Did you mean 'weights'? Allowed: name, backend",
        "hub.yaml:4:5: environment variable SLTOS is not set. Did you mean 'SLOTS'?",
        "hub.yaml:6:5: duplicate key 'name', first at 5:5",
        "hub.yaml:8:5: name cannot be 1.5",
        "put it in quotes",
        "hub.yaml:10:5: slots cannot be -1; allowed: a whole number from 0 to 4096",
        "hub.yaml:11:5: device cannot be 'gpu'; allowed: auto, cpu or cuda:N",
        "hub.yaml:12:5: an entry of models cannot be 3",
        "hub.yaml:14:6: the name 'x' is taken by models[1]",
        "hub.yaml:14:15: unknown model 'xx'",
        "hub.yaml:15:5: the route leads nowhere; give 'model' or 'targets'",
        "hub.yaml:16:1: unknown key 'modle'. Did you mean 'models'?",
    ):
        assert expected in message, expected
    assert message.startswith("12 problems in hub.yaml:")
    assert "slots cannot be '${SLTOS}'" not in message  # told once


def test_route_to_an_unknown_model_names_the_nearest() -> None:
    message = refusal(
        "models: [{name: smollm2-135m, backend: echo}]\nroutes: [{name: c, model: smollm2-135}]"
    )
    assert "unknown model 'smollm2-135'. Did you mean 'smollm2-135m'?" in message


def test_a_model_without_a_deducible_backend_is_refused() -> None:
    assert "names no backend" in refusal("models:\n  - name: a\n    weights: something")


@pytest.mark.parametrize("name", ["a", "a/b:c@d.e_f-g", "@cf/meta/llama", "0", "x" * 128])
def test_good_names(name: str) -> None:
    assert load_spec(f"models: [{{name: '{name}', backend: echo}}]", env={}).models[0].name == name


@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "ä", "a\\n", "../x", "-x", "a?b", "a\x7f"])
def test_bad_names(name: str) -> None:
    assert "hub.yaml" in refusal(f'models: [{{name: "{name}", backend: echo}}]')


def test_check_model_is_asked_about_every_model_and_its_refusals_are_placed() -> None:
    asked: list[str] = []

    def check(spec: ModelSpec) -> dict[str, str]:
        asked.append(spec.name)
        if spec.name != "b":
            raise SetupError(f"{spec.name} is wrong", param="options")
        return {}

    text = """\
models:
  - name: a
    backend: echo
    options: {x: 1}
  - {name: b, backend: echo}
  - {name: c, backend: echo}
"""
    with pytest.raises(SetupError) as caught:
        load_spec(text, env={}, source="my.yaml", check_model=check)
    assert asked == ["a", "b", "c"]
    assert "my.yaml:4:5: a is wrong" in caught.value.message
    assert "my.yaml:6:5: c is wrong" in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("routes: []", "the key 'models' is missing"),
        ("models: {}", "models cannot be a mapping"),
        ("models: [", "not valid YAML"),
        ("models: []\n---\nmodels: []", "not valid YAML"),
        ("models: []\tx: [", "not valid YAML"),
        ("a\x00b", "not valid YAML"),
        ("models: \ud800", "not valid YAML"),
        ("[" * 100_000, "nested deeper than 32"),
        ("a: " * 1, "unknown key 'a'"),
        ("&a [*a]", "more than 50000 values"),
        ("x: \ue000", "private-use"),
        ("#" * (512 * 1024 + 1), "larger than"),
        ("models: !!python/object/apply:os.system ['true']", "tags such as"),
        ("models: [{name: !!str 5, backend: echo}]", "tags such as"),
        ("<<: {}\nmodels: []", "merge keys"),
        ("? [a]\n: b", "a key must be text"),
        ("models: [{name: '${A', backend: echo}]", "not closed"),
        ("models: [{name: '${A-b}', backend: echo}]", "is not a reference"),
        ("models: [{name: a, backend: echo, options: {k: os.environ/NOPE}}]", "NOPE is not set"),
    ],
)
def test_bad_documents(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_aliases_cannot_explode() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "more than 50000 values" in refusal("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${A}", "1"),
        ("x${A}y${B}", "x1y"),
        ("${B:-default}", "default"),
        ("${NOPE:-a:-b, c}", "a:-b, c"),
        ("${NOPE:-}", ""),
        ("$${A} costs $5", "${A} costs $5"),
        ("os.environ/A", "1"),
        ("see os.environ/A", "see os.environ/A"),
    ],
)
def test_references(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": ""}) == expected


def test_a_value_from_the_environment_is_not_expanded_again() -> None:
    assert expand("${A}", {"A": "${B} os.environ/B", "B": "x"}) == "${B} os.environ/B"


@pytest.mark.parametrize(
    "wrap",
    [
        "models: [{name: a, backend: echo, options: {k: %s}}]",
        "models: [{name: a, backend: echo, options: {k: '%s'}}]",
        "models:\n- name: a\n  backend: echo\n  options:\n    k: %s\n",
    ],
)
def test_references_work_in_every_yaml_style(wrap: str) -> None:
    env = {"KEY": "a: {b}, #c"}
    for reference, value in (
        ("${KEY}", env["KEY"]),
        ("${NO:-d, e}", "d, e"),
        ("p-${KEY}", "p-" + env["KEY"]),
    ):
        spec = load_spec(wrap % reference, env=env)
        assert spec.models[0].options == {"k": value}


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("models:name[]{}-&*!|>'\"%@`#?, \n\t${}:-0123"), max_size=80))
def test_no_text_breaks_the_loader(text: str) -> None:
    for candidate in (text, f"models:\n  - name: {text}"):
        with suppress(SetupError):
            load_spec(candidate, env={})


def test_default_spec() -> None:
    spec = default_spec()
    assert [(m.name, m.backend, m.weights) for m in spec.models] == [
        ("smollm2-135m", "llamacpp", "smollm2-135m"),
        ("minilm-l6-v2", "onnx_embedding", "minilm-l6-v2"),
        ("whisper-base", "whisper", "whisper-base"),
        ("whisper-tiny.en", "whisper", "whisper-tiny.en"),
        ("kokoro", "kokoro", "kokoro-82m"),
        ("hibari", "hibari", None),
        ("scene", "scene", None),
        ("style", "style_transfer", None),
        ("realesrgan", "realesrgan", "realesrgan"),
    ]
    aliases = {route.name: route.targets[0].model for route in spec.routes}
    assert aliases["whisper-1"] == "whisper-base"
    assert aliases["tts-1"] == aliases["gpt-4o-mini-tts"] == "kokoro"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/Qwen2.5 Coder (0.5B).Q4_K_M.gguf", "Qwen2.5-Coder-0.5B-.Q4_K_M"),
        ("models/ünï '\"${X} $${Y}.gguf", "n-X-Y"),
        ("os.environ/X.gguf", "X"),
        ("/m/...gguf", "model"),
        ("/m/" + "x" * 200 + ".gguf", "x" * 128),
    ],
)
def test_spec_for_one_file(path: str, name: str) -> None:
    model, minilm = spec_for_model(Path(path)).models
    assert (model.name, model.backend, minilm.name) == (name, "llamacpp", "minilm-l6-v2")
    assert model.weights is not None
    assert Path(model.weights) == Path(path)
    assert load_spec(spec_text_for_model(Path(path)), env={}) == spec_for_model(Path(path))


def test_a_thousand_models_are_the_limit() -> None:
    def text(count: int) -> str:
        return "models:\n" + "".join(f"- {{name: m{i}, backend: echo}}\n" for i in range(count))

    assert len(load_spec(text(1000), env={}).models) == 1000
    assert "at most 1000" in refusal(text(1001))


def test_where_and_how_a_model_is_kept_is_read() -> None:
    spec = load_spec(
        "models:\n"
        "  - {name: a, backend: echo, pinned: true, max_batch: 8, replicas: 2, labels: {gpu: h100}}\n"
        "  - {name: b, backend: echo, idle_ttl_s: 90}\n",
        env={},
    )
    a, b = spec.models
    assert (a.pinned, a.max_batch, b.pinned, b.idle_ttl_s) == (True, 8, False, 90.0)
    assert spec.placements == {"a": Placement(2, {"gpu": "h100"})}
    assert narrow(spec, lambda model: model.name == "b").placements == {}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("pinned: 3", "1:35: pinned cannot be 3; allowed: true or false"),
        ("idle_ttl_s: 0", "idle_ttl_s cannot be 0; allowed: seconds, more than 0"),
        ("max_batch: true", "max_batch cannot be True; allowed: a whole number"),
        ("replicas: -1", "replicas cannot be -1; allowed: a whole number from 0"),
        ("labels: {gpu: 1}", "labels cannot be 1; allowed: a mapping of at most 16 names"),
        ("labels: {'g u': a}", "labels cannot be 'a'; allowed: a mapping of at most 16 names"),
    ],
)
def test_a_wrong_way_to_keep_a_model_is_told_with_its_place(field: str, message: str) -> None:
    with pytest.raises(SetupError) as told:
        load_spec(f"models: [{{name: a, backend: echo, {field}}}]", env={})
    assert message in told.value.message
