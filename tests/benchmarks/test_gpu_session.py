# SPDX-License-Identifier: Apache-2.0
"""`make gpu`, as far as it can be tried without a GPU: its stages' order, limits, files and summary; what is compiled
ahead; what is read out of Nsight Compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CUDA, PROJECT

from benchmarks import gpu_session
from benchmarks.gpu_session import Result, Stage, run_all, summary
from benchmarks.harness import cases
from benchmarks.tools import ahead, counters
from ditn_kernels import REGISTRY


def stage(code: str, seconds: int = 60, shown: int = 1) -> Stage:
    return Stage(("-c", code), seconds, "a test", shown)


def test_stages_stand_for_themselves(tmp_path) -> None:
    """One fails, one crashes, one takes too long and has started another: those behind run, and all output is kept."""
    alive = tmp_path / "alive"
    child = f"import time; file = open({str(alive)!r}, 'w', 1)\nwhile True: print('.', file=file); time.sleep(0.01)"
    chosen = {
        "failing": stage("print('began'); raise SystemExit(3)"),
        "crashing": stage("import os; print('soon'); os.abort()"),
        "slow": stage(
            f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]);"
            "print('waiting'); time.sleep(60)",
            seconds=2,
        ),
        "good": stage("import sys; print('one'); print('two'); print('three', file=sys.stderr)", shown=2),
    }
    said: list[str] = []
    results = run_all(chosen, tmp_path, said.append)
    verdicts = {result.stage: result.verdict for result in results}
    assert verdicts == {
        "failing": "failed (exit code 3)",
        "crashing": "failed (exit code -6)",
        "slow": "stopped after 2 s",
        "good": "ok",
    }
    assert [(tmp_path / f"{name}.txt").read_text().split() for name in chosen] == [
        ["began"],
        ["soon"],
        ["waiting"],  # said before it was stopped
        ["one", "two", "three"],
    ]
    assert results[3].lines == ("two", "three")
    assert "[3/4] slow" in said[4]
    size = alive.stat().st_size
    time.sleep(0.3)
    assert alive.stat().st_size == size > 0, "what a stage has started outlives it"


def test_when_time_is_up_no_stage_begins(tmp_path) -> None:
    """The one that runs is stopped at the end of all, before its own limit; nothing runs behind it."""
    chosen = {
        "quick": stage("print('here')"),
        "long": stage("import time; print('began'); time.sleep(60)"),
        "late": stage("print('too late')"),
    }
    began = time.monotonic()
    results = run_all(chosen, tmp_path, lambda line: None, seconds=1.9)
    assert time.monotonic() - began < 10
    verdicts = [result.verdict for result in results]
    assert verdicts[0] == "ok"
    assert verdicts[1].startswith("stopped after")
    assert verdicts[2] == "not begun, time is up"
    assert not results[2].ok
    assert not (tmp_path / "late.txt").exists()


def test_the_summary_is_one_screen() -> None:
    known = gpu_session.stages(16, Path("results"))
    results = [Result(name, "stopped after 420 s", 420.0, ("x" * 300,) * one.shown) for name, one in known.items()]
    lines = summary(results).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 122
    assert "environment  stopped after 420 s        420 s" in lines


def test_the_stages_and_their_limits() -> None:
    """Compiled before tested before timed. They have a quarter of an hour, a build and the sanitizer besides."""
    known = gpu_session.stages(16, Path("results"))
    assert list(known) == [
        *("environment", "build", "kernels", "correctness", "networks", "operators", "training", "tuning", "counters"),
        "sanitizer",
    ]
    assert sum(one.seconds for name, one in known.items() if name not in ("build", "sanitizer")) <= 15 * 60
    for one in known.values():
        assert (PROJECT / f"{one.command[1].replace('.', '/')}.py").exists() or one.command[1] == "pytest"
    tests = [word for word in known["correctness"].command if word.startswith("tests/")]
    assert tests
    assert all((PROJECT / test).exists() for test in tests)


@pytest.mark.parametrize("name", [name for name in gpu_session.stages(1, Path()) if name != "correctness"])
def test_the_stages_commands_are_understood(name: str) -> None:
    """By the programs themselves, which without a GPU get as far as to miss it."""
    if CUDA:
        pytest.skip("there is a GPU, on which they run")
    module, *options = gpu_session.stages(1, Path("/dev/null"))[name].command[1:]
    options = [option for option in options if option != "--tables" and not option.startswith("/dev/null")]
    program = __import__(module, fromlist=["main"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *options])
        if hasattr(program, "interpreted"):
            patch.setattr(program, "interpreted", lambda: False)
        with pytest.raises(SystemExit, match="needs a CUDA GPU, and PyTorch finds none"):
            program.main()


def test_a_stage_that_there_is_not_is_an_error(capsys) -> None:
    with pytest.raises(SystemExit) as error:
        gpu_session.main(["--stages", "networks", "nets"])
    assert error.value.code == 2
    assert "no such stage: nets; there are environment, build, kernels" in capsys.readouterr().err


@pytest.mark.skipif(CUDA, reason="there is a GPU, on which it runs")
@pytest.mark.parametrize("arguments", [[], ["--stages"], ["--stages", "networks"]])
def test_without_a_gpu_it_says_so(arguments) -> None:
    with pytest.raises(SystemExit, match="needs a CUDA GPU, and PyTorch finds none"):
        gpu_session.main(arguments)


def test_chosen_stages_run_in_their_order(tmp_path, monkeypatch, capsys) -> None:
    fakes = {name: stage(f"print({name!r})") for name in ("first", "second", "third")}
    monkeypatch.setattr(gpu_session, "stages", lambda jobs, folder: fakes)
    monkeypatch.setattr(gpu_session.gpu, "require_gpu", lambda: None)
    monkeypatch.setattr(gpu_session, "PROJECT", tmp_path)
    monkeypatch.setattr(gpu_session.gpu, "results_folder", lambda: tmp_path)
    assert gpu_session.main(["--stages", "third", "first"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.txt", "summary.txt", "third.txt"]
    written = (tmp_path / "summary.txt").read_text()
    assert written.index("first") < written.index("third")
    assert written in capsys.readouterr().out
    fakes["first"] = stage("raise SystemExit(1)")
    assert gpu_session.main([]) == 1
    assert (tmp_path / "second.txt").read_text() == "second\n"


@pytest.mark.slow  # imports torch, Triton and all of this in a process of its own
def test_it_needs_little_more_than_torch_and_triton() -> None:
    """A GPU machine has what its image has: no git, no pyvips, nothing of the `bench` and `dev` extras but pytest."""
    absent = ["pyvips", "onnx", "onnxruntime", "openvino", "matplotlib", "tensorboard"]
    names = [one.command[1] for one in gpu_session.stages(1, Path()).values() if one.command[1] != "pytest"]
    names += ["benchmarks.gpu_session", "test_ops", "test_dispatch", "test_gpu"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r})); sys.path[:0] = ['tests', 'tests/kernels'];"
        f"[__import__(name) for name in {names!r}]"
    )
    environment = os.environ | {"PATH": "/nonexistent"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT, env=environment)


# Laid out as `ncu --csv --page details` of 2025 does it; the figures are those of a measured kernel.
DETAILS = """==PROF== Connected to process 1
{"x":1}
"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"
"0","void ditn::_inner_patch_stage_kernel(ditn::Map<__half>, __half *, int)","(8160)","Duration","ms","1.31"
"0","void ditn::_inner_patch_stage_kernel(ditn::Map<__half>, __half *, int)","(8160)","Executed Ipc Active","","1.49"
"0","void ditn::_inner_patch_stage_kernel(ditn::Map<__half>, __half *, int)","(8160)","Elapsed Cycles","","2,375,816"
"1","_gated_ffn_fwd_kernel","(264)","Duration","us","342.50"
"1","_gated_ffn_fwd_kernel","(264)","Registers Per Thread","register/thread","1,190"
"""


def test_counters_are_read() -> None:
    heading, *lines = [line.split() for line in counters.table(DETAILS)]
    assert heading[:2] == ["kernel", "us"]
    assert [line.split()[0] for line in counters.table(DETAILS)[1:]] == ["inner_patch_stage", "gated_ffn_fwd"]
    stage_line, ffn_line = lines
    assert stage_line[1:4] == ["(CUDA", "C++)", "1310"]
    assert stage_line[-3:] == ["1.49", "?", "?"]
    assert ffn_line[1] == "342"
    assert ffn_line[-2] == "1190"


@pytest.mark.parametrize("text", ["", "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"])
def test_no_counters_is_an_error(text) -> None:
    with pytest.raises(ValueError, match="ncu printed no table: "):
        counters.table(text)


def test_what_is_compiled_ahead() -> None:
    """Every operator with Triton kernels, in both directions where it has them, and maps that 16 does not divide."""
    found = list(ahead.every_case(90, [torch.float16], REGISTRY))
    forward = {case.op for case in found if not case.backward}
    assert forward == {op.name for op in REGISTRY.values() if "triton" in op.backends}
    assert {case.op for case in found if case.backward} >= {"inner_patch_attention", "gated_ffn", "dilated_gate"}
    assert {case.sample.axes["H"] % 16 for case in found} >= {0, 8}
    first = next(ahead.every_case(90, [torch.float16, torch.float32], ["gated_ffn"]))
    assert first.backward
    assert first.dtype == torch.float32
    assert not any(case.backward for case in ahead.every_case(75, [torch.float16], REGISTRY))  # which starts at sm_80


AHEAD = """
import dataclasses, json, sys, torch
from functools import partial
from benchmarks.tools import ahead
from ditn_kernels._op import Sample

def small():
    (case, *_) = ahead.every_case(90, [torch.float16], ["layer_norm2d"])
    return ahead.launches(case)

def impossible():
    return [dataclasses.replace(one, config=dataclasses.replace(one.config, num_warps=3)) for one in small()]

if __name__ == "__main__":
    print(json.dumps(ahead.compile_all([small, small, impossible], 90, 1)))
"""


@pytest.mark.slow  # imports torch in two processes
def test_kernels_are_compiled_ahead(tmp_path) -> None:
    """What cannot be compiled is said, and keeps nothing else from being; without a GPU nobody launches it here."""
    (tmp_path / "program.py").write_text(AHEAD)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(PROJECT)}
    run = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr
    count, failed = json.loads(run.stdout)
    assert count == 1
    assert len(failed) == 1
    assert failed[0].startswith("layer_norm2d_fwd: ")
    assert len(list(tmp_path.glob("cache/*/*.cubin"))) == 1


def test_maps_are_those_of_the_timings() -> None:
    """The pictures of `benchmarks.gpu`, padded to its grid, and of `benchmarks.ops`, to multiples of 16."""
    for sample in cases.default_samples(REGISTRY["gated_ffn"]):
        heights = {one.axes["H"] for one in ahead.samples(REGISTRY["gated_ffn"]) if one.options == sample.options}
        assert heights >= {184, 192, 544, 64}
