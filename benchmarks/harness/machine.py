# SPDX-License-Identifier: Apache-2.0
"""What a result says about the CPU that it was measured on, and with which packages."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    cpu = facts.get("model name", platform.processor())
    if {"cpu family", "model"} <= facts.keys():  # a virtual machine's name for its CPU leaves the generation out
        cpu += f" (family {facts['cpu family']}, model {facts['model']})"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str]:
    """Of the other runtimes, as far as they are installed."""
    return {name: version(name) for name in ("onnxruntime", "openvino") if find_spec(name)}
