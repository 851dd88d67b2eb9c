"""What `import inferhub` offers: listed, sorted, and there."""

from __future__ import annotations

import importlib.metadata

import pytest

import inferhub


def test_public_names_are_sorted_and_exist() -> None:
    assert inferhub.__all__ == sorted(inferhub.__all__)
    for name in inferhub.__all__:
        assert getattr(inferhub, name) is not None


def test_nothing_else_is_offered() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = inferhub.Server


def test_public_names_are_those_of_their_homes() -> None:
    from inferhub.client import Client
    from inferhub.core.errors import InferHubError

    assert inferhub.Client is Client
    assert inferhub.InferHubError is InferHubError


def test_the_version_is_that_of_the_installed_package() -> None:
    assert importlib.metadata.version("inferhub") == inferhub.__version__
