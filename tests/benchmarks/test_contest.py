# SPDX-License-Identifier: Apache-2.0
"""Providers take turns, are checked before they are timed, and two commits are told apart by more than noise."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import compare, peers
from benchmarks.harness import contest, processes, providers, runtimes
from benchmarks.harness.processes import Job
from ditn_kernels.backends.native import _libraries

JOB = Job("ditn-real", "fused float32", 4, ("17x9",), 1)
FACTS = {"error": 1e-7, "extra_bytes": 2**20, "ready_s": 0.5, "first_s": [1.0]}
needs_library = pytest.mark.skipif(
    _libraries.why_missing() is not None, reason=f"the compiled library {_libraries.why_missing()}"
)


def _tree(folder: Path, body: str) -> Path:
    """A tree whose providers' processes do as they are told instead of running a network."""
    (folder / "benchmarks" / "harness").mkdir(parents=True)
    (folder / "benchmarks" / "harness" / "processes.py").write_text(f"import json, sys\n{body}")
    return folder


def _answering(folder: Path, seconds: float, **facts: object) -> Path:
    return _tree(
        folder,
        f"print('a library says hello'); print(json.dumps({FACTS | facts!r}), flush=True)\n"
        f"for _ in sys.stdin:\n    print(json.dumps([{seconds}]), flush=True)\n",
    )


@pytest.fixture(autouse=True)
def _nothing_to_prepare(monkeypatch, request) -> None:
    if "real" not in request.keywords:
        monkeypatch.setattr(contest, "prepare", lambda job, folder: None)
    monkeypatch.setattr(contest, "PAUSE", 0)


def test_providers_keep_their_order_and_every_round(tmp_path) -> None:
    trees = [_answering(tmp_path / str(number), 0.1 * number) for number in (3, 1, 2)]
    rounds = []
    jobs = [(JOB, tree) for tree in trees]
    found = contest.contest(jobs, rounds=4, builders=2, each_round=lambda: rounds.append(len(rounds)))
    assert rounds == [0, 1, 2, 3]
    assert [row["median_s"] for row in (one.row() for one in found)] == pytest.approx([0.3, 0.1, 0.2])
    assert found[0].row()["seconds"] == pytest.approx([0.3] * 4)
    assert found[0].row()["extra_bytes"] == 2**20


def test_rounds_end_when_time_is_up_but_not_before_three(tmp_path) -> None:
    found = contest.contest([(JOB, _answering(tmp_path, 0.1))], rounds=9, seconds=0)
    assert len(found[0].passes) == contest.LEAST_ROUNDS


def test_a_wrong_provider_is_not_timed(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"ditn-real, fused float32 is wrong: relative error 0\.01, at most 0\.0001"):
        contest.contest([(JOB, _answering(tmp_path, 0.1, error=0.01))], rounds=3)


def test_a_provider_that_dies_says_why(tmp_path) -> None:
    tree = _tree(tmp_path, "raise RuntimeError('no such runtime')")
    with pytest.raises(SystemExit, match=r"fused float32 failed:[\s\S]*no such runtime"):
        contest.contest([(JOB, tree)], rounds=3)
    others = _answering(tmp_path / "others", 0.1)
    dead, alive = contest.contest([(JOB, tree), (JOB, others)], rounds=3, forgiving=True)
    assert "no such runtime" in dead.failure
    assert not dead.passes
    assert (alive.failure, len(alive.passes)) == ("", 3)


@pytest.mark.parametrize("result", [torch.zeros(1, 3, 4, 5), torch.full((1, 3, 4, 4), float("nan"))])
def test_results_have_the_right_shape_and_are_finite(result) -> None:
    with pytest.raises(SystemExit, match=r"must be \[1, 3, 4, 4\] and finite"):
        processes._error(result, torch.zeros(1, 3, 4, 4))


def test_error_is_relative_to_the_largest_value() -> None:
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert processes._error(torch.tensor([1.5, -4.0]), exact) == pytest.approx(0.125)


def _run(job: Job, folder: Path, monkeypatch, capsys, passes: int) -> list:
    """A provider's process, in this one."""
    processes.prepare(job, folder)
    monkeypatch.setattr(processes, "_keep_freed_memory", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(sys, "argv", ["processes", json.dumps(job.__dict__), str(folder)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * passes))
    assert processes.main() == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("network", ["elan-8-blocks", "swinir-8-layers"])
def test_a_peers_process_runs_a_stream(network, tmp_path, monkeypatch, capsys) -> None:
    """Folded, in float32, against the network as it was trained in float64."""
    job = Job(network, "PyTorch eager", 2, ("17x9", "24x9"), 1)
    facts, *passes = _run(job, tmp_path, monkeypatch, capsys, 2)
    assert 0 < facts["error"] < 1e-5
    assert len(facts["first_s"]) == 2
    assert [len(one) for one in passes] == [2, 2]


@needs_library
@pytest.mark.parametrize(
    ("training", "dtype"),
    [
        (False, "float32"),
        pytest.param(True, "float32", marks=pytest.mark.slow),
        pytest.param(True, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_our_process_runs_an_image_or_a_training_step(training, dtype, tmp_path, monkeypatch, capsys) -> None:
    job = Job("ditn-real", f"fused {dtype}", 2, ("9x8",), 1, training=training)
    facts, once = _run(job, tmp_path, monkeypatch, capsys, 1)
    assert 0 < facts["error"] < job.tolerance
    assert once[0] > 0


def test_graphs_of_a_stream_get_whole_windows(tmp_path) -> None:
    seen = []

    def graph(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape))
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3)

    images = [torch.rand(1, 3, 9, 17), torch.rand(1, 3, 8, 8)]
    task = runtimes.Task(images, None, 2, 8, 1, tmp_path)
    result = runtimes._on_grid(graph, task)(images[0])
    assert seen == [(1, 3, 16, 24)]
    assert torch.equal(result, images[0].repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.real
@needs_library
def test_peers_are_measured(tmp_path, capsys) -> None:
    options = ["--scales", "4", "--quick", "--rounds", "3", "--threads", "1", "--results", str(tmp_path / "new")]
    chosen = ["--networks", "elan-8-blocks", "ditn-real", "--only", "PyTorch eager", "fused float32"]
    assert peers.main([*options, *chosen]) == 0
    result = json.loads((tmp_path / "new" / "peers-x4.json").read_text())
    assert [row["network"] for row in result["rows"]] == ["elan-8-blocks", "ditn-real"]
    assert result["networks"]["ditn-real"] == {"parameters": 444_112, "macs": 469_380 * 24 * 16}
    assert all(0 < row["median_s"] < 60 for row in result["rows"])
    assert "ditn-real       fused float32" in capsys.readouterr().out


def test_who_enters() -> None:
    fixed, mixed = (peers.entrants("cpu", stream=stream, scale=4) for stream in (False, True))
    for runtime in ("PyTorch eager", "torch.compile", "ONNX Runtime", "OpenVINO f32"):
        assert ("swinir-light", runtime) in fixed
        assert ("elan-light", runtime) in fixed
    assert ("elan-8-blocks", "OpenVINO f32") in fixed
    as_installed = [(name, runtime) for name, runtime in fixed + mixed if runtime.endswith("as installed")]
    assert [name for name, _ in as_installed] == ["swinir-light", "elan-light", "ditn-real", "ditn-real"]
    assert as_installed[0][1] == "PyTorch eager, as installed"
    assert ("swinir-light", "OpenVINO f32") in peers.entrants("cpu", stream=False, scale=2)
    assert ("ditn", "fused float32") in fixed
    assert {name for name, _ in mixed} == {"swinir-light", "elan-light", "ditn-real", "ditn-tiny", "ditn"}
    assert ("ditn-real", "torch.compile, published") in mixed
    assert all(name in providers.INFERENCE["cpu"] for name in peers.DITN_ON_CPU)
    assert ("ditn-real", "fused, graph") in peers.entrants("cuda", stream=False, scale=4)


def test_the_stream_is_twenty_sizes_and_always_the_same() -> None:
    sizes = peers.stream_sizes()
    assert len(set(sizes)) == 20
    assert sizes == peers.stream_sizes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it runs")
def test_the_gpus_peers_need_one() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA GPU, and PyTorch finds none"):
        peers.main(["--device", "cuda"])


@pytest.mark.parametrize(
    ("new", "ratio", "slower"),
    [
        ([1.11, 1.12, 1.13], 1.12 / 1.05, True),  # all of them beyond the base's slowest
        ([1.09, 1.12, 1.13], 1.12 / 1.05, False),  # one is not
        ([0.5, 0.5, 0.5], 0.5 / 1.05, False),
    ],
)
def test_slower_is_what_lies_beyond_the_noise(new, ratio, slower) -> None:
    assert compare.verdict([1.0, 1.1, 1.05], new) == (pytest.approx(ratio), pytest.approx(0.1 / 1.05), slower)


def test_compare_fails_for_a_slower_commit_only(tmp_path, monkeypatch, capsys) -> None:
    trees = {"old": _answering(tmp_path / "old", 0.1), "new": _answering(tmp_path / "new", 0.2)}
    monkeypatch.setattr(compare, "built", lambda commit, folder: contextlib.nullcontext(trees[commit]))
    monkeypatch.setattr(compare, "PROCESSES", 2)
    assert compare.main(["old", "new", "--rounds", "3", "--cases", "48x48"]) == 1
    assert "2.000 x BASE, noise 0.000  SLOWER" in capsys.readouterr().out
    assert compare.main(["new", "old", "--rounds", "3", "--cases", "48x48"]) == 0
    assert compare.main(["old", "old", "--rounds", "3", "--cases", "48x48"]) == 0


def test_runs_of_any_threads_stand_beside_each_other_in_a_file(tmp_path) -> None:
    path = tmp_path / "runs.json"

    def keep(threads: int, row: str, model: str = "ditn-real") -> None:
        torch.set_num_threads(threads)
        run = {"task": "inference", "size": "17x9", "threads": threads, "rows": [row]}
        contest.keep_runs(path, [run], model=model)

    threads = torch.get_num_threads()
    try:
        keep(2, "old")
        keep(1, "other")
        keep(2, "new")
        with pytest.raises(SystemExit, match="the file's model is ditn-real, not ditn"):
            keep(2, "foreign", model="ditn")
    finally:
        torch.set_num_threads(threads)
    assert [(run["threads"], run["rows"]) for run in json.loads(path.read_text())["runs"]] == [
        (1, ["other"]),
        (2, ["new"]),
    ]
