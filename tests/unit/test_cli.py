"""The command line without a server: its help, its words, its exit codes, and the verbs that work offline."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from inferhub.cli import VERBS
from inferhub.cli._errors import EXIT_CODES, REMEDIES, ExitCode, ServerRefused, exit_code, printable, report
from inferhub.cli._flags import setting_names
from inferhub.cli._reference import commands, help_text, pages
from inferhub.cli._serving import banner, copy_lines
from inferhub.core import errors
from inferhub.settings import Settings
from inferhub.testing.servers import command, environment

ROOT = Path(__file__).parents[2]
COMMANDS = dict(commands())


def run(
    folder: Path, *arguments: str, stdin: str = "", **settings: object
) -> subprocess.CompletedProcess[str]:
    """`inferhub …` as a user runs it, with its data in `folder`."""
    places = {"data_dir": folder / "data", "cache_dir": folder / "cache", "port": 9, "metrics_port": 0}
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment({**places, **settings}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_json(folder: Path, *arguments: str, **settings: object) -> Any:
    done = run(folder, *arguments, "--json", **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- help -----------------------------------------------------------------------------------------


def test_the_help_lists_what_each_verb_says_of_itself() -> None:
    for verb, sentence in VERBS.items():
        help_of_verb = COMMANDS[f"inferhub {verb}"].help
        assert help_of_verb is not None
        assert help_of_verb.strip().splitlines()[0] == sentence


@pytest.mark.parametrize("name", [name for name, c in COMMANDS.items() if not hasattr(c, "commands")])
def test_every_command_has_examples_and_json(name: str) -> None:
    text = help_text(name, COMMANDS[name])
    examples = text.partition("Examples:")[2]
    assert name.removeprefix("inferhub ") in examples
    assert "--json" in {flag for parameter in COMMANDS[name].params for flag in parameter.opts}


def test_serve_has_a_flag_for_every_setting_that_it_reads() -> None:
    flags = {parameter.name for parameter in COMMANDS["inferhub serve"].params}
    of_others = ("worker", "worker_listen", "worker_token_file", "worker_refresh_s", "processes")
    of_a_fleet = ("advertise", "orchestrator", "orchestrator_listen", "fleet_url", "launcher")
    of_its_tls = ("fleet_cert_file", "fleet_key_file", "fleet_ca_file")
    expected = set(setting_names(without=(*of_others, *of_a_fleet, *of_its_tls)))
    assert expected <= flags
    assert not {"pepper", "worker_token"} & flags, "secrets do not belong on a command line"


def test_every_setting_is_a_flag_somewhere() -> None:
    flags = {p.name.removesuffix("_file") for c in COMMANDS.values() for p in c.params if p.name}
    assert {name.removesuffix("_file") for name in Settings.model_fields} <= flags


@pytest.mark.parametrize("name", pages())
def test_committed_reference_is_current(name: str) -> None:
    committed = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert committed == pages()[name], "run: make docs"


def test_every_exit_code_is_documented() -> None:
    assert set(EXIT_CODES) == set(ExitCode)


def test_remedies_are_for_codes_that_exist() -> None:
    known = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    assert set(REMEDIES) <= known


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SetupError("x"), 1),
        (errors.ServerUnreachable("x"), 3),
        (ServerRefused(errors.SetupError("x")), 4),
        (ServerRefused(errors.Unauthenticated("x")), 4),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_is_told_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    report(errors.WeightsMissing("gone"), as_json=False)
    assert capsys.readouterr().err == f"Error: gone\nRemedy: {REMEDIES['weights_missing']}\n"


def test_an_unexpected_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        report(ZeroDivisionError(), as_json=False)


def test_nothing_foreign_steers_the_terminal() -> None:
    assert printable("a\x1b[31mb\x9b2Jc\x00\r\n\td") == "a[31mb2Jc\n    d"


def test_a_reader_that_has_enough_is_no_traceback(tmp_path: Path) -> None:
    arguments = command("config", "explain")
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_wrong_usage_is_2(tmp_path: Path) -> None:
    for arguments in (["sreve"], ["serve", "--prot", "1"], ["keys", "create"], ["apply"]):
        done = run(tmp_path, *arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr
    assert "Did you mean 'serve'" in run(tmp_path, "sreve").stderr


def test_a_wrong_setting_names_place_and_allowed_values(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--port", "99999")
    assert done.returncode == 1
    assert "flag --port" in done.stderr
    assert "0 to 65535" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_in_json_are_one_object_on_stderr(tmp_path: Path) -> None:
    done = run(tmp_path, "chat", "hello", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "server_unreachable"
    assert error["exit_code"] == 3
    assert "inferhub serve" in error["remedy"]


# --- keys, apply, config, env: on the catalog and the files alone ---------------------------------


def test_keys_from_creation_to_revocation(tmp_path: Path) -> None:
    done = run(tmp_path, "keys", "create", "alice")
    assert done.returncode == 0
    key = done.stdout.strip()
    assert key.startswith("ih_")
    assert key not in done.stderr
    assert run_json(tmp_path, "keys", "create", "bob", "--role", "admin")["role"] == "admin"
    listed = run(tmp_path, "keys", "list").stdout
    assert "alice" in listed
    assert key not in listed
    by_name = {card["name"]: card for card in run_json(tmp_path, "keys", "list")}
    assert by_name["alice"]["role"] == "enterprise"
    assert run_json(tmp_path, "keys", "revoke", by_name["alice"]["id"])["revoked_at"]
    assert {card["name"] for card in run_json(tmp_path, "keys", "list") if card["revoked_at"]} == {"alice"}


def test_a_whole_key_pasted_for_its_id_is_not_repeated(tmp_path: Path) -> None:
    secret = "ih_abcdefghijkl_" + "s" * 32
    done = run(tmp_path, "keys", "revoke", secret)
    assert done.returncode == 1
    assert "ssss" not in done.stderr


def test_unusable_key_names_and_roles_are_refused(tmp_path: Path) -> None:
    assert run(tmp_path, "keys", "create", "").returncode == 1
    assert run(tmp_path, "keys", "create", "x", "--role", "king").returncode == 2
    assert run_json(tmp_path, "keys", "list") == []


def test_apply_offline_is_for_the_next_start(tmp_path: Path) -> None:
    spec = tmp_path / "hub.yaml"
    spec.write_text("models: [{name: a, backend: echo}]")
    assert run_json(tmp_path, "apply", "-f", str(spec), "--offline") == {"revision": 1, "offline": True}
    stale = run(tmp_path, "apply", "-f", str(spec), "--offline", "--if-revision", "0")
    assert stale.returncode == 1
    assert run_json(tmp_path, "apply", "-f", str(spec), "--offline", "--if-revision", "1")["revision"] == 2
    spec.write_text("models: [{name: a, backend: nonsense}]")
    assert run(tmp_path, "apply", "-f", str(spec), "--offline").returncode == 1


def test_apply_dry_run_names_every_problem_with_its_place(tmp_path: Path) -> None:
    spec = tmp_path / "hub.yaml"
    spec.write_text("models:\n  - {name: a, backend: ecco}\n  - {name: b, bakend: echo}\n")
    done = run(tmp_path, "apply", "-f", "hub.yaml", "--dry-run")
    assert done.returncode == 1
    assert "hub.yaml:3" in done.stderr
    assert not (tmp_path / "data").exists()
    good = run(tmp_path, "apply", "-f", "-", "--dry-run", stdin="models: [{name: a, backend: echo}]")
    assert good.returncode == 0
    assert run(tmp_path, "apply", "-f", "none.yaml", "--dry-run").returncode == 1


def test_config(tmp_path: Path) -> None:
    (tmp_path / "inferhub.toml").write_text("max_inflight = 7\n")
    shown = run_json(tmp_path, "config", "explain", pepper="p" * 20)
    assert shown["max_inflight"] == {"value": "7", "origin": "inferhub.toml:1"}
    assert shown["port"]["origin"] == "env INFERHUB_PORT"
    assert shown["pepper"]["value"] == "***"
    assert run_json(tmp_path, "config", "check")["ok"] is True
    assert "Did you mean 'max_inflight'" in run(tmp_path, "config", "explain", "max_in_flight").stderr
    (tmp_path / "inferhub.toml").write_text("max_inflght = 7\n")
    bad = run(tmp_path, "config", "check")
    assert bad.returncode == 1
    assert "inferhub.toml:1" in bad.stderr
    assert "$schema" in json.loads(run(tmp_path, "config", "schema").stdout)


def test_env_prints_exports_and_never_a_vendors_key(tmp_path: Path) -> None:
    done = run(tmp_path, "env", "--url", "http://h:1/", "--key", "ih_x")
    assert done.stdout == "export OPENAI_BASE_URL=http://h:1/v1\nexport OPENAI_API_KEY=ih_x\n"
    vendor = subprocess.run(
        command("env", "--json"),
        cwd=tmp_path,
        env={**environment({}), "OPENAI_API_KEY": "sk-vendor"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(vendor.stdout) == {"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"}


def test_models_that_are_not_here(tmp_path: Path) -> None:
    cards = run_json(tmp_path, "models", "list")
    assert {card["state"] for card in cards if not card["shipped"]} == {"missing"}
    assert {card["state"] for card in cards if card["shipped"]} == {"present"}
    assert run(tmp_path, "models", "verify", "smollm2-135m").returncode == 1
    unknown = run(tmp_path, "models", "pull", "smollm2")
    assert unknown.returncode == 1
    assert "Did you mean 'smollm2-135m'" in unknown.stderr


def test_serve_without_weights_says_how_to_get_them(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--port", "0")
    assert done.returncode == 1
    assert "inferhub models pull" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_model_file_that_is_not_there(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--model", "none.gguf")
    assert done.returncode == 1
    assert str(tmp_path / "none.gguf") in done.stderr


# --- doctor ---------------------------------------------------------------------------------------


def findings(folder: Path, *arguments: str, **settings: object) -> tuple[int, dict[str, Any]]:
    done = run(folder, "doctor", "--json", *arguments, **settings)
    report = json.loads(done.stdout)
    assert report["problems"] == sum(f["status"] == "problem" for f in report["findings"])
    assert all(f["remedy"] for f in report["findings"] if f["status"] == "problem")
    return done.returncode, {f["name"]: f for f in report["findings"]}


def test_doctor_on_a_new_machine(tmp_path: Path) -> None:
    code, found = findings(tmp_path, "--port", "0")
    assert code == 1
    assert found["model smollm2-135m"]["status"] == "problem"
    assert "inferhub models pull" in found["model smollm2-135m"]["remedy"]
    assert found["catalog"]["status"] == "note"
    assert found["server"]["status"] == "note"
    assert found["device cpu"]["status"] == "ok"
    assert "chat" in found["backends"]["text"]
    assert not (tmp_path / "data").exists(), "a look changes nothing"


def test_doctor_finds_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "hub.yaml").write_text("models: [{name: a, backend: echo}]")
    code, found = findings(tmp_path, "--port", "0", "--spec", "hub.yaml", max_inflight=1)
    assert code == 0, found
    text = run(tmp_path, "doctor", "--port", "0", "--spec", "hub.yaml", max_inflight=1)
    assert text.stdout.endswith("0 problems found.\n")
    assert "\x1b" not in text.stdout


@pytest.mark.parametrize("name", ["settings", "catalog", "spec", "file descriptors", "port", "server"])
def test_doctor_finds_what_is_broken(tmp_path: Path, name: str, taken_port: int) -> None:
    arguments = ["--port", "0"]
    settings: dict[str, object] = {}
    if name == "settings":
        settings["max_inflght"] = 3
    elif name == "catalog":
        (tmp_path / "data").mkdir(mode=0o700)
        (tmp_path / "data/catalog.db").write_bytes(b"not a database at all" * 100)
    elif name == "spec":
        (tmp_path / "hub.yaml").write_text("models: [{nme: a}]")
        arguments += ["--spec", "hub.yaml"]
    elif name == "file descriptors":
        settings["max_inflight"] = 1_000_000
    elif name == "port":
        arguments = ["--port", str(taken_port)]
    else:
        arguments += ["--url", "http://127.0.0.1:9"]
    code, found = findings(tmp_path, *arguments, **settings)
    assert code == 1
    assert found[name]["status"] == "problem"
    if name == "port":
        assert f"process {os.getpid()}" in found[name]["text"]


@pytest.fixture
def taken_port() -> Any:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


# --- the banner -----------------------------------------------------------------------------------


def test_banner_shows_the_key_only_when_it_is_new() -> None:
    from inferhub.assembly import Ready

    new = banner(Ready("http://h:1", "http://h:2", ("m",), "ih_new", "m"))
    assert "shown only now: ih_new" in new
    again = banner(Ready("http://h:1", "http://h:2", ("m",)))
    assert "ih_" not in again
    assert "inferhub keys create" in again
    assert "$OPENAI_API_KEY" in again


def test_the_copy_lines_are_words_a_shell_understands() -> None:
    import shlex

    curl, python, exports = copy_lines("http://h:1/v1", "ih_k", "it's")
    assert shlex.split(curl)[0] == "curl"
    compile(shlex.split(python)[2], "copy line", "exec")
    assert exports == "export OPENAI_BASE_URL=http://h:1/v1 OPENAI_API_KEY=ih_k"
