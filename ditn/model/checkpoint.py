# SPDX-License-Identifier: Apache-2.0
"""Weights from and to files: published checkpoints, this project's, and those of other trainers under the same keys."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as format_safetensors
from torch import Tensor

from ditn.imaging.atomic import atomic_write
from ditn.model.config import UPSCALES, DITNConfig
from ditn.model.network import DITN
from ditn.model.tensor_file import CheckpointError, read_tensors

_FLAVORS = ("official", "neosr")
_PICKLE_SUFFIXES = (".pth", ".pt")


def models() -> list[str]:
    """The names of the weights that ship with the package, for `load`."""
    return sorted(path.name.removesuffix(".safetensors") for path in _weights().iterdir() if _is_weights(path.name))


def load(
    name_or_path: str | os.PathLike[str],
    *,
    flavor: str | None = None,
    patch_size: int | None = None,
    fused: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DITN:
    """A model with weights from a file (.pth, .pt, .safetensors) or by the name of shipped ones (see `models`).

    It comes ready for inference: in eval mode, parameters without gradient; `model.train().requires_grad_()` to go on
    training. No code in a pickle is ever run.

    The configuration is read off the tensors, or off the metadata of a file that `save` wrote. What tensors do not say
    is the patch size, 8 unless named here; and where output channels and upscale can be either, as many come out as go
    in.

    flavor="neosr" is for weights trained by neosr, whose attention ignores the temperature and scales by one over the
    patch size: the temperatures are set to that, which makes both the same. A file in which every temperature is
    exactly 1, as neosr leaves them, gives a warning if no flavor is named ("official" says that it is not neosr's).

    Raises CheckpointError for a damaged file, one with code in it, missing or unexpected keys, wrong shapes and
    values that are not finite, and for a shipped file whose checksum is another than when it was shipped;
    FileNotFoundError, naming what ships, if there is no such file.
    """
    if flavor is not None and flavor not in _FLAVORS:
        raise ValueError(f"flavor is {flavor!r}, must be one of {', '.join(_FLAVORS)}")
    path = _find(name_or_path)
    state, metadata = read_tensors(path)
    if "config" in metadata:
        config = _declared_config(path, metadata["config"], tensors=len(state))
    else:
        config = infer_config(state, source=path)
    if patch_size is not None:
        config = replace(config, patch_size=patch_size)
    temperatures = [key for key in state if key.endswith(".temperature")]
    if flavor == "neosr":
        state |= {key: torch.full_like(state[key], 1 / config.patch_size) for key in temperatures}
    elif (
        flavor is None and "config" not in metadata and temperatures and all(state[k].eq(1).all() for k in temperatures)
    ):
        warnings.warn(
            f"{path}: every temperature is exactly 1, as in files trained by neosr, whose attention differs; "
            'if it is one, load it with flavor="neosr", otherwise with flavor="official"',
            stacklevel=2,
        )
    model = _without_memory(path, config, fused)
    check_fit(path, state, model.state_dict())
    model.to(dtype).to_empty(device="cpu").load_state_dict(state)  # rounded once, whatever the default dtype is
    return model.to(device).eval().requires_grad_(False)


def save(
    model: DITN,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model's weights to .safetensors (with its configuration and `metadata`) or, as the published file is, to
    .pth or .pt. `dtype` converts them on the way, float16 for example.

    Other programs read such files with spandrel (chaiNNer, ComfyUI), whose class is DITN-Real's. A model with LayerNorm
    has the same names but for the norms, is taken for one and fails there, unless `ditn.spandrel.register()` was
    called: saving it as .pth or .pt warns of that.

    Written under another name and renamed, so the path holds the old file or the whole new one. Raises FileExistsError
    unless `overwrite`, ValueError for another suffix and for a weight that is finite, but too large for `dtype`.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    state = {key: _converted(key, tensor, dtype) for key, tensor in model.state_dict().items()}
    if path.suffix not in (".safetensors", *_PICKLE_SUFFIXES):
        raise ValueError(f"{path}: the suffix must be .safetensors, .pth or .pt, not {path.suffix!r}")
    if path.suffix in _PICKLE_SUFFIXES and model.config.norm == "layernorm":
        warnings.warn(
            f"{path}: spandrel (chaiNNer, ComfyUI) takes a DITN with LayerNorm for a DITN-Real and fails to load it, "
            "unless ditn.spandrel.register() was called in that process (docs/deployment.md)",
            stacklevel=2,
        )
    with atomic_write(path) as temporary:
        if path.suffix == ".safetensors":
            facts = {**(metadata or {}), "config": json.dumps(asdict(model.config))}
            temporary.write_bytes(format_safetensors(state, facts))
        else:
            torch.save(state, temporary)


def _converted(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    converted = tensor.detach().to("cpu", dtype).contiguous()
    lost = tensor.detach().cpu().isfinite() & ~converted.isfinite()
    if lost.any():
        raise ValueError(f"{key} has {int(lost.sum())} values that are too large for {converted.dtype}")
    return converted


def infer_config(state: Mapping[str, Tensor], *, source: object = "state dict") -> DITNConfig:
    """The configuration that a state dict with the published keys has, the patch size being 8. Raises CheckpointError
    for a tensor that is missing or of no possible shape."""

    def shape(key: str) -> torch.Size:
        if key not in state:
            raise CheckpointError(f"{source}: has no {key}; these are not the weights of a DITN")
        found = state[key].shape
        if len(found) != 4 or 0 in found:
            raise CheckpointError(f"{source}: {key} has shape {list(found)}, expected four axes, none of length 0")
        return found

    def count(pattern: str) -> int:
        found = (re.match(pattern, key) for key in state)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    dim, channels = shape("sft.weight")[:2]
    upscale, outputs = _upscale(shape("upsample.0.weight")[0], channels, source)
    itls, sals = count(r"UFONE\.0\.ITLs\.(\d+)\."), count(r"UFONE\.0\.SALs\.(\d+)\.")
    layer = "UFONE.0.ITLs.0" if itls else "UFONE.0.SALs.0"
    norm = "layernorm" if f"{layer}.norm1.weight" in state else "tanh"
    hidden = shape(f"{layer}.ffn.project_in.weight")[0] // 2 if itls or sals else 2 * dim
    expansion = hidden / dim
    if int(dim * expansion) < hidden:  # rounded down, as for 122 / 46
        expansion = math.nextafter(expansion, math.inf)
    config = DITNConfig(
        upscale=upscale,
        norm=norm,
        dim=dim,
        ufones=count(r"UFONE\.(\d+)\."),
        itls=itls,
        sals=sals,
        expansion=expansion,
        bias=f"{layer}.ffn.project_in.bias" in state,
        in_channels=channels,
        out_channels=outputs,
        ufone_conv="UFONE.0.conv.weight" in state,
    )
    _check_layers(source, config, len(state))
    return config


def _upscale(outputs: int, channels: int, source: object) -> tuple[int, int]:
    """How much larger the images get, and how many channels they have then: as many as before, or else colour or gray.
    A network from gray to colour is what spandrel and traiNNer-redux make for images of one channel."""
    for after in dict.fromkeys((channels, 3, 1)):
        for upscale in UPSCALES:
            if after * upscale**2 == outputs:
                return upscale, after
    raise CheckpointError(
        f"{source}: upsample.0.weight has {outputs} outputs, expected {channels} * upscale**2, 3 * upscale**2 or "
        f"upscale**2 for upscale {UPSCALES[0]} to {UPSCALES[-1]}"
    )


def _declared_config(path: Path, text: str, *, tensors: int) -> DITNConfig:
    """The configuration that a file's metadata names, as `save` writes it. Raises CheckpointError for anything else."""
    try:
        config = DITNConfig(**json.loads(text))
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        shown = text if len(text) < 80 else f"{text[:80]}..."
        raise CheckpointError(
            f"{path}: its metadata has the config {shown!r}, which is not this package's: {error}. Take that out of "
            "the file, and the configuration is read off the tensors"
        ) from error
    _check_layers(path, config, tensors)
    return config


def _check_layers(source: object, config: DITNConfig, tensors: int) -> None:
    """Raises CheckpointError before a network is made of more layers than the file can hold."""
    layers = config.ufones * (1 + config.itls + config.sals)
    if layers > tensors:
        raise CheckpointError(f"{source} holds {tensors} tensors, too few for the {layers} layers of {config}")


def _without_memory(path: Path, config: DITNConfig, fused: bool) -> DITN:
    """A network that takes none before the file is known to fit."""
    try:
        with torch.device("meta"):
            return DITN(config=config, fused=fused)
    except (RuntimeError, TypeError, OverflowError) as error:  # by how much too large
        raise CheckpointError(f"{path}: no network can be as large as {config}") from error


def _weights() -> Any:
    return files("ditn") / "weights"


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _verify(path: Path) -> None:
    """Raise CheckpointError unless a shipped file is the one that was shipped."""
    lines = (path.parent / "SHA256SUMS").read_text().splitlines()
    stated = {name: digest for digest, name in map(str.split, lines)}.get(path.name)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != stated:
        raise CheckpointError(f"{path} has the SHA-256 {found}, expected {stated}: install the package again")


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in models():
        path = Path(str(_weights() / f"{name_or_path}.safetensors"))
        _verify(path)
        return path
    raise FileNotFoundError(
        f"{name_or_path} is no file and no shipped model; there are {', '.join(models()) or 'none'}"
    )


def check_fit(source: object, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming `source` and the key, unless keys and shapes are as expected and values finite."""
    for problem, keys in (
        ("lacks", expected.keys() - state.keys()),
        ("has unexpected", state.keys() - expected.keys()),
    ):
        if keys:
            first = sorted(keys)[:3]
            raise CheckpointError(
                f"{source} {problem} {', '.join(first)}" + f" and {len(keys) - 3} more" * (len(keys) > 3)
            )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{source}: {key} has shape {list(tensor.shape)}, expected {list(expected[key].shape)}"
            )
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise CheckpointError(f"{source}: {key} has {bad} values of {tensor.numel()} that are not finite")
