# SPDX-License-Identifier: Apache-2.0
"""Triton's launches, planned once for all maps of a layout."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import PROJECT

from ditn_kernels import REGISTRY, Op
from ditn_kernels._axes import is_map
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.triton._dispatch import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="Triton's kernels are compiled here, not interpreted")
WITH_KERNELS = [op for op in REGISTRY.values() if "triton" in op.backends]


def split(op: Op, seed: int, patch: int = 4) -> tuple[list, list]:
    """Small maps, and what an operator takes behind them."""
    (sample, *_) = [one for one in op.samples if one.options.get("patch_size", patch) == patch and one.axes["B"]]
    height, width = (patch, 2 * patch) if "patch_size" in sample.options else (1, 2)
    sample = replace(sample, axes={**sample.axes, "B": 1, "H": height, "W": width})
    args = op.inputs(sample, seed=seed, device="cpu")
    maps = [name for name, axes in op.axes.items() if is_map(axes)]
    return [args[name] for name in maps], [value for name, value in args.items() if name not in maps]


@pytest.fixture
def plans(monkeypatch) -> list:
    """All plans that are made."""
    from ditn_kernels.backends.triton import _plan

    made = []

    def noted(*args):
        plan, result = original(*args)
        made.append(plan)
        return plan, result

    original = _plan._plan
    monkeypatch.setattr(_plan, "_plan", noted)
    return made


@pytest.mark.parametrize("op", WITH_KERNELS, ids=lambda op: op.name)
def test_the_next_maps_of_a_layout_are_run_by_the_plan(op: Op, plans: list, monkeypatch) -> None:
    same = torch.testing.assert_close  # not to the bit: numpy adds in an order that depends on addresses
    maps, still = split(op, seed=0)
    others, _ = split(op, seed=1)
    run = BACKENDS["triton"].prepared(op, list(op.structured(op.named([*maps, *still]).values()))[len(maps) :])
    first, expected = op(*maps, *still, backend="triton"), op(*others, *still, backend="triton")
    same(run(*maps), first)
    assert len(plans) == 1
    assert plans[0] is not None
    monkeypatch.setattr("ditn_kernels.backends.triton._launch.KernelLauncher.launch", None)  # is not called again
    same(run(*others), expected)
    same(run(*maps), first)
    assert len(plans) == 1


def test_constants_outlive_their_plans(plans: list, monkeypatch) -> None:
    """A CUDA graph holds the addresses that its plan launched with. image_tail has weights in another order."""
    monkeypatch.setattr("ditn_kernels.backends.triton._plan._KEPT", 1)
    op = REGISTRY["image_tail"]
    maps, still = split(op, seed=0)
    run = BACKENDS["triton"].prepared(op, list(op.structured(op.named([*maps, *still]).values()))[len(maps) :])
    run(*maps)
    constants = [weakref.ref(arg) for step in plans.pop()._steps for arg in step.args if isinstance(arg, torch.Tensor)]
    for height in (2, 3):
        run(*[torch.cat([x] * height, 2) for x in maps])
        args = [arg for step in plans.pop()._steps for arg in step.args if isinstance(arg, torch.Tensor)]
        assert [one() is arg for one, arg in zip(constants, args, strict=True)] == [True] * len(args)
    assert len(constants) == 4  # two weights, two biases


def test_another_layout_is_another_plan(plans: list) -> None:
    """Of other sizes, strides and alignment. What has to be copied first has no plan, and is right all the same."""
    op = REGISTRY["layer_norm2d"]
    (x,), still = split(op, seed=0)
    run = BACKENDS["triton"].prepared(op, still)
    channels = x.shape[1]
    shifted = torch.randn(x.numel() + 1)[1:].view(1, x.shape[2], x.shape[3], channels).permute(0, 3, 1, 2)
    for given in (x, torch.cat([x, x], 2), torch.randn(x.shape), shifted):
        for _ in range(2):
            expected = torch.nn.functional.layer_norm(given.permute(0, 2, 3, 1), (channels,), still[0], still[1], 1e-5)
            torch.testing.assert_close(run(given), expected.permute(0, 3, 1, 2))
    assert [plan is None for plan in plans] == [False, False, True, False]


ON_A_GPU = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver

from ditn_kernels.backends.triton import _launch
from ditn_kernels.backends.triton.layer_norm2d import forward
from ditn_kernels.backends.triton._plan import planned

launched = []

class Utils:
    def load_binary(self, name, binary, shared, device):
        return "module", f"function {name}", 32, 0, 1024
    def get_device_properties(self, device):
        return {"max_shared_mem": 232448}

class Driver:
    utils = Utils()
    def launcher_cls(self, source, metadata):
        kept = [not isinstance(kind, str) or kind != "constexpr" for kind in source.signature.values()]
        def launch(*args):
            assert len(args) - 9 == len(kept), (len(args), kept)
            grid, stream, function, packed, metadata, enter, leave = args[:3], *args[3:9]
            launched.append((grid, stream, function, packed, list(args[9:])))
        return launch
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 1234
    def get_active_torch_device(self):
        return torch.device("cpu")

triton.runtime.driver.set_active(Driver())
x, y = (torch.randn(1, 8, 2, 16).contiguous(memory_format=torch.channels_last) for _ in range(2))
weight, bias = torch.randn(8), torch.randn(8)
run = planned(forward, [weight, bias, 1e-5])
for given in (x, y):
    run(given)                           # by Triton's own launch, then by the plan
    forward(given, weight, bias, 1e-5)   # by Triton's own launch
assert len(launched) == 4, launched
(*planned_with, args), (*launched_with, expected) = launched[2:]  # both of y
assert planned_with == launched_with
assert len(args) == len(expected)
for one, other in zip(args, expected):
    if not isinstance(other, torch.Tensor):
        assert one == other
    elif other.data_ptr() in (y.data_ptr(), weight.data_ptr(), bias.data_ptr()):
        assert one.data_ptr() == other.data_ptr()
    else:  # the result
        assert (one.shape, one.stride(), one.dtype) == (y.shape, y.stride(), y.dtype)
print("the same")
"""


def test_a_compiled_kernel_gets_what_triton_gives_it() -> None:
    """Compiled for a chip whose driver is a stand-in: the plan's launch, which leaves out Triton's look at every
    argument, hands the driver the same grid, stream, function, constants and integers."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", ON_A_GPU]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same\n"
