"""The reference pages and the published JSON Schema say what the code does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from inferhub.settings import Settings, reference
from inferhub.settings.spec import DEFAULT_SPEC_TEXT, json_schema, load_spec

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", reference.pages())
def test_committed_page_is_current(name: str) -> None:
    committed = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert committed == reference.pages()[name], "run: python -m inferhub.settings.reference docs/reference"


def test_main_writes_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reference", str(tmp_path / "new")])
    reference.main()
    assert {file.name for file in (tmp_path / "new").iterdir()} == set(reference.pages())


def test_every_setting_is_explained() -> None:
    page = reference.pages()["settings.md"]
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `{name}` |" in page


def test_schema_is_valid_and_agrees_with_the_loader() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert not list(validator.iter_errors(yaml.safe_load(DEFAULT_SPEC_TEXT)))
    assert not list(validator.iter_errors({"models": [{"name": "a", "backend": "echo", "slots": "${N}"}]}))
    for bad in (
        {},
        {"models": [{}]},
        {"models": [], "extra": 1},
        {"models": [{"name": "a b"}]},
        {"models": [{"name": "a", "slots": -1}]},
        {"models": [{"name": "a", "device": "gpu"}]},
        {"models": [], "routes": [{"name": "a"}]},
    ):
        assert list(validator.iter_errors(bad)), bad


def test_the_example_of_the_spec_page_loads() -> None:
    page = reference.pages()["spec.md"]
    example = page.split("```yaml\n")[1].split("```")[0]
    spec = load_spec(example, env={"OPENAI_API_KEY": "sk-x"})
    assert [model.backend for model in spec.models] == ["llamacpp", *["openai_compatible"] * 2]


# The command line hands the environment to the loader, test servers hand it to their processes, and the
# variables of the GPU driver and of gRPC are theirs, not settings.
MAY_READ = {"cli", "testing", "telemetry/resources.py", "transport/__init__.py"}


def test_nothing_else_reads_the_environment() -> None:
    readers = []
    for file in sorted((ROOT / "src" / "inferhub").rglob("*.py")):
        name = file.relative_to(ROOT / "src" / "inferhub").as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            reads = isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
            if reads and not MAY_READ & {name, name.split("/")[0]}:
                readers.append(f"{name}:{node.lineno}")
    assert readers == []
