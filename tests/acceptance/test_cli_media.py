"""`inferhub transcribe`, `speak`, `see` and `draw` as people use them, against a server with real models."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from inferhub.testing.servers import Hub, command, environment, running_hub

DATA = Path(__file__).parents[1] / "data"
SPEC = """\
models:
  - {name: tiny, backend: whisper, weights: whisper-tiny.en}
  - {name: hibari, backend: hibari}
  - {name: scene, backend: scene}
  - {name: style, backend: style_transfer}
"""
SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Hub]:
    with running_hub("serve", tmp_path_factory.mktemp("cli"), SPEC, {"cache_dir": cache_dir}) as running:
        yield running


def surroundings(hub: Hub) -> dict[str, str]:
    server = {"OPENAI_BASE_URL": hub.api, "OPENAI_API_KEY": hub.admin_key}
    return environment({"data_dir": hub.data_dir}) | server | {"TERM": "dumb"}


def run(
    hub: Hub, folder: Path, *arguments: str, stdin: bytes = b"", code: int = 0
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=surroundings(hub),
        input=stdin,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return done


def test_what_is_spoken_is_heard(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "speak", SENTENCE, "-o", "fox.mp3")
    assert (tmp_path / "fox.mp3").stat().st_size > 5000
    heard = run(hub, tmp_path, "transcribe", "fox.mp3").stdout.decode()
    assert heard.strip().rstrip(".").lower() == SENTENCE.rstrip(".").lower()
    run(hub, tmp_path, "transcribe", "fox.mp3", "--format", "srt", "-o", "fox.srt")
    assert (tmp_path / "fox.srt").read_text().startswith("1\n00:00:0")
    verbose = run(
        hub,
        tmp_path,
        "transcribe",
        "-",
        "--format",
        "verbose_json",
        stdin=(tmp_path / "fox.mp3").read_bytes(),
    )
    assert json.loads(verbose.stdout)["duration"] > 1


def test_sound_goes_down_a_pipe_as_wav(hub: Hub, tmp_path: Path) -> None:
    sound = run(hub, tmp_path, "speak", "Hello.").stdout
    assert sound[:4] == b"RIFF"
    story = run(hub, tmp_path, "speak", "--file", "-", "-o", "story.flac", stdin=b"Once upon a time.")
    assert b"story.flac" in story.stderr
    assert (tmp_path / "story.flac").read_bytes()[:4] == b"fLaC"


def test_the_microphone_is_heard_until_ctrl_c(hub: Hub, tmp_path: Path) -> None:
    """There is no microphone here: a stand-in for `arecord` plays a recording, then silence without end."""
    with wave.open(str(DATA / "two_cities.wav")) as file:
        rate, sound = file.getframerate(), file.readframes(file.getframerate() * 5)
    assert rate == 48_000
    (tmp_path / "sound").write_bytes(b"".join(sound[at : at + 2] for at in range(0, len(sound), 6)))
    recorder = tmp_path / "arecord"
    recorder.write_text(
        f"#!/bin/sh\ncat {tmp_path}/sound\nexec cat /dev/zero | head -c 64000; exec sleep 100\n"
    )
    recorder.chmod(0o755)
    env = surroundings(hub)
    process = subprocess.Popen(
        command("transcribe", "--mic", "--model", "tiny"),
        cwd=tmp_path,
        env=env | {"PATH": f"{tmp_path}{os.pathsep}{env['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        heard = process.stdout.readline()
        assert b"best of times" in heard
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, complaints


def test_without_a_recorder_its_package_is_named(hub: Hub, tmp_path: Path) -> None:
    done = subprocess.run(
        command("transcribe", "--mic"),
        cwd=tmp_path,
        env=surroundings(hub) | {"PATH": str(tmp_path)},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert b"alsa-utils" in done.stderr


def test_voices_are_listed(hub: Hub, tmp_path: Path) -> None:
    listed = json.loads(run(hub, tmp_path, "speak", "--voices", "--json").stdout)
    assert {voice["model"] for voice in listed} == {"hibari"}
    assert b"LANGUAGE" in run(hub, tmp_path, "speak", "--voices").stdout


def test_a_picture_is_described_and_asked_about(hub: Hub, tmp_path: Path) -> None:
    assert b"cup" in run(hub, tmp_path, "see", str(DATA / "coffee.png")).stdout
    total = run(hub, tmp_path, "see", str(DATA / "invoice.png"), "What is the total?").stdout
    assert b"$1,249.50" in total
    facts = json.loads(run(hub, tmp_path, "see", str(DATA / "coffee.png"), "--json").stdout)
    assert "cup" in {found["name"] for found in facts["objects"]}


def test_a_picture_is_made_of_another(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "draw", "--image", str(DATA / "chelsea.png"), "--style", "3", "-o", "cat.jpg")
    with Image.open(tmp_path / "cat.jpg") as picture, Image.open(DATA / "chelsea.png") as cat:
        assert picture.format == "JPEG"
        assert picture.size == cat.size
    piped = run(hub, tmp_path, "draw", "-i", str(DATA / "chelsea.png"), "--style", "3").stdout
    assert Image.open(io.BytesIO(piped)).format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("transcribe",), "--mic"),
        (("transcribe", "absent.wav"), "absent.wav cannot be read"),
        (("transcribe", "cat.txt"), "no audio"),
        (("speak",), "--file"),
        (("speak", "Hi", "-o", "there.mp3"), "there.mp3 exists already"),
        (("speak", "Hi", "-o", "new.docx"), "'docx' is no format"),
        (("speak", "Hi", "-o", "nowhere/new.mp3"), "is not a folder"),
        (("speak", "Hi", "--emotion", "bored", "-o", "new.mp3"), "neutral"),
        (("speak", "Hi", "--voice", "nobody", "-o", "new.mp3"), "nobody"),
        (("see", "cat.txt"), "no image"),
        (("draw",), "--image"),
        (("draw", "A cat", "-o", "new.png"), "generate"),
        (("draw", "-i", "cat.txt", "-o", "new.png"), "no image"),
        (("draw", "-i", "cat.txt", "-o", "new.bmp"), "'.bmp' is no format"),
    ],
)
def test_what_is_wrong_is_said_and_leaves_no_file(
    hub: Hub, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "there.mp3").write_bytes(b"mine")
    (tmp_path / "cat.txt").write_text("a cat")
    done = subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        env=surroundings(hub),
        input=b"",
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    assert said in done.stderr.decode(), done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"there.mp3", "cat.txt"}
    assert (tmp_path / "there.mp3").read_bytes() == b"mine"


def test_a_terminal_gets_no_bytes_of_sound_but_a_bar(hub: Hub, tmp_path: Path) -> None:
    seen = at_a_terminal(hub, tmp_path, "speak", "Hi")
    assert b"Say where the result goes" in seen
    assert b"RIFF" not in seen
    run(hub, tmp_path, "speak", SENTENCE, "-o", "fox.mp3")
    assert b"Speaking" in at_a_terminal(
        hub, tmp_path, "speak", SENTENCE, "-o", "fox.mp3", "--force", TERM="xterm"
    )


def at_a_terminal(hub: Hub, folder: Path, *arguments: str, **variables: str) -> bytes:
    """What a terminal shows of a command."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=surroundings(hub) | variables,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # how a terminal's end reads on Linux
        process.wait(timeout=100)
        return shown
    finally:
        os.close(ours)
