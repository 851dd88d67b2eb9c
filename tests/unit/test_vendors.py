"""The rows of `vendors.toml`: sound as they are, refused where they are not, and overridden by options."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from inferhub.backends import backend_names
from inferhub.backends.base import check_options
from inferhub.backends.openai_compatible import OpenAICompatible, OpenAICompatibleOptions
from inferhub.backends.openai_compatible.options import addresses, facts
from inferhub.backends.vendors import Vendor, read_row, vendor, vendors
from inferhub.core.errors import SetupError
from inferhub.core.models import ModelSpec
from inferhub.hosting import check_model
from inferhub.settings.spec import load_spec

NAMES = [
    "openai",
    "azure",
    "groq",
    "together",
    "mistral",
    "deepseek",
    "openrouter",
    "xai",
    "fireworks",
    "cohere",
    "jina",
    "vllm",
    "sglang",
    "tgi",
    "ollama",
    "llamacpp_server",
    "lmstudio",
    "inferhub",
]
IN_OWN_NETWORK = {"vllm", "sglang", "tgi", "ollama", "llamacpp_server", "lmstudio"}


def options(**given: Any) -> OpenAICompatibleOptions:
    return msgspec.convert(given, OpenAICompatibleOptions)


def test_every_vendor_has_a_row_and_none_is_a_backend() -> None:
    assert list(vendors()) == NAMES
    assert not {"vendors", "credentials", "http", "remote", "sender"} & set(backend_names())


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_where_and_with_which_key(name: str) -> None:
    row = vendor(name)
    if name == "inferhub":
        assert (row.base_url, row.key_variable) == (None, None)
    elif name in IN_OWN_NETWORK:
        assert row.key_variable is None
        assert urlsplit(row.base_url or "").hostname == "127.0.0.1"
        # A server in one's own network must not fetch what a stranger names.
        assert not row.remote_urls
    else:
        assert row.key_variable is not None
        assert row.key_variable.endswith("_API_KEY")
        assert name == "azure" or (row.base_url or "").startswith("https://")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"modalities": ["telepathy"]}, "unknown modality 'telepathy'"),
        ({"lacks": {"chat": ["levitation"]}}, "chat has no feature 'levitation'"),
        ({"paths": {"smell": "x"}}, "unknown modality 'smell'"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"prefill": "sometimes"}, "Invalid enum value"),
        ({"stream_options": "yes"}, "bool"),
    ],
)
def test_a_row_that_is_not_sound_is_refused(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SetupError) as caught:
        read_row("acme", row)
    assert "'acme'" in caught.value.message
    assert complaint in caught.value.message


def test_options_override_the_row() -> None:
    row = facts(
        options(vendor="groq", base_url="http://proxy/openai/v1", remote_urls=False, modalities=["chat"])
    )
    assert (row.base_url, row.remote_urls, row.modalities) == ("http://proxy/openai/v1", False, ("chat",))
    assert row.lacks == vendor("groq").lacks
    assert facts(options(base_url="http://h", prefill="continue")).prefill == "continue"


def test_of_an_unknown_server_little_is_assumed() -> None:
    row = facts(options(base_url="http://h"))
    assert row == Vendor(base_url="http://h", modalities=("chat", "completion", "embedding", "token_count"))


def test_azure_has_deployments_in_its_paths_and_a_version() -> None:
    azure = {"vendor": "azure", "api_key": "k"}
    for base in ("https://r.openai.azure.com", "https://r.openai.azure.com/openai/"):
        found = addresses(facts(options(base_url=base, **azure)), "my gpt")
        assert found["chat"] == (
            "https://r.openai.azure.com/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"
        )
    found = addresses(facts(options(base_url="https://r.openai.azure.com", api_version="v9", **azure)), "m")
    assert found["embedding"].endswith("/openai/deployments/m/embeddings?api-version=v9")
    newer = addresses(facts(options(base_url="https://r.openai.azure.com/openai/v1", **azure)), "m")
    assert newer["chat"] == "https://r.openai.azure.com/openai/v1/chat/completions"


def test_deepseek_continues_texts_at_another_address_unless_it_is_reached_through_one() -> None:
    assert addresses(facts(options(vendor="deepseek")), "m")["prefill"] == (
        "https://api.deepseek.com/beta/chat/completions"
    )
    proxied = addresses(facts(options(vendor="deepseek", base_url="http://proxy")), "m")
    assert proxied["prefill"] == proxied["chat"] == "http://proxy/v1/chat/completions"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"vendor": "groq"}, {"api_key": "${GROQ_API_KEY}"}),
        ({"vendor": "groq", "api_key": "k"}, {}),
        ({"vendor": "groq", "api_keys": ["k"]}, {}),
        ({"vendor": "groq", "api_key_file": "/k"}, {}),
        ({"vendor": "azure", "headers": {"Api-Key": "k"}}, {}),
        ({"vendor": "vllm"}, {}),
        ({"vendor": "nobody"}, {}),
        ({"base_url": "http://h"}, {}),
    ],
)
def test_the_key_of_a_vendor_comes_from_its_variable_where_none_is_given(
    given: dict[str, Any], expected: dict[str, str]
) -> None:
    spec = ModelSpec("m", "openai_compatible", options=given)
    assert OpenAICompatible.default_options(spec) == expected


SPEC = """\
models:
  - name: m
    options:
      vendor: groq
"""


def test_a_missing_key_is_an_error_at_its_place_that_names_the_variable() -> None:
    with pytest.raises(SetupError) as caught:
        load_spec(SPEC, env={}, check_model=check_model)
    assert caught.value.message == (
        "hub.yaml:3:5: 'api_key' is missing, and environment variable GROQ_API_KEY is not set."
    )
    loaded = load_spec(SPEC, env={"GROQ_API_KEY": "gsk"}, check_model=check_model)
    assert loaded.models[0].options == {"vendor": "groq", "api_key": "gsk"}


def test_a_key_from_the_environment_is_checked_like_any_other_and_not_shown() -> None:
    with pytest.raises(SetupError) as caught:
        load_spec(SPEC, env={"GROQ_API_KEY": "canary\n"}, check_model=check_model)
    assert "'api_key' is empty or has characters" in caught.value.message
    assert "canary" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"vendor": "grok"}, "unknown vendor 'grok'. Did you mean 'groq'?"),
        ({"vendor": "azure"}, "everybody has an own address"),
        ({"vendor": "vllm", "api_key": "canary-1", "api_keys": ["canary-2"]}, "only one of"),
        ({"vendor": "vllm", "api_keys": ["fine", "canary two"]}, "key 2 of 'api_keys'"),
        ({"vendor": "vllm", "api_keys": []}, "length >= 1"),
        ({"vendor": "vllm", "api_keys": [{"key": "canary", "requests_per_minute": 0}]}, ">= 1"),
        ({"vendor": "vllm", "api_keys": [{"key": "canary", "burst": 1}]}, "burst"),
    ],
)
def test_wrong_vendors_and_keys_are_refused_without_echo(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SetupError) as caught:
        check_options(OpenAICompatible, ModelSpec("m", "openai_compatible", options=given))
    assert complaint in caught.value.message
    assert "canary" not in caught.value.message
