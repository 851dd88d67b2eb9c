"""What starts fast stays fast: the first imports and the help load nothing heavy.

Looks at what was loaded, not at a clock, so that a slow machine changes nothing.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "aiohttp", "alembic", "fastapi", "grpc", "msgspec", "numpy", "onnxruntime", "psutil", "pydantic",
    "rich", "sqlalchemy", "starlette", "tokenizers", "torch", "uvicorn", "uvloop", "xllamacpp",
}  # fmt: skip
ENGINES = {"numpy", "onnxruntime", "tokenizers", "torch", "xllamacpp"}


def loaded_by(code: str) -> set[str]:
    """The top-level modules after `code` ran in a fresh interpreter, whatever it printed."""
    program = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_import_inferhub_loads_nothing_heavy() -> None:
    assert not loaded_by("import inferhub") & (HEAVY | {"typer", "asyncio"})


def test_help_loads_nothing_heavy() -> None:
    code = "sys.argv = ['inferhub', '--help']; from inferhub.cli import main; main()"
    loaded = loaded_by(code)
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_an_unknown_verb_loads_no_verb() -> None:
    code = "sys.argv = ['inferhub', 'sreve']; from inferhub.cli import main; main()"
    assert not loaded_by(code) & (HEAVY - {"pydantic"})


@pytest.mark.parametrize("module", ["inferhub.client", "inferhub.assembly", "inferhub.gateway.app"])
def test_no_engine_is_loaded_before_a_model_is(module: str) -> None:
    assert not loaded_by(f"import {module}") & ENGINES


def test_the_client_loads_no_server() -> None:
    loaded = loaded_by("import inferhub.client")
    assert not loaded & {"fastapi", "starlette", "uvicorn", "grpc", "sqlalchemy", "pydantic"}
