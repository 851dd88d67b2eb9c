"""A LiteLLM configuration becomes a hub.yaml that loads, and whatever is lost is named."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from inferhub.core.errors import SetupError
from inferhub.core.traffic import TRANSIENT, Cause
from inferhub.hosting import check_model
from inferhub.settings.litellm import Imported, import_litellm
from inferhub.settings.spec import Spec, load_spec
from inferhub.testing.servers import run_command

CONFIG = """
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: https://eu.example.com/
      api_key: os.environ/AZURE_EU_KEY
      api_version: "2025-01-01-preview"
      rpm: 600
    model_info: {mode: chat, input_cost_per_token: 0.0000025, output_cost_per_token: 1e-5}
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: sk-in-the-clear-0123456789
      rpm: 300
      order: 1
  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet-4-5, api_key: os.environ/ANTHROPIC_API_KEY, tpm: 5}
  - model_name: mine
    litellm_params: {model: hosted_vllm/meta/llama-3, api_base: "http://127.0.0.1:8000/v1"}
  - model_name: small
    litellm_params: {model: openai/qwen, api_base: "http://127.0.0.1:9000/v1", api_key: none}
  - model_name: vectors
    litellm_params: {model: text-embedding-3-small, api_key: os.environ/OPENAI_API_KEY}
    model_info: {mode: embedding}
  - model_name: slow
    litellm_params: {model: gemini/gemini-2.5-pro, api_key: os.environ/GEMINI_API_KEY, timeout: 90}
  - model_name: titan
    litellm_params: {model: bedrock/amazon.titan}
  - model_name: "openai/*"
    litellm_params: {model: "openai/*"}
litellm_settings:
  drop_params: true
  context_window_fallbacks: [{"claude": ["slow"]}]
  success_callback: [langfuse]
router_settings:
  routing_strategy: latency-based-routing
  fallbacks: [{"gpt-4o": ["claude", "nowhere"]}, {"claude": ["gpt-4o"]}]
  model_group_alias: {"gpt-4": "mine", "best": "gpt-4o"}
general_settings:
  master_key: sk-master-secret
"""


class Anything(dict[str, str]):
    """An environment in which every variable is set."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "value"


def loaded(imported: Imported) -> Spec:
    return load_spec(imported.text, env=Anything(), check_model=check_model)


def test_each_deployment_becomes_a_model_that_loads() -> None:
    spec = loaded(import_litellm(CONFIG))
    models = {model.name: model for model in spec.models}
    assert list(models) == [
        "gpt-4o@azure", "gpt-4o@openai", "claude@anthropic", "mine", "small", "vectors", "slow@gemini",
    ]  # fmt: skip
    assert models["gpt-4o@azure"].options["vendor"] == "azure"
    assert models["gpt-4o@azure"].options["upstream_model"] == "gpt-4o-eu"
    assert models["claude@anthropic"].backend == "anthropic"
    assert models["mine"].options["vendor"] == "vllm"
    assert models["mine"].options["upstream_model"] == "meta/llama-3"
    assert "vendor" not in models["small"].options
    assert models["vectors"].options["modalities"] == ["embedding"]


def test_groups_become_routes_with_shares_priorities_and_fallbacks() -> None:
    routes = {route.name: route for route in loaded(import_litellm(CONFIG)).routes}
    assert list(routes) == ["gpt-4o", "claude", "slow", "gpt-4"]
    gpt = routes["gpt-4o"]
    assert [(t.model, t.weight, t.priority) for t in gpt.targets] == [
        ("gpt-4o@azure", 600, 0),
        ("gpt-4o@openai", 300, 1),
    ]
    assert gpt.prefer == "latency"
    assert [f.model for f in gpt.fallbacks] == ["claude@anthropic"]
    assert [(f.model, f.on) for f in routes["claude"].fallbacks] == [
        ("gpt-4o@azure", TRANSIENT),
        ("gpt-4o@openai", TRANSIENT),
        ("slow@gemini", frozenset({Cause.CONTEXT_LENGTH})),
    ]
    assert routes["slow"].patience.request_timeout_s == 90
    assert routes["gpt-4"].models == ("mine",)


def test_prices_are_exact() -> None:
    price = loaded(import_litellm(CONFIG)).prices[0]
    assert price.model == "gpt-4o@azure"
    assert (price.input_token, price.output_token) == (Decimal("0.0000025"), Decimal("0.00001"))


def test_what_was_not_carried_over_is_named() -> None:
    left_out = "\n".join(import_litellm(CONFIG).left_out)
    for thing in (
        "bedrock/amazon.titan", "wildcard", "litellm_params.tpm", "nowhere", "model_group_alias best",
        "litellm_settings.success_callback", "general_settings.master_key", "litellm_settings.drop_params",
    ):  # fmt: skip
        assert thing in left_out


def test_no_secret_is_copied() -> None:
    imported = import_litellm(CONFIG)
    everything = imported.text + "\n".join(imported.left_out)
    assert "sk-in-the-clear" not in everything
    assert "sk-master-secret" not in everything
    assert "${OPENAI_API_KEY}" in imported.text
    assert set(imported.variables) == {
        "AZURE_EU_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "UPSTREAM_API_KEY", "GEMINI_API_KEY",
    }  # fmt: skip


def test_text_that_looks_like_a_reference_stays_text() -> None:
    config = "model_list: [{model_name: m, litellm_params: {model: openai/m, api_base: 'http://x/${HOME}'}}]"
    model = load_spec(import_litellm(config).text, env={}).models[0]
    assert model.options["base_url"] == "http://x/${HOME}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: x", "no 'model_list'"),
        ("model_list: 3", "no 'model_list'"),
        ("model_list: []", "nothing of its 'model_list'"),
        ("model_list: [{model_name: t, litellm_params: {model: bedrock/x}}]", "no backend for 'bedrock/x'"),
        ("model_list: [", "not valid YAML"),
        ("[1, 2]", "no 'model_list'"),
    ],
)
def test_what_is_no_litellm_configuration_is_refused(text: str, said: str) -> None:
    with pytest.raises(SetupError, match=said.replace("'", ".")):
        import_litellm(text)


@pytest.mark.parametrize("value", ["null", "[]", "{}", "7", "text", "[[1]]", "{a: {b: [c]}}"])
@pytest.mark.parametrize("section", ["litellm_settings", "router_settings", "general_settings", "other"])
def test_no_shape_of_a_section_breaks_it(section: str, value: str) -> None:
    base = "model_list: [{model_name: m, litellm_params: {model: gpt-4o}}]\n"
    assert import_litellm(f"{base}{section}: {value}").text
    inner = f"{section}: {{fallbacks: {value}, routing_strategy: {value}, model_group_alias: {value}}}"
    assert import_litellm(base + inner).text


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_yaml_on_stdout_and_what_is_lost_on_stderr(tmp_path: Path) -> None:
    config = tmp_path / "litellm.yaml"
    config.write_text(CONFIG)
    done = run_command("config", "import", str(config))
    assert done.exit_code == 0, done.stderr
    assert yaml.safe_load(done.stdout)["routes"][0]["name"] == "gpt-4o"
    assert "bedrock/amazon.titan" in done.stderr
    assert "Set these before you use it: AZURE_EU_KEY" in done.stderr
    assert json.loads(run_command("config", "import", str(config), "--json").stdout)["left_out"]


def test_the_command_never_overwrites(tmp_path: Path) -> None:
    config, hub = tmp_path / "litellm.yaml", tmp_path / "hub.yaml"
    config.write_text(CONFIG)
    first = run_command("config", "import", str(config), "-o", str(hub))
    assert first.exit_code == 0, first.stderr
    before = hub.read_text()
    second = run_command("config", "import", str(config), "-o", str(hub))
    assert second.exit_code != 0
    assert "exists already" in second.stderr
    assert hub.read_text() == before
