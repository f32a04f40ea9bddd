# SPDX-License-Identifier: Apache-2.0
"""A model as one file for other runtimes, at any size, tried out before it is kept."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ditn.export.formats import FORMATS, ExportError, Job, Run
from ditn.export.options import OPSETS
from ditn.imaging.atomic import atomic_write
from ditn.imaging.sample import sample_image
from ditn.model.checkpoint import check_fit, load, models
from ditn.model.network import DITN, plain_network
from ditn.model.threads import one_thread

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Five sizes that a file is tried at, none of which it was traced at, and two batches: small, since float64 is slow.
SIZES = ((1, 1), (2, 31), (8, 8), (37, 20), (24, 40))
BATCHES = (1, 3)
# Allowed besides twice the error of plain PyTorch: units in the last place of the largest value. A runtime sums
# in another order and has its own tanh, exp and erf, in each of a network's two dozen layers.
_ABSOLUTE_TOLERANCE = 16


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: the file, its size in bytes, and its largest error to float64 relative to the largest value,
    None if it was not checked."""

    path: Path
    size: int
    error: float | None


def export(
    model: DITN | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    dtype: torch.dtype = torch.float32,
    uint8: bool = False,
    opset: int = OPSETS[0],
    device: torch.device | str = "cpu",
    verify: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Write a model (or the shipped one or file of that name) for inference elsewhere, its affine maps folded.

    format   "onnx" (default for that suffix), "trt-onnx", "pt2" or "aoti", see `ditn.export.formats`
    dtype    float32, float16 or bfloat16, of weights, image and result; bfloat16 in ONNX is for OpenVINO alone
    uint8    the graph takes and gives uint8 [B, H, W, C] instead of `dtype` [B, C, H, W] in 0..1
    opset    of ONNX
    device   where pt2 and aoti are to run; onnx runs anywhere
    verify   run the file at five sizes that it was not traced at, batches 1 and 3, and keep it only if its error to the
             float64 reference is at most twice that of plain PyTorch in the same dtype, and some units of rounding

    Batch, height and width are free, from 1 on; padding and cropping are in the graph. The file says its `scale`,
    `reach`, `grid`, `overlap`, `config`, `dtype`, `layout` and `source`. It appears under its name when all is well, or
    not at all.

    Raises ValueError for an unknown format, dtype or opset and for weights that are not finite; OSError for a path that
    cannot be written; FileExistsError unless `overwrite`; ExportError (a RuntimeError) for a package that is not
    installed, or a file that computes something else; BackendError for a model that the kernels cannot run.
    """
    path = Path(path)
    format = _format(path, format)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype}, must be one of {', '.join(DTYPES)}")
    if opset not in OPSETS:
        raise ValueError(f"opset is {opset}, must be {OPSETS[0]} to {OPSETS[-1]}")
    absent = [package for package in FORMATS[format].needs if not find_spec(package)]
    if absent:
        raise ExportError(
            f"format {format} needs {' and '.join(absent)}, which is not installed: pip install 'ditn-kernels[deploy]'"
        )
    source = type(model).__name__
    if not isinstance(model, DITN):
        # A file's name may be of any bytes; what is written into the file is text.
        name = os.fsencode(Path(model).name).decode("utf-8", "backslashreplace")
        source, model = (str(model) if str(model) in models() else name), load(model)
    check_fit(source, model.state_dict(), model.state_dict())
    exact = plain_network(model.config, {key: value.cpu().double() for key, value in model.state_dict().items()})
    model = copy.deepcopy(model).to(device, dtype).eval().requires_grad_(False)
    job = Job(model, _facts(model, dtype, source, uint8=uint8), uint8, opset)
    if format in ("pt2", "aoti") and not _is_utf8(path.parent):
        raise ValueError(f"{path}: PyTorch writes {format} into folders only whose names are UTF-8")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; overwrite it with overwrite=True (--overwrite)")
    # PyTorch's own loader does not work where tensors are made on another device by default.
    with torch.device("cpu"), atomic_write(path) as temporary:
        FORMATS[format].write(job, temporary)
        with one_thread():
            error = _largest_error(FORMATS[format].open(temporary), exact, job) if verify else None
        size = temporary.stat().st_size
    return Exported(path, size, error)


def _is_utf8(path: Path) -> bool:
    return os.fsencode(path) == str(path).encode("utf-8", "replace")


def _format(path: Path, format: str | None) -> str:
    if format is None:
        fitting = [name for name, one in FORMATS.items() if one.suffix == path.suffix and one.by_suffix]
        if len(fitting) != 1:
            raise ValueError(f"{path}: name the format, {' or '.join(fitting or FORMATS)}")
        return fitting[0]
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, must be one of {', '.join(FORMATS)}")
    if path.suffix != FORMATS[format].suffix:
        raise ValueError(f"{path}: format {format} has the suffix {FORMATS[format].suffix}")
    return format


def _facts(model: DITN, dtype: torch.dtype, source: str, *, uint8: bool) -> dict[str, str]:
    config = model.config
    return {
        "scale": str(config.upscale),
        "reach": str(config.receptive_radius),
        "grid": str(config.grid),
        "overlap": str(config.overlap),
        "config": json.dumps(asdict(config)),
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "uint8 NHWC" if uint8 else "NCHW in 0..1",
        "source": source,
        "software": f"ditn-kernels {version('ditn-kernels')}, torch {torch.__version__}",
    }


def _largest_error(run: Run, exact: DITN, job: Job) -> float:
    """The largest error to float64, relative to the largest value. Raises ExportError where it is too large."""
    parameter = next(job.model.parameters())
    plain = plain_network(exact.config, job.model.state_dict())
    largest = 0.0
    for height, width in SIZES:
        images = _images(max(BATCHES), exact.config.in_channels, height, width)
        given = (images * 255).round().to(torch.uint8) if job.bytes_inside else images.to(parameter.dtype)
        exactly, plainly = (given / 255 if job.bytes_inside else given for _ in range(2))
        expected, usual = exact(exactly.double()), plain(plainly.to(parameter)).double().cpu()
        for batch in BATCHES:
            error = _error(run, given[:batch], expected[:batch], usual[:batch], job)
            largest = max(largest, error)
    return largest


def _error(run: Run, given: Tensor, expected: Tensor, usual: Tensor, job: Job) -> float:
    """The error of one call, as `_largest_error` has it. `usual` is what plain PyTorch makes of `given`."""
    parameter = next(job.model.parameters())
    result = run((given.permute(0, 2, 3, 1).contiguous() if job.bytes_inside else given).to(parameter.device))
    result = result.cpu().double()
    peak = float(expected.abs().max())
    allowed = 2 * float((usual - expected).abs().max()) + _ABSOLUTE_TOLERANCE * torch.finfo(parameter.dtype).eps * peak
    if job.bytes_inside:
        result, expected = result.permute(0, 3, 1, 2) / 255, expected.clamp(0, 1)
        allowed += 0.5 / 255  # what rounding to bytes takes
    where = " x ".join(map(str, (len(given), *given.shape[2:])))
    if result.shape != expected.shape:
        raise ExportError(f"the file gives shape {list(result.shape)} at {where}, expected {list(expected.shape)}")
    error = float((result - expected).abs().max())
    if not error <= allowed:
        raise ExportError(f"the file is wrong at {where}: error {error:.2g} to float64, {allowed:.2g} allowed")
    return error / peak


def _images(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Different images [batch, channels, height, width] in 0..1."""
    image = sample_image(height, width)[:, torch.arange(channels) % 3]
    return torch.cat([image.roll(shift, 1) for shift in range(batch)])
