"""The contract suite over the reference backend, and the proof that each check can fail."""

from __future__ import annotations

import pytest
from jsonschema import ValidationError

from inferhub.backends.echo import Echo
from inferhub.core.models import Capability, ModelSpec
from inferhub.testing.broken import FAULTS, BrokenEcho
from inferhub.testing.contract import CHECKS, Check, checks_for


async def test_echo_keeps_every_promise() -> None:
    echo = Echo(ModelSpec("echo", "echo"), None)
    await echo.load()
    run = [(c.modality, check.name) for c in echo.capabilities for check in checks_for(c)]
    assert len(run) > 30
    for capability in echo.capabilities:
        for check in checks_for(capability):
            await check.run(echo, capability)


CASES = [(check, modality) for check in CHECKS for modality in sorted(check.modalities)]


@pytest.mark.parametrize(("check", "modality"), CASES, ids=lambda value: getattr(value, "name", value))
async def test_each_check_catches_its_fault(
    check: Check, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferhub.testing.contract.frame.PATIENCE_S", 1.0)
    broken = BrokenEcho(check.fault)
    await broken.load()
    capability = next(c for c in broken.capabilities if c.modality == modality)
    assert check in checks_for(capability) or check.feature not in capability.features
    # ZeroDivisionError is the foreign exception itself, ValueError what the JSON parser says.
    with pytest.raises((AssertionError, TimeoutError, ZeroDivisionError, ValueError, ValidationError)):
        await check.run(broken, capability)


def test_every_fault_belongs_to_a_check() -> None:
    assert {check.fault for check in CHECKS} == set(FAULTS)


def test_capabilities_without_a_feature_skip_its_checks() -> None:
    bare = Capability("chat")
    assert all(check.feature is None for check in checks_for(bare))
