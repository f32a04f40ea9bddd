# SPDX-License-Identifier: Apache-2.0
"""Files of tensors, as trainers write them, read without running any code in them."""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

# By this tensor a DITN is found in a file, whatever stands before its name.
_ANCHOR = "sft.weight"
# What PyTorch's own wrappers put into names, in front or in the middle.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What the published keys begin with.
_PARTS = {"sft", "UFONE", "conv_after_body", "upsample"}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Dicts within dicts that are looked into: more than any trainer nests.
_DEPTH = 8


class CheckpointError(ValueError):
    """A file that cannot be used as weights. The message names the file and the key or byte that is wrong."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .pth, .pt or .safetensors file under the published keys, freed of what trainers wrap around
    them, and the metadata of a .safetensors file.

    A network is found by its first layer's name, at any depth and behind any prefix; what else is in the file, such as
    a discriminator, an optimizer's state or the number of steps, is left alone. Only further floating-point tensors in
    the network's own dict are taken for weights of it, which `load` refuses. Of weights and their moving average, which
    trainers call "ema", the average is taken, with a warning that says so.

    Raises CheckpointError for a file that is damaged, has code in it, holds something else or several networks, and for
    tensors that are no floating-point numbers of 16 bits or more.
    """
    content, metadata = _read(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    values = _flat(path, content)
    prefix, others = _choose(path, [key.removesuffix(_ANCHOR) for key in values if _is_anchor(key)])
    if others:
        warnings.warn(
            f"{path} holds {_name(prefix)}, a moving average, beside {', '.join(map(_name, others))}: "
            "the average is taken",
            stacklevel=3,
        )
    state = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    # Without a prefix the network's tensors lie where dicts of other things may lie as well.
    dicts = set() if prefix else {str(name) for name, value in content.items() if isinstance(value, dict)}
    state = {key: value for key, value in state.items() if _may_be_weight(key, value, dicts)}
    _check_tensors(path, state)
    return state, metadata


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """The content of a checkpoint and its metadata, the format told by its first bytes."""
    content = path.read_bytes()
    if not content:
        raise CheckpointError(f"{path} is empty")
    # A safetensors file begins with its header's length: 8 bytes, the upper ones 0, the first any, a pickle's 0x80 too.
    if content[4:9] == b"\0\0\0\0{":
        return _read_safetensors(path, content)
    if content[:2] == b"PK" or content[:1] == b"\x80":
        return _read_pickle(path, content), {}
    raise CheckpointError(
        f"{path} starts with {content[:8]!r}: neither a PyTorch (PK or byte 0x80) nor a safetensors file"
    )


def _read_pickle(path: Path, content: bytes) -> Any:
    try:
        zipped = content[:2] == b"PK"
        if zipped and not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path} is cut off after {len(content)} bytes: the directory at its end is missing")
        if zipped and _is_program(path):
            raise CheckpointError(f"{path} is a TorchScript program, not weights: save its state_dict() by itself")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = _first_foreign_global(path, content)
            what = f"refers to {found[0]} at byte {found[1]} of its pickle" if found else "holds more than tensors"
            raise CheckpointError(f"{path} {what}; it was not run. Weights are a dict of tensors") from error
    except CheckpointError:
        raise
    except Exception as error:  # of any type: a damaged pickle makes the unpickler stumble anywhere
        raise CheckpointError(f"{path} is damaged after at most {len(content)} bytes: {_first_line(error)}") from error


def _is_program(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _first_foreign_global(path: Path, content: bytes) -> tuple[str, int] | None:
    """The first name outside torch and collections that a pickle would import, and where; found without running it."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    strings: list[str] = []
    try:
        for opcode, argument, position in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                name = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else ".".join(strings[-2:])
                if not name.startswith(("torch.", "collections.")):
                    return name, int(position or 0)
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        pass  # the pickle ends or breaks off here, and nothing foreign came before
    return None


def _read_safetensors(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    (length,) = struct.unpack("<Q", content[:8])
    if 8 + length > len(content):
        raise CheckpointError(f"{path} is cut off after {len(content)} bytes: its header alone takes {8 + length}")
    try:
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", None) or {}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if len(content) < end:
            raise CheckpointError(f"{path} is cut off after {len(content)} of {end} bytes")
        return parse_safetensors(content), metadata
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header (bytes 8 to {8 + length}): {_first_line(error)}") from error


def _flat(path: Path, content: Mapping[Any, Any]) -> dict[str, Any]:
    """All values of a dict and of the dicts in it, by their names with dots between, without PyTorch's wrappers."""
    flat: dict[str, Any] = {}
    for name, value in _leaves(content, _DEPTH):
        key = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if key in flat:
            raise CheckpointError(f"{path} holds {key} twice, once as {name}")
        flat[key] = value
    return flat


def _leaves(content: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if not isinstance(value, dict):
            yield str(key), value
        elif depth:
            yield from ((f"{key}.{name}", leaf) for name, leaf in _leaves(value, depth - 1))


def _is_anchor(key: str) -> bool:
    return key == _ANCHOR or key.endswith(f".{_ANCHOR}")


def _choose(path: Path, prefixes: list[str]) -> tuple[str, list[str]]:
    """Which of the networks in a file is read, by its prefix, and those that its being an average left behind."""
    averages = [prefix for prefix in prefixes if _is_average(prefix)]
    best = averages or prefixes
    if len(best) > 1:
        raise CheckpointError(
            f"{path} holds several networks: {', '.join(map(_name, best))}; save the one that is meant by itself"
        )
    return (best[0] if best else ""), [prefix for prefix in prefixes if averages and prefix != averages[0]]


def _is_average(prefix: str) -> bool:
    """Whether "ema" is a word of it, as in params_ema, params-ema, netGEMA or emaModel."""
    return "ema" in map(str.lower, re.findall(r"[A-Z]?[a-z]+|EMA|[A-Z]", prefix))


def _may_be_weight(key: str, value: Any, dicts: set[str]) -> bool:
    """Whether it is the network's by its name, or a tensor beside these, in none of the dicts of other things."""
    first = key.partition(".")[0]
    return first in _PARTS or (isinstance(value, Tensor) and value.is_floating_point() and first not in dicts)


def _name(prefix: str) -> str:
    return prefix.rstrip(".") or "weights without a prefix"


def _check_tensors(path: Path, state: Mapping[str, Any]) -> None:
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key} is a {type(value).__name__}, expected a tensor")
        wrong = (value.dtype not in _DTYPES and value.dtype) or (value.layout != torch.strided and value.layout)
        if wrong or value.is_meta:
            expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            found = str(wrong or "without values").removeprefix("torch.")
            raise CheckpointError(f"{path}: {key} is {found}, expected a dense tensor of {expected}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
