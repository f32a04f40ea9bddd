# SPDX-License-Identifier: Apache-2.0
"""Networks that are small enough for tests."""

from __future__ import annotations

from typing import Any

import torch

import ditn

MODELS = {"ditn": ditn.DITN, "ditn-tiny": ditn.DITN_Tiny, "ditn-real": ditn.DITN_Real}


def small(model: type[ditn.DITN] = ditn.DITN_Real, **fields) -> ditn.DITN:
    """A network of a few thousand weights, none of them at its (often zero) start."""
    network = model(**{"upscale": 2, "dim": 12, "ufones": 1, "itls": 1, "sals": 1} | fields)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return network.eval().requires_grad_(False)


def without_guard(model: ditn.DITN, **options: Any) -> ditn.Upscaler:
    """What a random model makes of a picture is no enlargement, and would all be repaired."""
    return ditn.Upscaler(model, guard="off", **options)
