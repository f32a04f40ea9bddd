# SPDX-License-Identifier: Apache-2.0
"""`ditn verify`: is what this machine computes what the operators and the network say?"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import operator
from collections.abc import Iterator

import torch

from ditn.commands.device import choose_device
from ditn.imaging.sample import sample_image
from ditn.model.checkpoint import load
from ditn.model.network import plain_network
from ditn_kernels import BackendError, info, prove, use_backend

# What each dtype keeps of the image, in dB against float64, below which something is wrong: measured on photos with
# the official weights at 130, 75 and 49 dB, less 10 dB for other weights and images.
EXPECTED_DB = {torch.float32: 120.0, torch.float16: 65.0, torch.bfloat16: 39.0}


def run(args: argparse.Namespace) -> int:
    """On a GPU the proof of every kernel; then the network, a line for each backend and dtype. 0 if all that can run
    are right, 1 if one is not."""
    model = load(args.model)
    device = choose_device(args.device)
    failed = not _proved(device)
    image = sample_image()
    reference = plain_network(model.config, copy.deepcopy(model).double().state_dict())(image.double())
    for backend in (None, *_backends(str(device))):
        for dtype, expected in EXPECTED_DB.items():
            name = f"{backend or 'default':7} {str(dtype).removeprefix('torch.'):8}"
            try:
                # PyTorch's convolutions on a GPU round float32 to 10 bits (TF32) unless told not to.
                full_float32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
                with use_backend(backend), torch.inference_mode(), full_float32:
                    output = copy.deepcopy(model).to(device, dtype)(image.to(device, dtype)).double().cpu()
            except BackendError as error:
                print(f"{name} cannot run: {error}")
                continue
            worst = (output - reference).abs().max().item()
            peak = max(1.0, reference.abs().max().item())
            noise = (output - reference).square().mean().item() / peak**2
            decibels = -10 * math.log10(noise) if noise else math.inf
            good = decibels >= expected
            failed |= not good
            verdict = "right" if good else f"WRONG, at least {expected:.0f} dB expected"
            print(f"{name} {decibels:6.1f} dB, largest error {worst:.2g}: {verdict}")
    return int(failed)


def _proved(device: torch.device) -> bool:
    """A line for each operator, backend, direction and dtype, and one for each fault. Whether there was none."""
    right = True
    key = operator.attrgetter("operator", "backend", "direction", "dtype")
    for names, found in itertools.groupby(sorted(prove(device), key=key), key):
        proofs = list(found)
        faults = [proof for proof in proofs if proof.fault]
        right &= not faults
        verdict = f"{len(faults)} of {len(proofs)} kinds WRONG" if faults else f"{len(proofs)} kinds right"
        print("{:22}{:7}{:9}{:9}".format(*names) + verdict)
        for proof in faults:
            print(f"  {proof.sample}: {proof.fault}")
    return right


def _backends(device: str) -> Iterator[str]:
    """Every backend that some operator names, plain PyTorch last."""
    names: dict[str, None] = {}
    for directions in info(device)["operators"].values():
        names |= dict.fromkeys(directions["forward"])
    names.pop("torch")
    yield from (*names, "torch")
