# SPDX-License-Identifier: Apache-2.0
"""The arguments that operators are counted and timed with: DITN-Real x4's, on maps of a picture's size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ditn_kernels import Op
from ditn_kernels._op import NORMS, Sample
from ditn_kernels.backends import BACKENDS
from ditn_kernels.backends.triton._dispatch import kernel_file
from ditn_kernels.backends.triton._launch import Launch, padded, recording

# 960 x 540, padded to whole patches.
FRAME = (544, 960)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_DIM = 60


def default_samples(op: Op) -> Iterator[Sample]:
    """The operator's samples that are DITN-Real's layers, without those of a kind that was there before."""
    seen = []
    for sample in op.samples:
        real = sample.axes["C"] == _DIM and sample.axes["B"] and sample.options.get("norm", "tanh") == "tanh"
        if real and sample.options not in seen:
            seen.append(sample.options)
            yield sample


def enlarged(sample: Sample, height: int, width: int) -> Sample:
    return Sample(sample.name, {**sample.axes, "B": 1, "H": height, "W": width}, sample.options)


def framed_samples(op: Op, kind: str = "network") -> list[Sample]:
    """On a large map, the network's layers; with "norms" the same with every norm; with "all" whatever the operator's
    samples are."""
    chosen = [sample for sample in op.samples if sample.axes["B"]] if kind == "all" else list(default_samples(op))
    if kind == "norms":
        chosen = [other for sample in chosen for other in with_every_norm(sample)]
    return [enlarged(sample, *FRAME) for sample in chosen]


def with_every_norm(sample: Sample) -> list[Sample]:
    """The sample itself where it has no norm."""
    if "norm" not in sample.options:
        return [sample]
    return [Sample(f"{sample.name}, {norm}", sample.axes, {**sample.options, "norm": norm}) for norm in NORMS]


def samples_of(op: Op, channels: int) -> Iterator[Sample]:
    """Maps of a picture's size with so many channels, in every patch size that the operator's samples have."""
    (first, *_) = framed_samples(op)
    scale = {_DIM: channels, 2 * _DIM: 2 * channels}
    if channels == padded(_DIM):
        scale = {}
    axes = {axis: scale.get(size, size) for axis, size in first.axes.items()}
    for size in dict.fromkeys(sample.options.get("patch_size") for sample in op.samples):
        options = {} if size is None else {"patch_size": size}
        yield Sample(f"{channels} channels", axes, {**first.options, **options})


def candidates(op: Op, *, backward: bool) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """The block sizes to choose from, of every kernel in the file of the operator's forward or backward."""
    module = kernel_file(op, backward=backward)
    found: Mapping[str, Mapping[str, tuple[int, ...]]] = getattr(module, "CANDIDATES", {})
    return found


def pixels(sample: Sample) -> int:
    return sample.axes["B"] * sample.axes["H"] * sample.axes["W"]


def inputs(op: Op, sample: Sample, *, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """As `op.inputs`, but activations, which may be large, are drawn on the device."""
    args = op.inputs(enlarged(sample, 1, 1), dtype=dtype, device=device)
    sizes = [sample.axes[axis] for axis in ("B", "H", "W")]
    for name in (name for name, axes in op.axes.items() if axes.startswith("B ")):
        shape = sizes[0], args[name].shape[1], *sizes[1:]
        drawn = torch.randn(shape[0], *shape[2:], shape[1], dtype=dtype, device=device)
        args[name] = drawn.permute(0, 3, 1, 2)
    return args


def launches(
    op: Op,
    sample: Sample,
    *,
    dtype: torch.dtype,
    capability: int,
    backward: bool = False,
) -> list[Launch]:
    """What the backend "triton" would launch for a sample on a chip that need not be here."""
    args = inputs(op, sample, dtype=dtype, device="meta")
    gradient = [torch.empty(op.output_shape(op.check(args), args), dtype=dtype, device="meta")] if backward else []
    function = BACKENDS["triton"].kernel(op, backward=backward)
    with recording(capability) as recorded:
        function(*gradient, *args.values())
    return recorded
