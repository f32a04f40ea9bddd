# SPDX-License-Identifier: Apache-2.0
"""A start for training at a plain interpolation instead of at noise."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ditn.model import DITN
from ditn.modules import conv2d


@torch.no_grad()
def start_at_interpolation(model: DITN, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the head and the tail so that the new model is the best linear 3x3 interpolation of `pairs`.

    The published network has no bicubic skip: a fresh one first has to learn to copy the image. Here the stream's
    first `in_channels` channels carry the image, and the tail's last convolution turns just these into the s * s
    pixels of each phase by the filter that least squares find on `pairs` (low [B, C, H, W], high [B, C, sH, sW], in
    0..1); one filter serves all colours. Everything else keeps its random start and joins in with training.

    Raises ValueError if the model's images have different numbers of channels in and out.
    """
    config = model.config
    channels, scale = config.in_channels, config.upscale
    if channels != config.out_channels or channels > config.dim:
        raise ValueError(
            f"interpolation needs as many output as input channels and no more than dim, "
            f"got {channels}, {config.out_channels} and {config.dim}"
        )
    gram, moment = torch.zeros(9, 9, dtype=torch.float64), torch.zeros(9, scale**2, dtype=torch.float64)
    for low, high in pairs:
        inner = low[..., 1:-1, 1:-1].shape[-2:]
        taps = F.unfold(low.flatten(0, 1).unsqueeze(1).double(), 3).transpose(1, 2).flatten(0, 1)
        phases = F.pixel_unshuffle(high.flatten(0, 1).unsqueeze(1).double(), scale)[..., 1:-1, 1:-1]
        phases = phases.reshape(-1, scale**2, inner.numel()).transpose(1, 2).flatten(0, 1)
        gram += taps.t() @ taps
        moment += taps.t() @ phases
    filters = torch.linalg.solve(gram + 1e-6 * gram.diagonal().mean() * torch.eye(9, dtype=torch.float64), moment)

    copied = torch.arange(channels)
    head, body, last = (
        dict(conv.named_parameters()) for conv in (model.sft, model.conv_after_body, conv2d(model.upsample[0]))
    )
    head["weight"][:channels] = 0
    head["weight"][copied, copied, 1, 1] = 1
    head["bias"][:channels] = 0
    body["weight"][:channels] = 0
    body["bias"][:channels] = 0
    last["weight"].zero_()
    last["bias"].zero_()
    phases_of_colour = last["weight"].view(channels, scale**2, config.dim, 3, 3)
    phases_of_colour[copied, :, copied] = filters.t().reshape(scale**2, 3, 3).to(last["weight"].dtype)
