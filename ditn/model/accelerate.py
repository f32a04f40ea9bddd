# SPDX-License-Identifier: Apache-2.0
"""Other people's DITN modules, run by this package's kernels."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ditn.model.checkpoint import check_fit, infer_config
from ditn.model.config import DITNConfig
from ditn.model.network import DITN, plain_network
from ditn.model.threads import one_thread

# Patch sizes that are looked for where a module's results are not those of the one it names.
_PATCH_SIZES = (2, 4, 8, 16, 32)
# Both sides are float64 and sum in another order, relative to the largest value.
_TOLERANCE = 1e-9


# A module, or spandrel's descriptor of one.
_M = TypeVar("_M")


def accelerate(module: _M) -> _M:
    """The same module with a fused forward: the official DITN_Real, spandrel's (in chaiNNer and ComfyUI) or
    traiNNer-redux's, which are recognised by their structure and keys, not by name. In place of a module it may be
    spandrel's descriptor, whose `model` it is.

    The module is changed in place and returned. Its class, parameters, state dict and hooks stay; `forward` becomes
    `DITN.forward` on its very parameters, so that new weights, `to()` and training work on: images [B, C, H, W] in
    0..1, of any size, in the parameters' dtype -> [B, C, H * s, W * s]. A write that hides from PyTorch's version
    counter (through `.data`, or `half().float()` without a call in between) is seen only by another `accelerate`; a
    layer that is put in the place of one is not seen. torch.nn.DataParallel's replicas of it call this very module, and
    raise on another device than its own; those of a `DITN` do not.

    That it computes what this package computes is tried out first: on a copy in float64 with random weights, on a small
    random image. Raises ValueError that says what differs: a key, a shape, the size of a patch, neosr's attention,
    how an image is padded; CheckpointError, which is one, for parameters that are not finite. Raises TypeError for what
    is no module and has none as its `model`. The trial takes one thread, and about a second for DITN-Real.
    """
    inner: Any = module if isinstance(module, nn.Module) else getattr(module, "model", None)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"expected a module, or a descriptor with one as its model, got {type(module).__name__}")
    if not isinstance(inner, DITN):  # which has the kernels already
        _accelerate(inner)
    return module


def _accelerate(module: nn.Module) -> None:
    name = type(module).__name__
    state = module.state_dict()
    config = infer_config(state, source=name)
    named = next((size for part in module.modules() if isinstance(size := getattr(part, "patch_size", None), int)), 8)
    config = replace(config, patch_size=named)
    with torch.device("meta"):  # it gets the module's parameters
        network = DITN(config=config)
    check_fit(name, state, network.state_dict())
    with one_thread():
        difference = _difference(copy.deepcopy(module), config)
    if difference:
        raise ValueError(f"{name} {difference}")
    for path, part in network.named_modules():
        if part._parameters:
            # The very dictionary: a parameter that is replaced in one is replaced in both.
            theirs = module.get_submodule(path)._parameters
            for absent in part._parameters.keys() - theirs.keys():  # a bias
                theirs[absent] = None
            part._parameters = theirs
    module.forward = network.forward
    module.register_load_state_dict_post_hook(_refold)


def _refold(module: nn.Module, incompatible_keys: object) -> None:
    cast(DITN, cast(MethodType, module.forward).__self__).refold()


@torch.no_grad()
def _difference(module: nn.Module, config: DITNConfig) -> str | None:
    """In what the module, which gets other weights, differs from this package's network; None if in nothing."""
    module = module.to("cpu", torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator, **options) / fan_in**0.5)
    grid = config.grid
    image = torch.rand(1, config.in_channels, grid, 2 * grid, generator=generator, **options)
    given = module(image)
    if not _same(given, module, image, config):
        for size in _PATCH_SIZES:
            if not grid % size and _same(given, module, image, replace(config, patch_size=size)):
                return f"computes in patches of {size} x {size} pixels, but says {config.patch_size}"
        if _same(given, module, image, config, temperature=1 / config.patch_size):
            return (
                "has neosr's attention, which ignores the temperature: load its weights with "
                'ditn.load(path, flavor="neosr")'
            )
        return "has the keys of a DITN, but computes something else"
    image = image[..., : grid - 3, : 2 * grid - 1]
    try:
        given = module(image)
    except RuntimeError:
        return None  # it takes multiples of the grid only; DITN takes any size
    return None if _same(given, module, image, config) else "pads images in another way"


def _same(
    given: Tensor, module: nn.Module, image: Tensor, config: DITNConfig, temperature: float | None = None
) -> bool:
    """Whether this package computes the same from the module's weights, all temperatures set to a number if given."""
    state = module.state_dict()
    if temperature is not None:
        state |= {key: torch.full_like(state[key], temperature) for key in state if key.endswith(".temperature")}
    expected: Tensor = plain_network(config, state)(image)
    bound = _TOLERANCE * float(expected.abs().max())
    return given.shape == expected.shape and float((given - expected).abs().max()) <= bound
