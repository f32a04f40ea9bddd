# SPDX-License-Identifier: Apache-2.0
"""The networks that are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

import ditn
from benchmarks.harness.peers import PEERS

MODELS: Mapping[str, Callable[[int], ditn.DITN]] = {
    "ditn": ditn.DITN,
    "ditn-tiny": ditn.DITN_Tiny,
    "ditn-real": ditn.DITN_Real,
}


def new_network(name: str, upscale: int) -> nn.Module:
    """For inference, with random weights, none of them 0, as a new SAL's scale is: nothing may be free to compute."""
    torch.manual_seed(0)
    networks: dict[str, Callable[[int], nn.Module]] = {**MODELS, **PEERS}
    network = networks[name](upscale).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def new_model(name: str, upscale: int) -> ditn.DITN:
    """A DITN, likewise."""
    model = new_network(name, upscale)
    assert isinstance(model, ditn.DITN)
    return model
