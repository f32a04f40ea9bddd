# SPDX-License-Identifier: Apache-2.0
"""What `python -m ditn_kernels` and `ditn info` print."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ditn_kernels._dispatch import reasons_against
from ditn_kernels._op import Op
from ditn_kernels._order import order as order_on
from ditn_kernels.backends.triton import _assembler
from ditn_kernels.ops import REGISTRY


def info(device: torch.device | str | None = None, *, capabilities: Iterable[int] = ()) -> dict[str, Any]:
    """Versions, devices, and for each operator and backend every reason why it cannot run; an empty list if it can.

    Looked at with each operator's first sample (float32 on the CPU, float16 on a GPU) on `device`: the GPU if there
    is one, unless named. For each chip that is there, and for `capabilities` (90 for sm_90), which need not be,
    `assemblers` says what would assemble Triton's kernels (one line, and notes on what was found besides), and `orders`
    in which order backends are tried in float16, and whether that was measured.
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
        "versions": {name: _version(name) for name in ("ditn-kernels", "torch", "triton", "numpy")}
        | {"python": platform.python_version(), "cuda": torch.version.cuda},
        "device": str(device),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "assemblers": {chip: {"line": str(choice), "notes": list(choice.notes)} for chip, choice in choices.items()},
        "threads": torch.get_num_threads(),
        "operators": operators,
        "orders": {f"sm_{chip}": _orders(chip) for chip in chips},
    }


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
