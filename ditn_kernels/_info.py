# SPDX-License-Identifier: Apache-2.0
"""What `python -m ditn_kernels` and `ditn info` print."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ditn_kernels._dispatch import auto_candidates, forced_backend, order_on_gpu, reasons_against
from ditn_kernels._op import Op
from ditn_kernels._order import order as order_on
from ditn_kernels.backends.native import _libraries
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.ops import REGISTRY

_KERNELS = {
    "triton": "Triton kernels",
    "cuda": "CUDA C++ kernels",
    "cpp": "C++ kernels",
    "torch": "plain PyTorch",
}
# By it is said what runs: the largest part of a network's work, which every backend has.
_LARGEST = "gated_ffn"


def info(device: torch.device | str | None = None, *, capabilities: Iterable[int] = ()) -> dict[str, Any]:
    """Versions, devices, and for each operator and backend every reason why it cannot run; an empty list if it can.

    Looked at with each operator's first sample (float32 on the CPU, float16 on a GPU) on `device`: the GPU if there
    is one, unless named. For each chip that is there, and for `capabilities` (90 for sm_90), which need not be,
    `assemblers` says what would assemble Triton's kernels (one line, and notes on what was found besides), and `orders`
    in which order backends are tried in float16, and whether that was measured. `summary` is a line of it all: version,
    device, its instruction set or GPU, what runs there and why. `hint` is what could be done for a CPU that has no
    compiled kernels, or None.
    Raises RuntimeError if TRITON_PTXAS_PATH names no assembler.
    """
    cuda = torch.cuda.is_available()
    here = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())] if cuda else []
    chips = dict.fromkeys([10 * major + minor for major, minor in here] + list(capabilities))
    choices = {f"sm_{chip}": _assembler.choose(chip) for chip in chips}
    device = torch.device(device or ("cuda" if cuda else "cpu"))
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    operators: dict[str, dict[str, dict[str, list[str]]]] = {}
    for op in REGISTRY.values():
        args = op.inputs(op.samples[0], dtype=dtype, device=device)
        operators[op.name] = {
            direction: {name: reasons_against(op, name, args, backward=backward) for name in op.backends}
            for direction, backward in _directions(op)
        }
    return {
        "summary": f"ditn-kernels {_version('ditn-kernels')} on {_place(device)}: {_runs(device, dtype)}",
        "hint": hint(device),
        "versions": {name: _version(name) for name in ("ditn-kernels", "torch", "triton", "numpy")}
        | {"python": platform.python_version(), "cuda": torch.version.cuda},
        "device": str(device),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "assemblers": {chip: {"line": str(choice), "notes": list(choice.notes)} for chip, choice in choices.items()},
        "threads": torch.get_num_threads(),
        "operators": operators,
        "orders": {f"sm_{chip}": _orders(chip) for chip in chips},
    }


def hint(device: torch.device | str) -> str | None:
    """What a user of the CPU who has no compiled kernels and asked for no backend is to know: that plain PyTorch runs,
    why, and how to change that. None for everybody else."""
    missing = _libraries.why_missing()
    if torch.device(device).type != "cpu" or forced_backend(None) or not missing:
        return None
    said = f"plain PyTorch runs, several times slower than this package's C++ kernels, whose library {missing}"
    if platform.system() != "Linux":  # for which alone there are any
        return said
    return (
        f"{said}. Where g++ is, `pip install --force-reinstall --no-deps --no-build-isolation --verbose` of this "
        "package builds it, or says why not"
    )


def _place(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{device} ({torch.cuda.get_device_name(device)}, sm_{major}{minor})"
    threads = torch.get_num_threads()
    count = f"{threads} thread{'s' * (threads != 1)}"
    return f"{device} ({torch.backends.cpu.get_cpu_capability()}, {count})" if device.type == "cpu" else str(device)


def _runs(device: torch.device, dtype: torch.dtype) -> str:
    """Which backend runs the network's largest part, and why it and not another."""
    op = REGISTRY[_LARGEST]
    args = op.inputs(op.samples[0], dtype=dtype, device=device)
    forced = forced_backend(None)
    names = [forced] if forced else auto_candidates(op, args, backward=False)
    refusals = {name: reasons_against(op, name, args, backward=False) for name in names}
    chosen = next((name for name in names if not refusals[name]), None)
    if chosen is None:
        return f"nothing runs, {'; '.join(f'{name} {reason}' for name, (reason, *_) in refusals.items())}"
    what = f"{_KERNELS[chosen]} ({chosen})"
    if forced:
        return f"{what}, as was asked for"
    if chosen == "torch":
        # Not those for another kind of device, which no one could want here.
        meant = ("triton", "cuda") if device.type == "cuda" else ("cpp",)
        return f"{what}, since {'; '.join(f'{name} {refusals[name][0]}' for name in meant if refusals.get(name))}"
    order = order_on_gpu(op, args, backward=False)
    return f"{what}, the fastest that can run" + (f" (order {order.source})" if order else "")


def _orders(chip: int) -> dict[str, str]:
    """Wherever there is a choice on a chip, the backends that have kernels for it, fastest first."""
    found = {}
    for op in REGISTRY.values():
        for direction, backward in _directions(op):
            names = tuple(
                name
                for name, support in op.backends.items()
                if support.has_kernel(torch.float16, divmod(chip, 10), backward=backward)
            )
            if len(names) > 1:
                order = order_on(op.name, names, capability=chip, dtype="float16", backward=backward)
                found[f"{op.name} {direction}"] = f"{', '.join(order.backends)} ({order.source})"
    return found


def _directions(op: Op) -> list[tuple[str, bool]]:
    return [("forward", False), *([("backward", True)] if op.backward is not None else [])]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
