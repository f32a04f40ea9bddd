# SPDX-License-Identifier: Apache-2.0
"""Files of tensors, as trainers write them, read without running any code in them."""

from __future__ import annotations

import json
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

_WRAPPERS = ("params_ema", "params", "state_dict", "model")


class CheckpointError(ValueError):
    """A file that cannot be used as weights. The message names the file and the key or byte that is wrong."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .pth, .pt or .safetensors file under the published keys, freed of what trainers wrap around
    them, and the metadata of a .safetensors file. Raises CheckpointError for a file that is damaged, has code in it or
    holds something else."""
    content, metadata = _read(path)
    return _canonical(path, content), metadata


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
    if content[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is cut off after {len(content)} bytes: the directory at its end is missing")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _first_foreign_global(path, content)
        what = (
            f"refers to {found[0]} at byte {found[1]} of its pickle" if found else "holds something other than tensors"
        )
        raise CheckpointError(f"{path} {what}; it was not run. Weights are a dict of tensors") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged after at most {len(content)} bytes: {_first_line(error)}") from error


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
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if len(content) < end:
            raise CheckpointError(f"{path} is cut off after {len(content)} of {end} bytes")
        return parse_safetensors(content), metadata
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} has a damaged header (bytes 8 to {8 + length}): {_first_line(error)}") from error


def _canonical(path: Path, state: Any) -> dict[str, Tensor]:
    """The dict of tensors under the published keys, freed of what trainers wrap around it."""
    wrapper = next((key for key in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    if wrapper:
        return _canonical(path, state[wrapper])
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a dict of tensors")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key} is a {type(value).__name__}, expected a tensor")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
