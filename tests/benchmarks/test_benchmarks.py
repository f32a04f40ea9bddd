# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, on tiny sizes, and refuse to time what is wrong."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec

import pytest
import torch

import ditn
from benchmarks import cpu, deploy, gpu, guard, ops
from benchmarks.harness import networks, providers, timing
from benchmarks.report import cpu as cpu_report
from benchmarks.report import gpu as gpu_report
from benchmarks.tools import resources, sanitize, tune
from ditn_kernels import REGISTRY, BackendError
from ditn_kernels._dispatch import forced_backend
from ditn_kernels.backends.native import _hopper, _libraries
from ditn_kernels.backends.triton._dispatch import interpreted


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in ("one", "two")}
    seconds = timing.in_turns(calls, 2, clock=lambda call: (call(), float(len(made)))[1])
    assert made == ["one", "two"] * 3
    assert seconds == {"one": [3.0, 5.0], "two": [4.0, 6.0]}


def test_the_stopwatch_waits_for_the_result() -> None:
    assert 0.05 <= timing.seconds(lambda: time.sleep(0.05)) < 5


@pytest.mark.parametrize("name", ["ditn-real", "elan-8-blocks"])
def test_nothing_is_free_to_compute(name) -> None:
    assert all(parameter.any() for parameter in networks.new_network(name, 2).parameters())


def test_the_guards_cost_is_a_ratio(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "result.json"
    options = ["--model", "ditn-tiny-x2", "--sizes", "16x8", "--rounds", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["guard", *options])
    assert guard.main() == 0
    (row,) = json.loads(path.read_text())["guard"]
    assert row["ratio"] > 0
    assert "16x8 guard: " in capsys.readouterr().out


def test_cuda_is_timed_with_and_without_the_kernels_for_one_chip(monkeypatch) -> None:
    served = {"gated_ffn": True}
    monkeypatch.setattr(_hopper, "serves", lambda operator, device: served.get(operator, False))
    monkeypatch.setattr(_hopper, "turn", lambda operator, device, *, on: served.update({operator: on}))
    monkeypatch.setattr(ops, "reasons_against", lambda op, backend, args: [] if backend == "cuda" else ["not asked"])
    monkeypatch.setattr(ops, "prepared", lambda op, args, backend: lambda: (backend, served["gated_ffn"]))

    def timed(name: str) -> dict:
        op = REGISTRY[name]
        return dict(ops.providers(op, op.inputs(op.samples[0], dtype=torch.float16), compiled=False))

    assert {name: call() for name, call in timed("gated_ffn").items()} == {
        "cuda": ("cuda", True),
        "cuda, all chips": ("cuda", False),
    }
    assert served["gated_ffn"]
    assert list(timed("tanh_affine")) == ["cuda"]


def test_a_providers_title_says_which_eager_it_is() -> None:
    assert providers.title("PyTorch eager, published") == "PyTorch eager, published, freed memory kept"
    assert providers.title("PyTorch eager, published, as installed") == "PyTorch eager, published, as installed"
    assert providers.title("OpenVINO f32, folded") == "OpenVINO f32, folded"


@pytest.mark.slow  # imports torch in five processes
@pytest.mark.skipif(_libraries.why_missing() is not None, reason=f"the compiled library {_libraries.why_missing()}")
def test_cpu_benchmark_writes_what_it_measured(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "result.json"
    names = ["PyTorch eager, published", "fused float32"]
    options = ["--sizes", "17x9", "--threads", "1", "--rounds", "2", "--training", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["cpu", *options, "--only", *names])
    assert cpu.main() == 0
    inference, training = json.loads(path.read_text())["runs"]
    assert [row["contestant"] for row in inference["rows"]] == names
    assert [row["contestant"] for row in training["rows"]] == names
    assert all(row["median_s"] > 0 for row in inference["rows"] + training["rows"])
    assert 0 < inference["rows"][1]["share_of_peak"] < 1
    assert "of peak" in capsys.readouterr().out


@pytest.mark.slow  # imports torch in three processes
@pytest.mark.skipif(_libraries.why_missing() is not None, reason=f"the compiled library {_libraries.why_missing()}")
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed (pip install .[deploy])")
def test_deployment_benchmark_writes_what_it_measured(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "result.json"
    names = ["ONNX Runtime, published", "ONNX Runtime, exported"]
    options = ["--sizes", "17x9", "--threads", "1", "--rounds", "3", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["deploy", *options, "--only", *names])
    assert deploy.main() == 0
    (run,) = json.loads(path.read_text())["runs"]
    assert [row["contestant"] for row in run["rows"]] == names
    assert deploy.gain(run["rows"][1], run["rows"]) == run["rows"][0]["median_s"] / run["rows"][1]["median_s"]
    assert deploy.gain(run["rows"][1], run["rows"][1:]) is None
    assert "1.00 x" in capsys.readouterr().out


def test_work_of_a_network_is_counted_on_its_padded_image() -> None:
    """411,780 multiply-adds per pixel of DITN-Real x4, counted by hand (test_ops), on 24 x 16 pixels."""
    assert cpu.flops(ditn.DITN_Real(4), "17x9") == 2 * 411_780 * 24 * 16


def test_readme_shows_every_run() -> None:
    rows = [
        {"contestant": name, "median_s": seconds, "quartiles_s": [seconds, seconds], "extra_bytes": 2**20}
        for name, seconds in (("PyTorch eager, published", 1.0), ("fused float32", 0.25))
    ]
    run = {"task": "inference", "size": "8x8", "threads": 2, "rows": rows}
    assert cpu_report.cell(run, "PyTorch eager, published") == "1.000 s (1.000 to 1.000), 4.00 x, 1 MiB"
    assert cpu_report.cell(run, "ONNX Runtime, folded") == ""


def test_readme_has_the_ratios_of_every_run() -> None:
    def row(contestant: str, seconds: float, mebibytes: int, **more: float) -> dict:
        return {"contestant": contestant, "median_s": seconds, "extra_bytes": mebibytes << 20, **more}

    rows = [
        row("PyTorch eager, published", 1.0, 300),
        row("OpenVINO f32, folded", 0.6, 100),
        row("AOTInductor, published", 0.5, 200),
        row("OpenVINO bf16, published", 0.3, 80),
        row("OpenVINO bf16, folded", 0.4, 80),
        row("fused float32", 0.2, 40, share_of_peak=0.5),
        row("fused bfloat16", 0.1, 20),
        row("PyTorch eager, published, as installed", 0.44, 300),
        row("fused float32, as installed", 0.22, 40),
    ]
    run = {"task": "inference", "size": "8x8", "threads": 2, "rows": rows}
    assert cpu_report.line(run) == (
        "8x8, 2 thr. | 0.200 s | 5.00 x | 2.00 x | 2.50 x (AOTInductor, published) | 3.00 x | "
        "50%; with all of it 10.0 x eager | 7.5 x"
    )
    training = {"task": "training", "size": "48x48", "threads": 2, "rows": [rows[0], row("fused float32", 0.2, 40)]}
    assert cpu_report.line(training) == (
        "48x48 training, 2 thr. | 0.200 s | 5.00 x |  | "
        "5.00 x (PyTorch eager, published, freed memory kept) |  |  | 7.5 x"
    )


def test_the_line_about_cpus_is_a_range_over_machines(tmp_path) -> None:
    """The one size and number of threads that README quotes; of the fastest others, those as installed do not count."""
    for name, scale in (("first", 1.0), ("second", 2.0)):
        seconds = {
            "PyTorch eager, published": 0.8 * scale,
            "ONNX Runtime, folded": 0.4,
            "OpenVINO bf16, folded": 0.01,
            "fused float32": 0.2,
            "PyTorch eager, published, as installed": 0.3 * scale,
            "fused float32, as installed": 0.1,
        }
        rows = [{"contestant": provider, "median_s": value} for provider, value in seconds.items()]
        run = {"task": "inference", "size": "320x180", "threads": 2, "rows": rows}
        others = [run | {"size": "8x8", "rows": []}, run | {"threads": 1, "rows": []}]
        content = {"machine": {"cpu": name}, "model": "ditn-real", "upscale": 4, "runs": [*others, run]}
        folder = tmp_path / "benchmarks" / "results" / name
        folder.mkdir(parents=True)
        (folder / "cpu-ditn-real-x4.json").write_text(json.dumps(content))
    assert " ".join(cpu_report.headline(tmp_path).split()) == (
        "- **CPU** (float32, 2 threads): DITN-Real x4 enlarges 320x180 in 0.20 to 0.20 s. That is 4.0 to 8.0 times as "
        "fast as the published formula in eager PyTorch with freed memory kept, 3.0 to 6.0 times with PyTorch as "
        "installed, and 2.0 to 2.0 times as fast as the fastest other runtime (first, second)."
    )


def test_the_line_about_a_gpu_names_the_fastest_and_the_training_step(tmp_path) -> None:
    machine = {"gpu": "NVIDIA T4", "commit": "0123456789", "date": "2027-01-02"}
    inference = {gpu.BASE: 8.0, "fused, triton": 4.0, "fused, cuda, graph": 2.0}
    training = {gpu.BASE: 3.0, "folded, eager": 1.0, "fused": 6.0}
    folder = tmp_path / "benchmarks" / "results" / "nvidia-t4"
    folder.mkdir(parents=True)
    for name, what, times in (("", "960x540", inference), ("-training", "step 16x64", training)):
        rows = [{"what": what, "contestant": provider, "median_ms": value} for provider, value in times.items()]
        content = {"machine": machine, "model": "ditn-real", "upscale": 4, "dtype": "float16", "rows": rows}
        (folder / f"ditn-real-x4-float16{name}.json").write_text(json.dumps(content))
    assert " ".join(gpu_report.headline(tmp_path).split()) == (
        "- **GPU** (NVIDIA T4, float16): DITN-Real x4 enlarges 960x540 in 2.00 ms (CUDA C++ in a CUDA graph), 4.0 "
        "times as fast as the published formula in eager PyTorch. A training step takes 2.0 times as long as eager. "
        "Measured once, on 2027-01-02, at 0123456."
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which they run")
@pytest.mark.parametrize("module", [gpu, ops, sanitize], ids=lambda module: module.__name__)
def test_gpu_benchmarks_say_that_they_need_one(module, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    with pytest.raises(SystemExit, match="needs a CUDA GPU, and PyTorch finds none"):
        module.main()


@pytest.mark.skipif(not interpreted(), reason="TRITON_INTERPRET is not set")
@pytest.mark.parametrize("module", [resources, tune], ids=lambda module: module.__name__)
def test_what_compiles_kernels_does_not_interpret_them(module, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    with pytest.raises(SystemExit, match="TRITON_INTERPRET is set"):
        module.main()


def test_cuda_is_a_provider_on_the_gpu(monkeypatch) -> None:
    """Beside the network as it chooses by itself, forced, and only where it can run."""
    monkeypatch.setattr(gpu, "CudaGraphRunner", lambda model: model)
    model, image = ditn.DITN_Tiny(2).eval(), torch.rand(1, 3, 8, 8)
    names = [gpu.BASE, "folded, eager", "fused", "fused, graph"]
    assert list(gpu.providers(model, image, compiled="none", cuda=False, only_cuda=False)) == names
    by_cuda = ["fused, cuda", "fused, cuda, graph"]
    assert list(gpu.providers(model, image, compiled="none", cuda=True, only_cuda=False)) == names + by_cuda
    calls = gpu.providers(model, image, compiled="none", cuda=True, only_cuda=True)
    assert list(calls) == names[:2] + by_cuda
    assert gpu.by_cuda(lambda _: forced_backend(None))(image) == "cuda"
    for name in by_cuda:
        with pytest.raises(BackendError, match=r"cuda .*runs on cuda, the input is on cpu"):
            calls[name]()


def test_without_cuda_the_gpus_benchmark_says_why() -> None:
    assert "runs on cuda, the input is on cpu" in gpu.why_not_cuda(torch.float16, device="cpu")
    assert "computes float16, float32, the input is bfloat16" in gpu.why_not_cuda(torch.bfloat16, device="cpu")


def test_the_gpus_table_has_every_ratio() -> None:
    def row(contestant: str, median: float, peak: int | None) -> dict:
        quartiles = [median, median]
        return {"what": "8x8", "contestant": contestant, "median_ms": median, "quartiles_ms": quartiles} | {
            "host_ms": 0.1,
            "peak_bytes": peak,
        }

    lines = gpu.table([row(gpu.BASE, 8.0, 2**20), row("fused", 2.0, None)]).splitlines()
    assert "1.00 x published, eager" in lines[0]
    assert "1 MiB" in lines[0]
    assert "4.00 x published, eager" in lines[1]
    assert "500.0 per s" in lines[1]
    assert "MiB" not in lines[1]


def test_pages_have_what_each_gpu_measured(tmp_path) -> None:
    """Times side by side, the fastest in bold with its ratio; operators and their share of the roof; conditions."""

    def network(contestant: str, median: float, peak: int | None) -> dict:
        shared = {"what": "8x8", "quartiles_ms": None, "host_ms": 0.5}
        return shared | {"contestant": contestant, "median_ms": median, "peak_bytes": peak}

    def operator(backend: str, median: float, share: float) -> dict:
        shared = {"operator": "gated_ffn", "options": {"norm": "tanh"}, "size": "8x8", "dtype": "float16"}
        return shared | {"direction": "forward", "backend": backend, "median_ms": median, "share_of_roof": share}

    machine = {
        "gpu": "NVIDIA T4",
        "driver": "1.2",
        "torch": "2.13",
        "triton": "3.6",
        "assembler": "ptxas 13.5 (a wheel)",
    }
    machine |= {"python": "3.12", "commit": "0123456789", "date": "2027-01-02"}
    where = (
        "NVIDIA T4, driver 1.2, PyTorch 2.13, Triton 3.6, ptxas 13.5 (a wheel), Python 3.12, at 0123456, 2027-01-02."
    )
    folder = tmp_path / "benchmarks" / "results" / "nvidia-t4"
    folder.mkdir(parents=True)
    rows = [network(gpu.BASE, 8.0, 2**20), network("fused, graph", 2.0, None)]
    for name in ("ditn-x4-float16", "ditn-x4-float16-cuda-7.5+PTX"):
        content = {"machine": machine, "model": "ditn", "upscale": 4, "dtype": "float16", "rows": rows}
        (folder / f"{name}.json").write_text(json.dumps(content))
    rows = [
        operator("triton", 2.0, 0.25),
        operator("cuda", 1.0, 0.5),
        operator("cuda", 1.0, 0.5) | {"direction": "backward"},
    ]
    roof = {"copy_gb_per_s": 1234.4, "matmul_tflop_per_s": {"torch.float16": 65.0}}
    (folder / "ops.json").write_text(json.dumps({"machine": machine, "roof": roof, "rows": rows}))
    assert gpu_report.summary(tmp_path).splitlines() == [
        "| network | input | published, eager | fused, graph |",
        "|---|---|---|---|",
        "| ditn x4, float16 | 8x8 | 8.00, 1 MiB | **2.00** (4.00 x) |",
        "",
        f"Milliseconds, and MiB that a call allocates. Measured on: {where}",
    ]
    assert "| ditn x4, float16 | 8x8 | fused, graph | 2.00 ms | 0.50 ms | 4.00 x |  |" in gpu_report.networks(tmp_path)
    table, conditions = gpu_report.operators(tmp_path).split("\n\n")
    assert table.splitlines()[2:] == ["| `gated_ffn` tanh, 8x8, float16 | 2,000 | **1,000** | 50% |"]
    assert "moves 1,234 GB/s, a product of matrices makes 65 TFLOP/s in float16" in conditions
    assert conditions.endswith(where)
