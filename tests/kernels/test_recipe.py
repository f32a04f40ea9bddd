# SPDX-License-Identifier: Apache-2.0
"""CONTRIBUTING's recipe for an operator, followed in a copy of the package, with kernels in Triton and C++."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
NAME = "scale_and_shift"
RECIPE = re.search(r"^## Add an operator.*?(?=^## )", (PROJECT / "CONTRIBUTING.md").read_text("utf-8"), re.M | re.S)

DEFINITION = '''
from typing import Annotated, NamedTuple

from torch import Tensor

from ditn_kernels._op import Sample, define
from ditn_kernels._records import Map


class ScaleWeights(NamedTuple):
    factor: Annotated[Tensor, "C"]
    shift: Annotated[Tensor, "C"]


def _backward(grad: Tensor, x: Tensor, weights: ScaleWeights) -> tuple[Tensor, ScaleWeights]:
    sums = ScaleWeights((grad * x).sum((0, 2, 3)), grad.sum((0, 2, 3)))
    return grad * weights.factor[:, None, None], sums


@define(
    samples=[Sample("odd", {"B": 2, "C": 7, "H": 5, "W": 3}), Sample("empty", {"B": 0, "C": 7, "H": 8, "W": 8})],
    macs=lambda s: s["B"] * s["C"] * s["H"] * s["W"],
    backward=_backward,
)
def scale_and_shift(x: Map, weights: ScaleWeights) -> Tensor:
    """factor * x + shift at every pixel."""
    return x * weights.factor[:, None, None] + weights.shift[:, None, None]
'''

TRITON = """
import torch
import triton
import triton.language as tl
from torch import Tensor

from ditn_kernels.backends.triton._launch import KernelLauncher, contiguous, dense, padded
from ditn_kernels.backends.triton._math import load_vector, rounded
from ditn_kernels.ops.scale_and_shift import ScaleWeights


@triton.jit
def _scale_and_shift_fwd_kernel(
    x_ptr, factor_ptr, shift_ptr, y_ptr, pixels, C: tl.constexpr, C_PAD: tl.constexpr, BLOCK: tl.constexpr
):
    channel = tl.arange(0, C_PAD)
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
    offset = pixel[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + offset, inside, 0.0).to(tl.float32)
    y = x * load_vector(factor_ptr, channel, C)[None, :] + load_vector(shift_ptr, channel, C)[None, :]
    tl.store(y_ptr + offset, rounded(y, y_ptr.dtype.element_ty), inside)


def forward(x: Tensor, weights: ScaleWeights) -> Tensor:
    batch, channels, height, width = x.shape
    x = dense(x)
    y = torch.empty_like(x)
    pixels = batch * height * width
    launcher = KernelLauncher(_scale_and_shift_fwd_kernel, x, channels=padded(channels))
    programs = triton.cdiv(pixels, launcher.blocks["BLOCK"])
    launcher.launch(programs, x, *contiguous(weights), y, pixels, C=channels, C_PAD=padded(channels))
    return y
"""

CONFIG = """{"rows": [
  {"capability": 75, "dtype": "float16", "shape": {"channels": 16}, "config": {"num_warps": 4, "blocks": {"BLOCK": 64}}}
]}
"""

CPP = """#pragma once

#include "runs.h"

namespace ditn::DITN_LEVEL {

template <class T>
class ScaleAndShift {
 public:
  ScaleAndShift(int channels, const float* factor, const float* shift)
      : rows_(channels), factor_(padded(factor, channels)), shift_(padded(shift, channels)) {}

  void run(Threads threads, Shape shape, const T* x, const T*, T* y) const {
    each_run(threads, shape, [&](Units& units, const auto& runs) {
      Buffer u(rows_.stride);
      for (Run run; runs.next(units, run);) {
        for (int i = 0; i < run.count; ++i) {
          copy_in(x + (run.pixel + i) * shape.channels, rows_, u);
          for (int j = 0; j < rows_.stride; j += kLanes) {
            store(u + j, fma(load(u + j), load(factor_ + j), load(shift_ + j)));
          }
          copy_out(u, rows_, y + (run.pixel + i) * shape.channels);
        }
      }
    });
  }

 private:
  Rows rows_;
  Buffer factor_, shift_;
};

}  // namespace ditn::DITN_LEVEL
"""

REGISTERED = """PreparedOperator scale_and_shift(ScalarType type, ScaleWeights weights) {
  weights = weights.map(kWiden);
  const int64_t channels = weights.factor.size(0);
  return {kernels_for(type).scale_and_shift(as_int(channels), data(weights.factor), data(weights.shift)), channels};
}

Tensor function("""

# What each existing file gets: text to stand in front of some other text.
ADDED = {
    "ditn_kernels/ops/__init__.py": [
        ("from ditn_kernels.ops.spatial_stage", f"from ditn_kernels.ops.{NAME} import {NAME}\n"),
        ("        tanh_affine,\n", f"        {NAME},\n"),
    ],
    "ditn_kernels/backends/triton/_limits.py": [('    "tanh_affine": _BOTH', f'    "{NAME}": _FORWARD,\n')],
    "ditn_kernels/backends/native/_limits.py": [
        ('    "tanh_affine": _LAYER', f'    "{NAME}": _STAGE,\n'),
    ],
    "csrc/cpu/kernels.h": [
        (
            "  Prepared (*layer_norm2d)(",
            f"  Prepared (*{NAME})(int channels, const float* factor, const float* shift);\n",
        ),
    ],
    "csrc/cpu/kernels.cpp": [
        ('#include "tanh_affine.h"', f'#include "{NAME}.h"\n'),
        ("prepared<T, LayerNorm2d<T>>};", "prepared<T, ScaleAndShift<T>>, "),
    ],
    "csrc/register.cpp": [("Tensor function(", REGISTERED.removesuffix("Tensor function("))],
}
NEW = {
    f"ditn_kernels/ops/{NAME}.py": DEFINITION,
    f"ditn_kernels/backends/triton/{NAME}.py": TRITON,
    f"ditn_kernels/backends/triton/configs/{NAME}_fwd.json": CONFIG,
    f"csrc/cpu/{NAME}.h": CPP,
}

TRIED = f"""
import torch
from ditn_kernels import REGISTRY, Prepared, explain
op = REGISTRY["{NAME}"]
for sample in op.samples:
    for dtype in (torch.float32, torch.bfloat16):
        args = op.inputs(sample, dtype=dtype)
        x, factor, shift = args.values()
        exact = x.double() * factor.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
        for backend in ("cpp", "triton", "torch"):
            y = op(x, (factor, shift), backend=backend)
            # One multiply-add, rounded once or twice to the dtype.
            torch.testing.assert_close(y.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps, msg=backend)
        assert explain(op, x, (factor, shift)).chosen == "cpp"
        assert torch.equal(Prepared(op, factor, shift)(x), op(x, factor, shift))
leaves = [t.double().requires_grad_() for t in op.inputs(op.samples[0]).values()]
assert torch.autograd.gradcheck(op, leaves)
print("added")
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which is not installed")
def test_an_operator_is_added_as_the_recipe_says(tmp_path: Path) -> None:
    for name in ("ditn_kernels", "csrc"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(PROJECT / "setup.py", tmp_path)
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    for path, content in NEW.items():
        (tmp_path / path).write_text(content, encoding="utf-8")
    for path, additions in ADDED.items():
        text = (tmp_path / path).read_text("utf-8")
        for place, added in additions:
            assert text.count(place) == 1, (path, place)
            text = text.replace(place, added + place)
        (tmp_path / path).write_text(text, encoding="utf-8")
    # The folder of the copy comes first, before the package that is installed.
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1", "DITN_BUILD": "cpu"}
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    for command in (build, [sys.executable, "-c", TRIED]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("added\n")


def test_the_recipe_names_the_files_that_it_takes() -> None:
    assert RECIPE is not None
    named = set(re.findall(r"`((?:ditn_kernels|csrc)/[^`]+[.][a-z]+)`", RECIPE[0].replace("<op>", NAME)))
    assert named == {*NEW, *ADDED}
