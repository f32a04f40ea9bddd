# SPDX-License-Identifier: Apache-2.0
"""`ditn upscale` by several processes, of which some are killed: nothing is lost and nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import PROJECT
from PIL import Image

from ditn.commands.cli import main

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'ditn-kernels[ray]'")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five that take a while, in small tiles."""
    folder = tmp_path_factory.mktemp("in")
    generator = np.random.default_rng(0)
    for number in range(5):
        samples = generator.integers(0, 256, (96 + 16 * number, 128, 3), dtype=np.uint8)
        Image.fromarray(samples).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, weights: str, pictures: Path) -> dict[str, bytes]:
    """The files that one process writes."""
    folder = tmp_path_factory.mktemp("expected")
    assert main(["upscale", str(pictures), "-o", str(folder), *options(weights)]) == 0
    return contents(folder)


def options(weights: str) -> list[str]:
    return ["--model", str(weights), "--tile", "16", "--guard", "off", "--device", "cpu"]


def contents(folder: Path) -> dict[str, bytes]:
    """Without what a killed process could not remove, which is hidden."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def start(*arguments: object, launcher: list[str]) -> subprocess.Popen[str]:
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    ours |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    command = [sys.executable, *launcher, "-m", "ditn", "upscale", *map(str, arguments)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | ours, text=True, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def workers(process: subprocess.Popen[str], mark: str) -> list[psutil.Process]:
    """The processes below one that do the work: their command lines hold a mark."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            if mark in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def wait_for(count: int, output: Path, process: subprocess.Popen[str]) -> None:
    """Until so many files are written and none is about to be."""
    deadline = time.monotonic() + 200
    while not output.is_dir() or len(contents(output)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def statuses(report: Path) -> Counter[str]:
    return Counter(entry["status"] for entry in json.loads(report.read_text())["pictures"])


def test_two_ranks_whose_work_is_killed_do_what_one_process_does(tmp_path, weights, pictures, expected) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes((pictures / "0.png").read_bytes()[:2000])
    output, report = tmp_path / "out", tmp_path / "report.json"
    process = start(pictures, damaged, "-o", output, *options(weights), "--json", report, launcher=TORCHRUN)
    wait_for(1, output, process)
    for one in workers(process, "spawn_main"):
        one.kill()
    code, errors = ended(process)
    assert code == 1
    assert "5 done, 0 skipped, 1 failed" in errors
    assert contents(output) == expected
    found = json.loads(report.read_text())
    assert {Path(entry["input"]).name: entry["status"] for entry in found["pictures"]} == {
        **dict.fromkeys(expected, "done"),
        "damaged.png": "failed",
    }
    assert set(found["backends"]) >= {"gated_ffn"}


def test_ranks_that_are_ended_leave_whole_files_and_a_report(tmp_path, weights, pictures, expected) -> None:
    output, report = tmp_path / "out", tmp_path / "report.json"
    process = start(pictures, "-o", output, *options(weights), "--json", report, launcher=TORCHRUN)
    wait_for(2, output, process)
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    assert code != 0
    done = contents(output)
    assert done.items() <= expected.items()
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == []
    found = statuses(report)
    assert found["done"] >= 2
    assert found["done"] + found["failed"] + found["planned"] == 5
    code, errors = ended(start(pictures, "-o", output, *options(weights), "--skip-existing", launcher=TORCHRUN))
    assert code == 0, errors
    assert contents(output) == expected


@pytest.mark.exhaustive
def test_torchrun_starts_them_anew(tmp_path, weights, pictures, expected) -> None:
    """Where a rank itself is killed, and not only its work, all others are ended by torchrun."""
    output, report = tmp_path / "out", tmp_path / "report.json"
    launcher = [*TORCHRUN, "--max-restarts=1"]
    process = start(pictures, "-o", output, *options(weights), "--json", report, launcher=launcher)
    wait_for(1, output, process)
    ranks = [one for one in workers(process, "ditn upscale") if "torch.distributed.run" not in " ".join(one.cmdline())]
    assert len(ranks) == 2
    ranks[1].kill()
    code, errors = ended(process)
    assert code == 0, errors
    assert contents(output) == expected
    found = statuses(report)
    assert found["done"] + found["skipped"] == 5


def test_ranks_share_one_large_image(tmp_path, weights) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (640, 192, 3), dtype=np.uint8)
    Image.fromarray(samples).save(tmp_path / "in.png")
    large = [*options(weights), "--rows-above", "1000"]
    assert main(["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "one.tif"), *large]) == 0
    process = start(tmp_path / "in.png", "-o", tmp_path / "two.tif", *large, launcher=TORCHRUN)
    parts = tmp_path / "two.tif.parts"
    wait_for(4, parts, process)
    workers(process, "spawn_main")[0].kill()
    code, errors = ended(process)
    assert code == 0, errors
    assert (tmp_path / "two.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()
    assert not parts.exists()


def test_ranks_share_a_films_segments(tmp_path, weights) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'ditn-kernels[video]'")
    import films

    films.make(tmp_path / "film.mp4", 260, sound="aac")
    # Lossless, since x264's rate control does not always give the same bytes for the same frames.
    model = ["--model", weights, "--guard", "off", "--device", "cpu", "--crf", "0"]
    assert main(["upscale", str(tmp_path / "film.mp4"), "-o", str(tmp_path / "one.mkv"), *model]) == 0
    process = start(tmp_path / "film.mp4", "-o", tmp_path / "two.mkv", *model, launcher=TORCHRUN)
    wait_for(2, tmp_path / "two.mkv.parts", process)
    workers(process, "spawn_main")[0].kill()
    code, errors = ended(process)
    assert code == 0, errors
    assert (tmp_path / "two.mkv").read_bytes() == (tmp_path / "one.mkv").read_bytes()


@needs_ray
@pytest.mark.exhaustive
def test_ray_does_again_what_a_killed_worker_did(tmp_path, weights, pictures, expected) -> None:
    output, report = tmp_path / "out", tmp_path / "report.json"
    process = start(pictures, "-o", output, *options(weights), "--json", report, "--ray", launcher=[])
    wait_for(1, output, process)
    busy = workers(process, "ray::_perform")
    assert busy
    busy[0].kill()
    code, errors = ended(process)
    assert code == 0, errors
    assert contents(output) == expected
    assert statuses(report) == {"done": 5}


@needs_ray
@pytest.mark.exhaustive
def test_a_driver_that_is_killed_is_started_again(tmp_path, weights, pictures, expected) -> None:
    output, report = tmp_path / "out", tmp_path / "report.json"
    process = start(pictures, "-o", output, *options(weights), "--ray", launcher=[])
    wait_for(2, output, process)
    orphans = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    psutil.wait_procs(orphans, timeout=100)
    process.wait(60)  # not for its standard error, which Ray's own processes hold for a while
    before = {name: (output / name).stat().st_ino for name in contents(output)}
    arguments = [pictures, "-o", output, *options(weights), "--ray", "--skip-existing", "--json", report]
    code, errors = ended(start(*arguments, launcher=[]))
    assert code == 0, errors
    assert contents(output) == expected
    found = statuses(report)
    assert found["skipped"] >= 2
    assert found["done"] + found["skipped"] == 5
    assert all((output / name).stat().st_ino == inode for name, inode in before.items())
