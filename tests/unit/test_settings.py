"""The loader of settings: who wins, where a value came from, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferhub.core.errors import SetupError
from inferhub.settings import Loaded, Settings, load_settings
from inferhub.settings.nearest import nearest
from inferhub.settings.sources import read_dotenv

PEPPER = "canary-pepper-0123456789"


def load(
    cwd: Path, flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, **files: str
) -> Loaded:
    for name, text in files.items():
        (cwd / {"toml": "inferhub.toml", "dotenv": ".env"}[name]).write_text(text)
    return load_settings(flags or {}, env=env or {}, cwd=cwd)


def refusal(cwd: Path, **given: Any) -> str:
    with pytest.raises(SetupError) as caught:
        load(cwd, **given)
    return caught.value.message


SOURCES = {
    "toml": ({"toml": "# comment\nport = 1"}, 1, "inferhub.toml:2"),
    "dotenv": ({"dotenv": "A=b\n\nINFERHUB_PORT=2"}, 2, ".env:3"),
    "conventional env": ({"env": {"PORT": "3"}}, 3, "env PORT"),
    "env": ({"env": {"INFERHUB_PORT": "4"}}, 4, "env INFERHUB_PORT"),
    "flag": ({"flags": {"port": 5}}, 5, "flag --port"),
}


@pytest.mark.parametrize("count", range(len(SOURCES) + 1))
def test_each_source_beats_those_before_it(tmp_path: Path, count: int) -> None:
    given: dict[str, Any] = {}
    value, origin = 8000, "default"
    for source, value_here, origin_here in list(SOURCES.values())[:count]:
        for key, content in source.items():
            given[key] = given[key] | content if key in given and key == "env" else content
        value, origin = value_here, origin_here
    loaded = load(tmp_path, **given)
    assert (loaded.settings.port, loaded.origins["port"]) == (value, origin)


def test_every_setting_has_an_origin_and_can_be_shown(tmp_path: Path) -> None:
    loaded = load(tmp_path, env={"INFERHUB_WORKER": "10.0.0.1:50051, [::1]:2"})
    assert set(loaded.origins) == set(Settings.model_fields)
    rows = {name: (value, origin) for name, value, origin in loaded.explain()}
    assert rows["worker"] == ("10.0.0.1:50051, [::1]:2", "env INFERHUB_WORKER")
    assert rows["strict_local_transport"] == ("false", "default")
    assert rows["spec_file"] == ("-", "default")


def test_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "place", "name", "suggestion"),
    [
        ({"toml": "\nprot = 1"}, "inferhub.toml:2", "prot", "port"),
        ({"toml": "[server]\nport = 1"}, "inferhub.toml:1", "server", None),
        ({"toml": "max-body-bytes = 1"}, "inferhub.toml:1", "max-body-bytes", "max_body_bytes"),
        ({"dotenv": "INFERHUB_PORRT=1"}, ".env:1", "INFERHUB_PORRT", "INFERHUB_PORT"),
        ({"env": {"INFERHUB_LOGLEVEL": "info"}}, "env INFERHUB_LOGLEVEL", "", "INFERHUB_LOG_LEVEL"),
        ({"env": {"INFERHUB_port": "1"}}, "env INFERHUB_port", "", "INFERHUB_PORT"),
        ({"env": {"INFERHUB_PORT_FILE": "/x"}}, "env INFERHUB_PORT_FILE", "", "INFERHUB_PORT"),
        ({"flags": {"hots": "x"}}, "flag", "--hots", "--host"),
    ],
)
def test_unknown_names_are_refused_with_place_and_nearest(
    tmp_path: Path, given: dict[str, Any], place: str, name: str, suggestion: str | None
) -> None:
    message = refusal(tmp_path, **given)
    assert place in message
    assert name in message
    assert (f"Did you mean {suggestion!r}?" if suggestion else "unknown setting") in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("port", "70000", "a whole number from 0 to 65535"),
        ("port", "eighty", "a whole number from 0 to 65535"),
        ("port", True, "a whole number from 0 to 65535"),
        ("idle_timeout_s", "nan", "a number above 0 up to 86400"),
        ("idle_timeout_s", "0", "a number above 0 up to 86400"),
        ("log_format", "xml", "json, text"),
        ("worker", "localhost", "a list of HOST:PORT"),
        ("worker", "a:99999", "a list of HOST:PORT"),
        ("strict_local_transport", "perhaps", "true or false"),
        ("worker_id", "a b", "text that matches"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(
    tmp_path: Path, name: str, value: Any, allowed: str
) -> None:
    message = refusal(tmp_path, flags={name: value})
    assert f"flag --{name.replace('_', '-')}: {name} cannot be" in message
    assert allowed in message


def test_a_toml_value_of_the_wrong_type_names_its_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, toml='host = "x"\nport = [1]\nlog_level = 3')
    assert "inferhub.toml:2: port cannot be [1]" in message
    assert "inferhub.toml:3: log_level cannot be 3; allowed: debug, info, warning, error" in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        toml="port = 'x'\nhots = 1\ndata_dir = 3",
        dotenv="INFERHUB_PROT=1\nnonsense",
        env={"INFERHUB_WORKER": "nowhere"},
        flags={"max_attempts": 99},
    )
    assert message.startswith("7 problems")
    for part in ("inferhub.toml:1", "hots", "inferhub.toml:3", ".env:1", ".env:2", "nowhere", "99"):
        assert part in message


@pytest.mark.parametrize("toml", ["port = ", "port = 1\nport = 2", "\x00"])
def test_broken_toml_is_refused_with_its_line(tmp_path: Path, toml: str) -> None:
    message = refusal(tmp_path, toml=toml)
    assert "inferhub.toml: not valid TOML" in message
    assert "(at " in message


def test_another_settings_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hub.toml").write_text('port = 9\ndata_dir = "data"')
    loaded = load(tmp_path, toml="port = 1", env={"INFERHUB_CONFIG": "etc/hub.toml"})
    assert loaded.settings.port == 9
    assert loaded.origins["port"] == "etc/hub.toml:1"
    assert loaded.settings.data_dir == tmp_path / "etc" / "data"
    assert "missing.toml" in refusal(tmp_path, flags={"config": tmp_path / "missing.toml"})
    assert "--config" in refusal(tmp_path, toml='config = "other.toml"')


def test_relative_paths_start_at_the_working_directory(tmp_path: Path) -> None:
    loaded = load(tmp_path, flags={"spec_file": "hub.yaml"}, env={"INFERHUB_DATA_DIR": "here"})
    assert loaded.settings.spec_file == tmp_path / "hub.yaml"
    assert loaded.settings.data_dir == tmp_path / "here"
    assert loaded.settings.catalog_url == f"sqlite:///{tmp_path}/here/catalog.db"


def test_conventions_of_the_environment(tmp_path: Path) -> None:
    loaded = load(tmp_path, env={"NO_COLOR": "1", "LOG_LEVEL": "WARN", "PORT": "81", "INFERHUB_PORT": "82"})
    assert (loaded.settings.color, loaded.settings.log_level, loaded.settings.port) == (
        "never",
        "warning",
        82,
    )
    assert loaded.origins["color"] == "env NO_COLOR"
    assert "env LOG_LEVEL: log_level cannot be 'loud'" in refusal(tmp_path, env={"LOG_LEVEL": "loud"})


def test_an_empty_variable_and_an_ungiven_flag_count_as_not_set(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, env={"INFERHUB_PORT": "", "NO_COLOR": ""}, flags={"port": None, "worker": [], "host": None}
    )
    assert loaded.settings == load(tmp_path).settings


def test_equal_ports_are_refused(tmp_path: Path) -> None:
    assert "both 9000" in refusal(tmp_path, flags={"port": 9000, "metrics_port": 9000})
    load(tmp_path, flags={"port": 0, "metrics_port": 0})


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        env={"INFERHUB_PEPPER": PEPPER, "INFERHUB_WORKER_TOKEN": PEPPER, "OPENAI_API_KEY": PEPPER},
        flags={"catalog_url": "postgresql://user:canary-pepper-0123456789@db/hub"},
    )
    assert PEPPER not in repr(loaded.settings).replace(loaded.settings.catalog_url, "")
    assert PEPPER not in str(loaded.explain())
    rows = {name: value for name, value, _ in loaded.explain()}
    assert rows["pepper"] == rows["worker_token"] == "***"
    assert rows["catalog_url"] == "postgresql://***@db/hub"
    assert loaded.settings.pepper is not None
    assert loaded.settings.pepper.get_secret_value() == PEPPER
    assert loaded.environment["OPENAI_API_KEY"] == PEPPER


def test_a_refused_secret_is_not_repeated(tmp_path: Path) -> None:
    message = refusal(tmp_path, env={"INFERHUB_PEPPER": "sh0rt-canary"}, toml='worker_token = "canary"')
    assert "canary" not in message
    assert "16 to 4096 characters" in message


def test_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "p").write_text(f"{PEPPER}\n")
    loaded = load(tmp_path, env={"INFERHUB_PEPPER_FILE": str(tmp_path / "p")}, toml='worker_token_file = "p"')
    for secret in (loaded.settings.pepper, loaded.settings.worker_token):
        assert secret is not None
        assert secret.get_secret_value() == PEPPER
    assert loaded.origins["pepper"] == "env INFERHUB_PEPPER_FILE"
    both = {"INFERHUB_PEPPER_FILE": "p", "INFERHUB_PEPPER": PEPPER}
    assert "keep one" in refusal(tmp_path, env=both)
    assert "No such file" in refusal(tmp_path, env={"INFERHUB_PEPPER_FILE": "nowhere"})


def test_dotenv_syntax(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        '# comment\n\n  A=1\nexport B = two words  # comment\nC=\'li#t\\n\'\nD="a\\nb\\"c" # x\n'
        'E="over\ntwo lines"\nF=\nG=a#b\r\nOTHER.NAME=x\nURL=http://x/?a=b'
    )
    problems: list[str] = []
    found = {name: value for name, (value, _) in read_dotenv(file, problems).items()}
    assert problems == []
    assert found == {
        "A": "1",
        "B": "two words",
        "C": "li#t\\n",
        "D": 'a\nb"c',
        "E": "over\ntwo lines",
        "F": "",
        "G": "a#b",
        "OTHER.NAME": "x",
        "URL": "http://x/?a=b",
    }
    assert read_dotenv(file, problems)["G"][1] == 10


def test_a_dotenv_of_others_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()  # some name their virtual environment so
    assert load(tmp_path).settings.port == 8000


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"A=1\n" + b"#" * (1024 * 1024)])
def test_unreadable_files_are_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / ".env").write_bytes(raw)
    assert ".env" in refusal(tmp_path)


def test_the_environment_beats_dotenv_in_what_references_see(tmp_path: Path) -> None:
    loaded = load(tmp_path, dotenv="A=file\nB=file", env={"A": "env"})
    assert loaded.environment == {"A": "env", "B": "file"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_no_text_breaks_the_loader(tmp_path: Path, text: str) -> None:
    """Any `.env`, `inferhub.toml` and variable gives settings or a `SetupError`, nothing else."""
    for file in (".env", "inferhub.toml"):
        (tmp_path / file).write_text(text, encoding="utf-8", errors="replace")
        with suppress(SetupError):
            load_settings({"worker_id": text}, env={"INFERHUB_HOST": text}, cwd=tmp_path)
        (tmp_path / file).unlink()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=40))
def test_dotenv_gives_quoted_values_back(tmp_path: Path, value: str) -> None:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    (tmp_path / ".env").write_text(f'A="{escaped}"\nB=end', encoding="utf-8", newline="")
    problems: list[str] = []
    found = read_dotenv(tmp_path / ".env", problems)
    assert problems == []
    assert found["A"][0] == value
    assert found["B"][0] == "end"


def test_nearest() -> None:
    assert nearest("SMOLLM2-135", ["smollm2-135m", "minilm"]) == "smollm2-135m"
    assert nearest("x" * 1_000_000, ["smollm2-135m"]) is None
    assert nearest("zzz", ["abc"]) is None


def test_importing_settings_is_cheap() -> None:
    heavy = ["sqlalchemy", "alembic", "yaml", "fastapi", "grpc", "numpy"]
    code = f"import inferhub.settings, sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
