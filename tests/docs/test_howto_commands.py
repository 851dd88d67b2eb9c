"""The how-to pages for operators as an operator meets them: their commands are run, on a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inferhub.gateway.alerts import signature
from inferhub.gateway.webhooks import webhook_secret
from inferhub.testing.servers import environment

HOWTOS = Path(__file__).parents[2] / "docs" / "howto"
RUN = ("tenants-and-keys", "limits-and-budgets", "usage-and-invoices", "stores", "migrate-from-litellm")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    text = (HOWTOS / f"{page}.md").read_text(encoding="utf-8")
    return [block for found, block in BLOCK.findall(text) if found == language]


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    places = {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache", "port": 0, "metrics_port": 0}
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", "-euo", "pipefail", "-c", "\n".join(blocks(page, "bash"))]
    done = subprocess.run(
        script,
        cwd=tmp_path,
        env=environment(places) | {"PATH": binaries},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Error" not in done.stderr, done.stderr


def test_the_settings_of_a_page_are_right(tmp_path: Path) -> None:
    [settings] = blocks("stores", "toml")
    (tmp_path / "inferhub.toml").write_text(settings)
    done = subprocess.run(
        [sys.executable, "-m", "inferhub", "config", "check"],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_check_of_a_webhook_takes_what_is_ours_and_nothing_else() -> None:
    names: dict[str, Any] = {}
    [code] = blocks("limits-and-budgets", "python")
    exec(code, names)  # noqa: S102 - the page's own lines
    is_ours = names["is_ours"]
    secret, body, now = webhook_secret(b"p" * 32, "ten_a"), b'{"type":"budget.threshold"}', int(time.time())
    assert is_ours(secret, signature(secret, now, body), body)
    assert not is_ours(secret, signature(secret, now, body), body + b" ")
    assert not is_ours(secret, signature(secret, now - 3600, body), body)
    assert not is_ours(webhook_secret(b"p" * 32, "ten_b"), signature(secret, now, body), body)
