# SPDX-License-Identifier: Apache-2.0
"""TensorRT's plugins in Python, without TensorRT or a GPU: built with tests/tensorrt_python_shim.

As a program, `python tests/tensorrt_python.py`, it reads cases and says what an engine would get, with kernels that
Triton compiles. The tests' own process cannot, since it interprets them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent
SHIM = PROJECT / "tests" / "tensorrt_python_shim"
BINDINGS_SHIM = PROJECT / "tests" / "tensorrt_bindings_shim"
# What launches are recorded for, too.
PROCESSORS = 132
# Batch, height and width. Patches of 8 pixels have to fill a map.
IN_PATCHES = ((1, 8, 8), (2, 24, 16), (1, 64, 48), (1, 384, 384), (3, 544, 960))
ON_MAP = ((1, 1, 1), (1, 9, 5), (2, 93, 20), *IN_PATCHES)


@dataclass(frozen=True)
class Case:
    """A node, and the chip of its engine."""

    op: str
    dtype: str
    capability: int
    patch_size: int = 8
    norm: str = "tanh"
    channels: int = 60
    hidden: int = 120
    most_shared: int | None = None

    def __str__(self) -> str:
        limit = f"-{self.most_shared}" if self.most_shared else ""
        return f"{self.op}-{self.patch_size}-{self.norm}-{self.channels}-{self.dtype}-sm_{self.capability}{limit}"

    @property
    def options(self) -> dict[str, Any]:
        return {"norm": self.norm, "patch_size": self.patch_size}

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        return IN_PATCHES if self.patch_size else ON_MAP


def node_of(op: Any, sizes: dict[str, Any]) -> list[list[Any]]:
    """The shapes of an operator's inputs as a plugin's, whose map is [B, H, W, C]."""
    shapes = []
    for axes in op.axes.values():
        terms = ["B", "H", "W", "C"] if axes.startswith("B ") else axes.split()
        coefficients = [(term.rstrip("BCEHW"), term.lstrip("0123456789")) for term in terms]
        shapes.append([_length(number, sizes.get(letter, 1)) for number, letter in coefficients])
    return shapes


def _length(number: str, size: Any) -> Any:
    return int(number or 1) * size if isinstance(size, int) else size


@cache
def compiled(*cases: Case) -> list[dict[str, Any]]:
    """What an engine would get for each case."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (PROJECT, SHIM)))
    asked = json.dumps([asdict(case) for case in cases])
    command = [sys.executable, __file__]
    done = subprocess.run(command, check=True, input=asked, stdout=subprocess.PIPE, text=True, env=environment)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _answer(case: Case) -> dict[str, Any]:
    import tensorrt
    import torch
    from tensorrt import plugin

    from ditn_kernels import REGISTRY, tensorrt_plugins
    from ditn_kernels.backends.triton._launch import recording

    plugin.PLUGINS.clear()
    tensorrt_plugins.register(tensorrt_plugins.Chip(case.capability, PROCESSORS), most_shared=case.most_shared)
    op = REGISTRY[case.op]
    known = {"C": case.channels, "E": case.hidden}
    shapes = node_of(op, known | {axis: axis for axis in "BHW"})
    built = plugin.build(f"ditn::{case.op}", getattr(tensorrt, case.dtype), shapes, case.options)
    module = sys.modules[f"ditn_kernels.backends.triton.{case.op}"]
    launches = []
    for batch, height, width in case.sizes:
        sizes = {"B": batch, "H": height, "W": width}
        engine = [built.params.grid_x.evaluate(sizes), [one.evaluate(sizes) for one in built.extra]]
        shapes = [tuple((known | sizes).get(axis, axis) for axis in shape) for shape in node_of(op, known | sizes)]
        x, *weights = (torch.empty(shape, dtype=getattr(torch, case.dtype), device="meta") for shape in shapes)
        with recording(case.capability) as recorded:
            module.forward(*op.structured([x.permute(0, 3, 1, 2), *weights, *case.options.values()]))
        (launch,) = recorded
        integers = [argument for argument in launch.args if not isinstance(argument, torch.Tensor)]
        launches.append({"engine": engine, "triton": [launch.programs, integers]})
    names = launch.kernel.arg_names[: len(launch.args)]
    fixed = {name: getattr(built.params, name).evaluate({}) for name in ("grid_y", "grid_z", "block_x", "shared_mem")}
    return {
        "kernel": built.kernel,
        "code": built.code,
        "launches": launches,
        "names": names,
        "threads": 32 * launch.config.num_warps,
        "scratch": launch.args[-1].numel() // launch.programs,
        "most_programs": launch.config.programs * PROCESSORS,
        "outputs": [[axis.evaluate(sizes) for axis in desc.shape_expr] for desc in built.outputs],
        **fixed,
    }


if __name__ == "__main__":
    print(json.dumps([_answer(Case(**case)) for case in json.load(sys.stdin)]))
