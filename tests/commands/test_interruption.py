# SPDX-License-Identifier: Apache-2.0
"""Signals that end a run: nothing half written stays, and the report says what was done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT
from PIL import Image

from ditn.commands import pictures as command
from ditn.commands.cli import main

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGUSR1]


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((8, 8), 50).save(folder / f"{number}.png")
    return folder


def send(number: signal.Signals) -> None:
    """The signal to this process, and time for Python to take it."""
    os.kill(os.getpid(), number)
    time.sleep(1)


@pytest.fixture
def interrupt(monkeypatch):
    """Do something in the place of a step of the second image."""

    def at(step: str, action) -> None:
        real, calls = getattr(command, step), []

        def watched(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 2:
                action()
            return real(*arguments, **options)

        monkeypatch.setattr(command, step, watched)

    return at


def statuses(report: Path) -> list[tuple[str, str]]:
    return [(entry["status"], entry["reason"]) for entry in json.loads(report.read_text())["pictures"]]


@pytest.mark.parametrize(
    ("number", "step"),
    [*((number, "read") for number in SIGNALS), (signal.SIGTERM, "write_raw")],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_report_says_what_was_done(weights, source, tmp_path, capsys, interrupt, number, step: str) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # the suite may run in the background or under nohup
    interrupt(step, lambda: send(number))
    report, output = tmp_path / "report.json", tmp_path / "out"
    assert main(["upscale", str(source), "-o", str(output), "--model", weights, "--json", str(report)]) == 130
    assert signal.signal(number, before) == signal.SIG_DFL
    assert statuses(report) == [("done", ""), ("failed", "interrupted"), ("planned", "")]
    assert "1 done, 0 skipped, 1 failed, 1 not begun\ninterrupted\n" in capsys.readouterr().err
    assert os.listdir(output) == ["0.png"]
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "report.json"]


def test_an_interruption_that_python_loses(weights, source, tmp_path, interrupt, monkeypatch) -> None:
    """What is raised while an object is deleted ends nothing by itself."""

    class Dying:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    interrupt("read", Dying)
    report, output = tmp_path / "report.json", tmp_path / "out"
    assert main(["upscale", str(source), "-o", str(output), "--model", weights, "--json", str(report)]) == 130
    assert len(lost) == 1
    assert [status for status, _ in statuses(report)] == ["done", "failed", "planned"]


def test_what_is_ignored_stays_so(weights, source, tmp_path, interrupt) -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt("read", lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert main(["upscale", str(source), "-o", str(tmp_path / "out"), "--model", weights]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        signal.SIGHUP,
    ],
    ids=lambda number: number.name,
)
def test_a_process_leaves_no_half_file(weights, tmp_path, number: signal.Signals) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.effect_noise((8, 8), 50).save(source / "0.png")
    Image.effect_noise((5000, 5000), 50).save(source / "1.png", compress_level=1)
    arguments = [
        "upscale",
        source,
        "-o",
        output,
        "--model",
        weights,
        "--tile",
        "64",
        "--json",
        tmp_path / "report.json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "ditn", *arguments],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        # The suite may run in the background or under nohup, where these are ignored.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not (output / "0.png").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert os.listdir(output) == ["0.png"]
    assert [status for status, _ in statuses(tmp_path / "report.json")] == ["done", "failed"]
